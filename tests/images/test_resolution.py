"""Where a slide's µm per pixel comes from, and what is not believed."""

import pytest

from pipeline.errors import ImageError
from pipeline.image_settings import SlideSettings
from pipeline.images.resolution import Resolution, find_resolution

REMEDY = ": state the true one in the `mpp` column of labels.csv, or set slide.mpp_policy"
NONE = "the file states no mpp"
OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def facts(mpp: float | tuple[float, float] | None = None, power: str = "", **others: str) -> dict[str, str]:
    x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    own = {} if mpp is None else {"openslide.mpp-x": repr(x), "openslide.mpp-y": repr(y)}
    objective = {"openslide.objective-power": power} if power else {}
    return own | objective | {f"openslide.{name}": value for name, value in others.items()}


def ome(sizes: str) -> str:
    pixels = f'<Pixels ID="Pixels:0" {sizes} SizeX="64" SizeY="64"><Channel ID="Channel:0"/></Pixels>'
    head = '<?xml version="1.0" encoding="UTF-8"?><!-- <Pixels/> -->'
    return f'{head}<OME xmlns="{OME}"><Image ID="0">{pixels}</Image></OME>'


def settings(policy: str = "require", native: float = 0.0) -> SlideSettings:
    return SlideSettings(mpp_policy=policy, native_mpp=native)


def refusal(
    found: dict[str, str], stated: float | None = None, policy: str = "", policy_of_cohort: str = "require"
) -> str:
    with pytest.raises(ImageError) as caught:
        find_resolution(found, settings(policy_of_cohort, 0.5 if policy_of_cohort == "override" else 0), stated, policy)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_files_own_value_is_the_mean_of_both_axes():
    assert find_resolution(facts((0.24, 0.25)), settings(), None) == Resolution(0.245, "property", ())
    assert find_resolution(facts(0.499, "20", vendor="aperio"), settings(), None) == Resolution(0.499, "property", ())


def test_the_resolution_tags_of_a_generic_tiff_are_called_so():
    assert find_resolution(facts(0.5, vendor="generic-tiff"), settings(), None) == Resolution(0.5, "tiff", ())


@pytest.mark.parametrize(
    ("sizes", "mpp"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.25"', 0.25),
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="µm" PhysicalSizeY="0.26" PhysicalSizeYUnit="&#181;m"', 0.255),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="250" PhysicalSizeYUnit="nm"', 0.25),
        ('PhysicalSizeX="0.0005" PhysicalSizeXUnit="mm" PhysicalSizeY="0.5"', 0.5),
        ('PhysicalSizeX="0.00005" PhysicalSizeXUnit="cm" PhysicalSizeY="5e-7" PhysicalSizeYUnit="m"', 0.5),
    ],
)
def test_ome_xml_comes_first_in_its_own_units(sizes, mpp):
    found = find_resolution(facts(264.583, vendor="generic-tiff", comment=ome(sizes)), settings(), None)
    assert (found.source, found.notes) == ("ome", ())
    assert found.mpp == pytest.approx(mpp, rel=1e-9)


def test_ome_xml_may_stand_in_the_tag_and_in_any_name_space():
    text = '<ome:OME xmlns:ome="x"><ome:Pixels PhysicalSizeX="0.5" PhysicalSizeY="0.5"/></ome:OME>'
    assert find_resolution({"tiff.ImageDescription": text}, settings(), None) == Resolution(0.5, "ome", ())


def test_of_ome_xml_its_first_image_and_its_first_megabyte_are_read():
    long = ome('PhysicalSizeX="0.5" PhysicalSizeY="0.5"').replace(
        "</OME>", '<Pixels PhysicalSizeX="1"/>' + " " * (1 << 21)
    )
    assert find_resolution(facts(comment=long), settings(), None).mpp == 0.5
    late = ome('PhysicalSizeX="0.5" PhysicalSizeY="0.5"').replace("<Image", " " * (1 << 20) + "<Image")
    assert refusal(facts(comment=late)) == NONE + REMEDY


