"""Ids, keyed hashes, and the private table that leads back."""

import json
import re
import stat
from pathlib import Path

import pytest

from pipeline.cohort import Row
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.names import Names, private_table, raw_path, read_private_table
from pipeline.plan import Job
from pipeline.raw import RawImage

SLIDE = RawImage("Doe Jane/1.mrxs", "slide", "0", 0, ("Doe Jane/1.mrxs", "Doe Jane/1/Data.dat"), 2)
SERIES = RawImage("Doe Jane/ct", "series", "0", 0, (), 2)
ROW = Row(7, "Doe John/2.svs", False, "MRN0815", "", "yes", "", "", None)


def names(private: Path, ids: str = "hashed") -> Names:
    return Names.of(Config.model_validate({"ids": ids, "private": str(private)}))


def everything(of: Names) -> list[str]:
    """All that this cohort is called."""
    return [
        of.image(SLIDE),
        of.image(SERIES),
        of.patient("MRN0815"),
        of.bag("MRN0815", "patient", SLIDE.path, "slide"),
        of.bag("case 1", "case", SLIDE.path, "slide"),
        of.bag(SLIDE.path, "image", SLIDE.path, "slide"),
        of.missing(ROW)[0],
        of.free_text("Jane moved"),
    ]


def test_names_are_hashes_that_say_what_they_name(tmp_path: Path) -> None:
    kinds = ["slide", "series", "patient", "patient", "case", "slide", "missing"]
    *hashed, free = everything(names(tmp_path))
    for kind, name in zip(kinds, hashed, strict=True):
        assert re.fullmatch(rf"{kind}-[0-9a-f]{{16}}", name)
    assert free == "(hidden)"
    assert hashed[2] == hashed[3]  # a patient's bag is called as the patient
    assert hashed[0] == hashed[5]  # an image's bag as the image


def test_hashes_are_the_same_in_every_process_that_has_the_key(tmp_path: Path) -> None:
    key = tmp_path / "names.key"
    key.write_text("0" * 64)
    # printf 'slide:Doe Jane/1.mrxs' | openssl dgst -sha256 -hmac 000...0 (64 zeros), first 16 digits
    assert names(tmp_path).image(SLIDE) == "slide-c3b359e980f2d9d6"
    assert names(tmp_path).patient("MRN0815") == "patient-834a49a82d8b86cb"
    assert everything(names(tmp_path)) == everything(names(tmp_path))
    assert key.read_text() == "0" * 64


def test_hashes_differ_between_keys(tmp_path: Path) -> None:
    first, second = everything(names(tmp_path / "a"))[:-1], everything(names(tmp_path / "b"))[:-1]
    assert not set(first) & set(second)


def test_the_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    names(tmp_path / "deep" / "private")
    key = tmp_path / "deep" / "private" / "names.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert re.fullmatch("[0-9a-f]{64}", key.read_text())


@pytest.mark.parametrize("content", ["", "0" * 10])
def test_a_key_that_was_not_written_whole_is_refused_and_hides_nothing_by_halves(tmp_path: Path, content: str) -> None:
    (tmp_path / "names.key").write_text(content)
    with pytest.raises(PipelineError, match="names.key: .* bytes, not 64"):
        names(tmp_path)


def job(*images: RawImage, of: Names) -> Job:
    return Job("tile", "slide-0", {"images": [{"id": of.image(image)} for image in images]})


def test_the_private_table_leads_back_to_the_files(tmp_path: Path) -> None:
    of = names(tmp_path)
    made = job(SLIDE, of=of)
    of.keep(made, images=[SLIDE, SERIES])
    table = read_private_table(str(tmp_path), "tile", made.key)
    assert list(table) == [of.image(SLIDE)]  # this job's images only
    assert raw_path(Path("raw"), {"id": of.image(SLIDE)}, table) == (Path("raw") / SLIDE.path, SLIDE.files)
    assert of.files(SLIDE) == []


def test_the_private_table_of_a_job_is_written_once(tmp_path: Path) -> None:
    of = names(tmp_path)
    made = job(SLIDE, of=of)
    of.keep(made, images=[SLIDE])
    before = private_table(tmp_path, "tile", made.key).stat()
    of.keep(made, images=[SLIDE])
    assert private_table(tmp_path, "tile", made.key).stat().st_ino == before.st_ino


def test_no_name_is_in_what_a_job_is_told(tmp_path: Path) -> None:
    of = names(tmp_path)
    said = json.dumps([everything(of), of.files(SLIDE), job(SLIDE, SERIES, of=of).slice])
    assert not re.search("Doe|Jane|MRN|mrxs", said)


def test_with_ids_that_are_paths_nothing_is_hashed_and_nothing_kept(tmp_path: Path) -> None:
    of = names(tmp_path / "private", ids="path")
    assert everything(of) == [
        "Doe Jane/1.mrxs",
        "Doe Jane/ct",
        "MRN0815",
        "MRN0815",
        "case 1",
        "Doe Jane/1.mrxs",
        "Doe John/2.svs",
        "Jane moved",
    ]
    assert of.missing(ROW) == ["Doe John/2.svs", "7"]
    assert of.files(SLIDE) == list(SLIDE.files)
    of.keep(job(SLIDE, of=of), images=[SLIDE])
    assert not (tmp_path / "private").exists()
    assert raw_path(Path("raw"), {"id": "a/1.svs"}, {}) == (Path("raw/a/1.svs"), ("a/1.svs",))
    assert raw_path(Path("raw"), {"id": "s", "files": ["s", "t"]}, {}) == (Path("raw/s"), ("s", "t"))
