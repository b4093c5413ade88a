"""The table of labels: what is understood, what is refused, and that each refusal names the line and the remedy."""

from pathlib import Path

import pytest

from pipeline.cohort import Row, bag_name, class_names, lacks_mpp, match, mixed_patients, read_labels
from pipeline.config import Config
from pipeline.errors import CohortError
from pipeline.image_settings import SlideSettings

THREE = Config.model_validate({"split": {"folds": 3}})


def read(tmp_path: Path, text: str, encoding: str = "utf-8") -> list[Row]:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return read_labels(path)


def rows(*cells: tuple[str, str, str], case: str = "") -> dict[str, Row]:
    """Rows of (image, patient, label), by image, from line 2 on."""
    return {
        image: Row(number, image, False, patient, case, label, "", "", None)
        for number, (image, patient, label) in enumerate(cells, start=2)
    }


def labelled(*labels: str) -> dict[str, Row]:
    """One image and one patient per label."""
    return rows(*((f"{n}.svs", f"P{n}", label) for n, label in enumerate(labels)))


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(CohortError) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_table_is_no_rows(tmp_path: Path) -> None:
    assert read_labels(tmp_path / "absent.csv") == []


def test_all_columns_are_read(tmp_path: Path) -> None:
    text = "image,patient,case,label,exclude,site,mpp,age\na/1.svs, P1 ,C1,tumour,blurred,Bern,0.25,61\nct/2,P2,,,,,,\n"
    assert read(tmp_path, text) == [
        Row(2, "a/1.svs", False, "P1", "C1", "tumour", "blurred", "Bern", 0.25),
        Row(3, "ct/2", False, "P2", "", "", "", "", None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage,patient,label\n1.svs,P1,yes\n",
        "image;patient;label\n1.svs;P1;yes\n",
        "image\tpatient\tlabel\r\n1.svs\tP1\tyes\r\n",
        "Image, PATIENT ,Label\n./1.svs,P1,yes",
        'label,"patient","image"\nyes,"P1","1.svs"\n',
    ],
    ids=["byte order mark", "semicolons", "tabs and DOS line ends", "capitals and spaces", "other order, quotes"],
)
def test_tables_as_spreadsheets_write_them_are_understood(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == [Row(2, "1.svs", False, "P1", "", "yes", "", "", None)]


def test_a_table_in_the_layout_of_clam_is_understood(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "case_id,slide_id,label\npatient_0,slide_1,tumor_tissue\n")
    assert row == Row(2, "slide_1", True, "patient_0", "patient_0", "tumor_tissue", "", "", None)
    assert match([row], ["deep/below/slide_1.svs", "slide_2.svs"]).rows == {"deep/below/slide_1.svs": row}


def test_backslashes_of_windows_paths_are_slashes(tmp_path: Path) -> None:
    assert read(tmp_path, "image,patient\na\\b\\1.svs,P1\nct\\2\\,P2\n")[1].image == "ct/2"


def test_blank_lines_are_no_rows_and_do_not_shift_line_numbers(tmp_path: Path) -> None:
    assert [row.number for row in read(tmp_path, "image,patient\n1.svs,P1\n\n\n2.svs,P2\n")] == [2, 5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,label\n1.svs,yes\n", "has no column `patient` (found: image, label): add it"),
        ("file,patient\n1.svs,P1\n", "has no column `image` (found: file, patient): add it"),
        ("", "has no column `image` (found: nothing)"),
        ("image,patient\n1.svs,P1\n2.svs, \n", "line 3: `patient` is empty: folds divide patients"),
        ("image,patient\n,P1\n", "line 2: `image` is empty or leads out of the raw folder: write its path below it"),
        ("image,patient\n../1.svs,P1\n", "line 2: `image` is empty or leads out"),
        ("image,patient\na/../../1.svs,P1\n", "line 2: `image` is empty or leads out"),
        ("image,patient\n/data/1.svs,P1\n", "line 2: `image` is empty or leads out"),
        ("image,patient,mpp\n1.svs,P1,0.25\n2.svs,P2,40x\n", "line 3: mpp is '40x': write µm per pixel, such as 0.25"),
        ("image,patient,mpp\n1.svs,P1,0\n", "line 2: mpp is '0': write"),
        ("image,patient,mpp\n1.svs,P1,nan\n", "line 2: mpp is 'nan': write"),
        ('image;patient;mpp\n1.svs;P1;"0,25"\n', "line 2: mpp is '0,25': write"),
        ("image,patient\n1.svs\n", "line 2: `patient` is empty"),
        (
            "image,patient,mpp_policy\n1.svs,P1,\n2.svs,P2,guess\n",
            "line 3: mpp_policy is 'guess': write require, override, assume or nothing",
        ),
        (
            "image,patient,mpp,mpp_policy\n1.svs,P1,0.5,require\n",
            "line 2: mpp_policy is `require`, the file's own, and",
        ),
        (
            "image,patient,mpp_policy\n1.svs,P1,override\n",
            "line 2: mpp_policy is `override` and no mpp is stated: state",
        ),
    ],
)
def test_a_wrong_table_is_refused_with_line_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(str(tmp_path / "labels.csv"))
    assert said in message