@pytest.mark.parametrize(
    "comment",
    [
        "Aperio Image Library v11.2.1 \r\nMPP = 0.25",
        "<OME><Pixels PhysicalSizeX='0.25'/></OME>",
        "<OME><Pixels PhysicalSizeX='0.25' PhysicalSizeXUnit='pixel' PhysicalSizeY='0.25'/></OME>",
        "<OME><Pixels PhysicalSizeX='wide' PhysicalSizeY='-1'/></OME>",
        "<other><Pixels PhysicalSizeX='0.25' PhysicalSizeY='0.25'/></other>",
        "<OME><Pix",
        "<<<",
        "<OME>\udcff</OME>",
        '{"shape": [1024, 512, 3]}',
    ],
)
def test_other_comments_and_damaged_ones_state_nothing(comment):
    assert refusal(facts(comment=comment)) == NONE + REMEDY
    assert find_resolution(facts(0.5, comment=comment), settings(), None) == Resolution(0.5, "property", ())


def test_ome_xml_that_could_define_entities_is_not_read():
    text = '<!DOCTYPE OME [<!ENTITY a "0.25">]><OME><Pixels PhysicalSizeX="&a;" PhysicalSizeY="&a;"/></OME>'
    said = "the OME-XML has a DOCTYPE, which is not read"
    assert refusal(facts(comment=text)) == said + REMEDY
    assert find_resolution(facts(0.5, comment=text), settings(), None) == Resolution(0.5, "property", (said,))


def test_what_was_passed_over_and_what_disagrees_is_noted():
    tiny = facts(0.5, vendor="generic-tiff", comment=ome('PhysicalSizeX="0.0005" PhysicalSizeY="0.0005"'))
    said = "mpp 0.0005 is implausible (0.05 to 10 µm per pixel is plausible; 0.5 would be: a slip of a power of ten?)"
    assert find_resolution(tiny, settings(), None) == Resolution(0.5, "tiff", (said,))
    two = facts(0.5, vendor="generic-tiff", comment=ome('PhysicalSizeX="0.25" PhysicalSizeY="0.25"'))
    assert find_resolution(two, settings(), None) == Resolution(0.25, "ome", ("the file also says mpp 0.5",))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, NONE),
        (facts((0.5, float("nan"))), NONE),
        ({"openslide.mpp-x": "0.5"}, NONE),
        (facts((0.5, 0.6)), "mpp 0.5 along x and 0.6 along y differ by more than 5 %"),
        (facts(1000.0), "mpp 1000 is implausible (0.05 to 10 µm per pixel is plausible)"),
        (
            facts(0.0274),
            "mpp 0.0274 is implausible (0.05 to 10 µm per pixel is plausible; 0.274 would be: a slip of a power of "
            "ten?)",
        ),
        # 40 times suggests 0.25, and 0.4 is more than 30 % from it; 20 times suggests 0.5
        (facts(4000.0, "40"), "mpp 4000 is implausible (0.05 to 10 µm per pixel is plausible)"),
        (
            facts(4000.0, "20"),
            "mpp 4000 is implausible (0.05 to 10 µm per pixel is plausible; 0.4 would be: a slip of a power of ten?)",
        ),
        (
            facts(2.5, "40"),
            "mpp 2.5 is implausible (objective power 40 suggests 0.25; 0.25 would be: a slip of a power of ten?)",
        ),
        (
            facts(0.12, "10"),
            "mpp 0.12 is implausible (objective power 10 suggests 1; 1.2 would be: a slip of a power of ten?)",
        ),
        (facts(1.5, "40"), "mpp 1.5 is implausible (objective power 40 suggests 0.25)"),
        (facts(264.58333), "mpp 264.583 is implausible (96 pixels per inch: a screen's, not a scanner's)"),
        (facts(352.858), "mpp 352.858 is implausible (72 pixels per inch: a screen's, not a scanner's)"),
        (facts(84.667, "20"), "mpp 84.667 is implausible (300 pixels per inch: a screen's, not a scanner's)"),
    ],
)  # fmt: skip
def test_an_mpp_that_cannot_be_trusted_is_refused_unless_the_user_states_one(found, said):
    assert refusal(found) == said + REMEDY
    assert refusal(found, policy="require", policy_of_cohort="override") == said + REMEDY
    assert find_resolution(found, settings(), 0.5).mpp == 0.5
    assert find_resolution(found, settings("override", 0.5), None).mpp == 0.5


@pytest.mark.parametrize("mpp", [0.05, 10.0])
def test_the_ends_of_what_is_plausible_are_plausible(mpp):
    assert find_resolution(facts(mpp), settings(), None).mpp == mpp


@pytest.mark.parametrize(
    ("mpp", "notes"),
    [
        (0.2325, ("mpp 0.2325 is 0.47 of what objective power 20 suggests",)),
        (0.34, ()),
        (0.74, ()),
        (1.9, ("mpp 1.9 is 3.8 of what objective power 20 suggests",)),
    ],
)
def test_an_mpp_unusual_for_its_objective_is_noted(mpp, notes):
    assert find_resolution(facts(mpp, "20"), settings(), None).notes == notes


@pytest.mark.parametrize("power", ["", "0", "-20", "nan", "unknown"])
def test_an_objective_power_that_says_nothing_is_passed_over(power):
    assert find_resolution(facts(3.0, power), settings(), None) == Resolution(3.0, "property", ())
    assert refusal(facts(None, power), policy="assume") == NONE + REMEDY


def test_override_takes_what_is_stated_and_notes_a_file_that_says_otherwise():
    said = "mpp 0.25 is stated where the file says 0.5"
    assert find_resolution(facts(0.5), settings(), 0.25) == Resolution(0.25, "labels", (said,))
    assert find_resolution(facts(0.5), settings(), 0.25, "override") == Resolution(0.25, "labels", (said,))
    assert find_resolution(facts(0.5), settings("override", 0.25), None) == Resolution(0.25, "config", (said,))
    assert find_resolution(facts(0.51), settings(), 0.5) == Resolution(0.5, "labels", ())
    assert find_resolution({}, settings(), 0.5) == Resolution(0.5, "labels", ())


def test_assume_believes_the_file_then_the_user_then_the_objective():
    assert find_resolution(facts(0.5), settings(), 0.25, "assume") == Resolution(0.5, "property", ())
    assumed = (f"{NONE}: assumed",)
    assert find_resolution({}, settings(), 0.25, "assume") == Resolution(0.25, "labels", assumed)
    assert find_resolution({}, settings("assume", 0.25), None) == Resolution(0.25, "config", assumed)
    assert find_resolution(facts(None, "40"), settings("assume", 0.25), None).source == "config"
    by_power = Resolution(0.25, "objective", (f"{NONE}: 0.25 by objective power 40",))
    assert find_resolution(facts(None, "40"), settings("assume"), None) == by_power
    assert refusal({}, policy_of_cohort="assume") == NONE + REMEDY
    assert refusal(facts(None, "1000"), policy_of_cohort="assume") == NONE + REMEDY
    screen = find_resolution(facts(264.583), settings("assume", 0.25), None)
    said = "mpp 264.583 is implausible (96 pixels per inch: a screen's, not a scanner's): assumed"
    assert screen == Resolution(0.25, "config", (said,))


def test_a_row_of_the_labels_comes_before_the_settings():
    cohort = settings("override", 0.25)
    assert find_resolution(facts(0.5), cohort, 1.0) == Resolution(
        1.0, "labels", ("mpp 1 is stated where the file says 0.5",)
    )
    assert find_resolution(facts(0.5), cohort, None, "require") == Resolution(0.5, "property", ())
    assert find_resolution(facts(0.5), cohort, None, "assume") == Resolution(0.5, "property", ())
    assert find_resolution({}, cohort, None, "assume") == Resolution(0.25, "config", (f"{NONE}: assumed",))


def test_a_stated_mpp_must_be_plausible_too():
    assert refusal({}, 80.0) == "mpp 80 is implausible (0.05 to 10 µm per pixel is plausible)" + REMEDY
    assert refusal(facts(0.5), 0.02) == (
        "mpp 0.02 is implausible (0.05 to 10 µm per pixel is plausible; 0.2 would be: a slip of a power of ten?)"
        + REMEDY
    )