def test_a_table_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"is not UTF-8 \(byte 15\): save it as CSV UTF-8"):
        read(tmp_path, "image,patient\n1ü.svs,P1\n", encoding="latin-1")


def test_a_quote_that_never_ends_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'image,patient\n1.svs,"P1\n' + "2.svs,P2\n" * 20000)
    assert "is not a table" in message


def test_a_row_finds_its_image_with_and_without_suffix(tmp_path: Path) -> None:
    table = read(tmp_path, "image,patient\na/1.svs,P1\na/2,P2\nct/3,P3\n")
    cohort = match(table, ["a/1.svs", "a/2.svs", "ct/3", "b/2.svs"])
    assert {path: row.patient for path, row in cohort.rows.items()} == {"a/1.svs": "P1", "a/2.svs": "P2", "ct/3": "P3"}
    assert cohort.missing == []


def test_a_name_with_dots_is_not_taken_for_another_one(tmp_path: Path) -> None:
    """Folders of series are named by UIDs; 1.2.3 is not 1.2.3.4 without its suffix."""
    cohort = match(read(tmp_path, "image,patient\nct/1.2.3,P1\n"), ["ct/1.2.3.4"])
    assert cohort.rows == {}
    assert len(cohort.missing) == 1


def test_rows_without_image_are_listed_and_images_without_row_are_left_out(tmp_path: Path) -> None:
    table = read(tmp_path, "image,patient\n1.svs,P1\nlost.svs,P2\n")
    cohort = match(table, ["1.svs", "unlabelled.svs"])
    assert list(cohort.rows) == ["1.svs"]
    assert [(row.image, row.number) for row in cohort.missing] == [("lost.svs", 3)]


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("image,patient\n1.svs,P1\n2.svs,P2\n1.svs,P1\n", ["1.svs", "2.svs"], "lines 2 and 4: name the same image"),
        ("image,patient\n1.svs,P1\n1,P1\n", ["1.svs"], "lines 2 and 3: name the same image: remove one of them"),
        ("image,patient\nno.svs,P1\nno.svs,P1\n", ["1.svs"], "lines 2 and 3: name the same image"),
        ("image,patient\n1,P1\n", ["1.svs", "1.tiff"], "line 2: `image` may mean 2 different images: write the path"),
        ("slide_id,case_id\n1,P1\n", ["a/1.svs", "b/1.svs"], "line 2: `image` may mean 2 different images"),
    ],
)
def test_rows_that_could_mean_the_wrong_image_are_refused(
    tmp_path: Path, text: str, images: list[str], said: str
) -> None:
    with pytest.raises(CohortError) as caught:
        match(read(tmp_path, text), images)
    assert said in str(caught.value)


def test_a_row_may_say_where_its_mpp_comes_from(tmp_path: Path) -> None:
    text = "image,patient,mpp,mpp_policy\n1,P,0.5,Override\n2,P,0.5,assume\n3,P,,assume\n4,P,,require\n5,P,0.5,\n"
    found = [(row.mpp, row.mpp_policy) for row in read(tmp_path, text)]
    assert found == [(0.5, "override"), (0.5, "assume"), (None, "assume"), (None, "require"), (0.5, "")]


def test_a_plain_image_answers_to_its_full_path_alone(tmp_path: Path) -> None:
    table = read(tmp_path, "image,patient\na/1,P1\nb/2.png,P2\nb/3,P3\n")
    cohort = match(table, ["a/1.svs"], plain=["a/1.jpg", "b/2.png", "b/3.png"])
    assert {path: row.patient for path, row in cohort.rows.items()} == {"a/1.svs": "P1", "b/2.png": "P2"}
    assert [row.image for row in cohort.missing] == ["b/3"]
    clam = match(read(tmp_path, "case_id,slide_id\nP1,1\nP2,2.png\n"), ["a/1.svs"], plain=["a/1.jpg", "b/2.png"])
    assert list(clam.rows) == ["a/1.svs"]


def test_a_plain_image_is_a_slide_when_its_row_or_the_cohort_states_its_mpp() -> None:
    own = SlideSettings()
    override, assume = (SlideSettings(mpp_policy=p, native_mpp=0.5) for p in ("override", "assume"))
    unsaid = SlideSettings(mpp_policy="assume")

    def row(mpp: float | None, policy: str = "") -> Row:
        return Row(2, "1.png", False, "P", "", "", "", "", mpp, policy)

    for stated, settings in [(row(0.5), own), (row(0.5, "assume"), own), (None, override), (None, assume),
                             (row(None), assume), (row(None, "assume"), override)]:  # fmt: skip
        assert lacks_mpp(stated, settings) == ""
    for stated, settings in [(None, own), (row(None), own), (None, unsaid), (row(None, "assume"), own),
                             (row(None, "require"), override)]:  # fmt: skip
        assert lacks_mpp(stated, settings) == (
            "is a plain image and nobody states its mpp: give it one in the `mpp` column of labels.csv"
        )


def test_the_bag_is_the_image_the_case_or_the_patient() -> None:
    row = rows(("1.svs", "P1", "yes"), case="C1")["1.svs"]
    assert [bag_name("1.svs", row, unit) for unit in ("image", "case", "patient")] == ["1.svs", "C1", "P1"]
    without_case = rows(("1.svs", "P1", "yes"))["1.svs"]
    assert bag_name("1.svs", without_case, "case") == "1.svs"
    assert bag_name("1.svs", None, "patient") == "1.svs"


def test_classes_are_sorted_unless_the_setting_orders_them() -> None:
    cohort = labelled("no", "yes", "no", "yes", "no", "yes")
    assert class_names(cohort, THREE, "slide") == ("no", "yes")
    ordered = THREE.model_copy(update={"classes": ("yes", "maybe", "no")})
    assert class_names(cohort, ordered, "slide") == ("yes", "no")


def test_a_label_that_is_no_class_is_refused_with_its_line() -> None:
    config = THREE.model_copy(update={"classes": ("no", "yes")})
    with pytest.raises(CohortError, match=r"labels line 4: label 'Yes' is not one of `classes` \(no, yes\): correct"):
        class_names(labelled("no", "yes", "Yes"), config, "slide")


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(CohortError, match="every labelled slide is 'yes': learning needs at least two classes"):
        class_names(labelled("yes", "yes", "yes"), THREE, "slide")


def test_a_class_with_fewer_patients_than_folds_is_refused() -> None:
    """Six images of class yes, from two patients."""
    cohort = rows(*((f"{n}.svs", f"P{n % 2}", "yes") for n in range(6)), *((f"n{n}", f"N{n}", "no") for n in range(3)))
    with pytest.raises(CohortError, match="class 'yes' has 2 patients among the labelled slide, fewer than the 3 fold"):
        class_names(cohort, THREE, "slide")


@pytest.mark.parametrize("unit", ["case", "patient"])
def test_two_labels_in_one_bag_are_refused_with_both_lines(unit: str) -> None:
    cohort = rows(("1.svs", "P1", "no"), ("2.svs", "P2", "no"), ("3.svs", "P1", "yes"), case="")
    if unit == "case":
        cohort = {n: Row(r.number, n, False, n, f"C{r.patient}", r.label, "", "", None) for n, r in cohort.items()}
    config = THREE.model_copy(update={"bag": unit})
    said = f"labels lines 2 and 4: one {unit} has the labels 'no' and 'yes': correct one, or choose a smaller `bag`"
    with pytest.raises(CohortError, match=said):
        class_names(cohort, config, "slide")


def test_a_patient_may_have_images_of_two_classes_when_the_bag_is_the_image() -> None:
    cohort = rows(*((f"{n}{label}", f"P{n}", label) for n in range(3) for label in ("no", "yes")))
    assert class_names(cohort, THREE, "slide") == ("no", "yes")
    assert mixed_patients(cohort.values()) == 3


def test_mixed_patients_are_counted_by_label_and_not_by_image() -> None:
    cohort = rows(("1", "P1", "no"), ("2", "P1", "no"), ("3", "P2", "no"), ("4", "P2", "yes"), ("5", "P3", ""))
    assert mixed_patients(cohort.values()) == 1
    assert mixed_patients([*cohort.values(), *rows(("6", "P3", "yes")).values()]) == 1  # no label is not another label


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".csv", ".zarr"])
def test_feature_files_are_found_with_and_without_suffix_and_by_their_stem(tmp_path: Path, suffix: str) -> None:
    images = [f"a/TCGA-1.c7b1{suffix}", f"h5_files/slide_1{suffix}"]
    for name in ("a/TCGA-1.c7b1", f"a/TCGA-1.c7b1{suffix}"):
        assert list(match(read(tmp_path, f"image,patient\n{name},P\n"), images).rows) == images[:1]
    clam = read(tmp_path, "case_id,slide_id,label\nP1,TCGA-1.c7b1,a\nP2,slide_1,b\n")
    assert {path: row.patient for path, row in match(clam, images).rows.items()} == dict(
        zip(images, ["P1", "P2"], strict=True)
    )
    assert len(match(read(tmp_path, "image,patient\na/TCGA-1,P\n"), images).missing) == 1


def test_features_are_found_by_the_name_of_their_slide(tmp_path: Path) -> None:
    """As in CLAM's tables: slide_id with the slide's suffix."""
    clam = read(tmp_path, "case_id,slide_id,label\nP1,TCGA-1.c7b1.svs,a\nP2,2.ndpi,b\n")
    images = ["deep/TCGA-1.c7b1.pt", "2.h5"]
    assert {path: row.patient for path, row in match(clam, images).rows.items()} == dict(
        zip(images, ["P1", "P2"], strict=True)
    )
    assert list(match(read(tmp_path, "image,patient\na/1.svs,P\n"), ["a/1.npy", "b/1.npy"]).rows) == ["a/1.npy"]
    assert len(match(clam, ["TCGA-1.c7b1.tiff"]).missing) == 2  # another slide is not this one


def test_letters_that_a_mac_writes_in_two_parts_are_the_same_letters(tmp_path: Path) -> None:
    apart, together = "Mu\u0308ller", "M\u00fcller"
    for there, said in ((apart, together), (together, apart)):
        for row in (f"a/{said}", f"a/{said}.svs"):
            assert list(match(read(tmp_path, f"image,patient\n{row},P\n"), [f"a/{there}.svs"]).rows) == [
                f"a/{there}.svs"
            ]
