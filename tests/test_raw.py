"""What is found below the raw folder, and when it counts as changed."""

import os
import shutil
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from pipeline import companions
from pipeline.errors import ConfigError
from pipeline.raw import RawImage, identity_now, scan, series_files

CT = "1.2.840.10008.5.1.4.1.1.2"
WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"
DAY = 86_400_000_000_000
NOON = 1_700_000_000_000_000_000


def put(path: Path, content: bytes = b"pixels", mtime_ns: int = NOON) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def put_dicom(path: Path, sop_class: str, series: str) -> Path:
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    file.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    file.SOPClassUID, file.SOPInstanceUID, file.SeriesInstanceUID = UID(sop_class), UID("1.2.3"), UID(series)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def found(raw: Path) -> list[tuple[str, str]]:
    return [(image.path, image.kind) for image in scan(raw)[0]]


def ignored(raw: Path) -> dict[str, str]:
    return {item.path: item.reason for item in scan(raw)[1]}


def only(raw: Path) -> RawImage:
    (image,) = scan(raw)[0]
    return image


def test_two_images_of_one_name_in_two_folders_stay_two(tmp_path: Path) -> None:
    for name in ("a/1.svs", "b/1.svs", "a/ct/0.dcm", "b/ct/0.dcm"):
        put(tmp_path / name)
    assert found(tmp_path) == [("a/1.svs", "slide"), ("a/ct", "series"), ("b/1.svs", "slide"), ("b/ct", "series")]


def test_a_mirax_slide_is_one_image_with_its_folder(tmp_path: Path) -> None:
    put(tmp_path / "x/s.mrxs")
    put(tmp_path / "x/s/Slidedat.ini", b"12345")
    put(tmp_path / "x/s/Data0001.dat", b"123")
    image = only(tmp_path)
    assert (image.path, image.kind, image.size) == ("x/s.mrxs", "slide", 6 + 5 + 3)
    assert image.files == ("x/s.mrxs", "x/s/Data0001.dat", "x/s/Slidedat.ini")


def test_the_dicom_files_of_one_slide_are_one_image_named_by_its_first_file(tmp_path: Path) -> None:
    for name, series in [("b.dcm", "1.1"), ("a.dcm", "1.1"), ("c.dcm", "1.2")]:
        put_dicom(tmp_path / "wsi" / name, WSI, series)
    images, strangers = scan(tmp_path)
    assert [image.files for image in images] == [("wsi/a.dcm", "wsi/b.dcm"), ("wsi/c.dcm",)]
    assert [image.path for image in images] == ["wsi/a.dcm", "wsi/c.dcm"]
    assert strangers == []


def test_a_dicom_slide_in_raw_itself_is_found(tmp_path: Path) -> None:
    put_dicom(tmp_path / "a.dcm", WSI, "1.1")
    assert found(tmp_path) == [("a.dcm", "slide")]


def test_a_folder_may_hold_a_ct_series_and_dicom_slides(tmp_path: Path) -> None:
    put_dicom(tmp_path / "x/0.dcm", WSI, "1.1")
    put_dicom(tmp_path / "x/1.dcm", CT, "1.2")
    put_dicom(tmp_path / "x/2.dcm", CT, "1.2")
    images, _ = scan(tmp_path)
    assert [(image.path, image.kind) for image in images] == [("x", "series"), ("x/0.dcm", "slide")]
    assert [file.name for file in series_files(tmp_path / "x")] == ["1.dcm", "2.dcm"]
    assert [identity_now(tmp_path, i.path, i.kind, i.files) for i in images] == [i.identity for i in images]


@pytest.mark.parametrize(
    "name", ["a slide", "a.b.c", "слайд-ü-切片", "n" * 200, "-rf", "$(id); 'x' \"y\"", "a,b\\c", "#%&{}"]
)
def test_odd_names_are_found_as_they_are(tmp_path: Path, name: str) -> None:
    put(tmp_path / f"{name}.SVS")
    put(tmp_path / name / "0.DCM")
    assert found(tmp_path) == sorted([(f"{name}.SVS", "slide"), (name, "series")])
    assert ignored(tmp_path) == {}


@pytest.mark.parametrize("name", [b"a\nb.svs", b"a\tb.svs", b"a\x1b[31m.svs", b"a\xff.svs", b"a\x85.svs"])
def test_names_that_no_table_can_hold_are_listed_and_left_out(tmp_path: Path, name: bytes) -> None:
    put(tmp_path / "good.svs")
    put(tmp_path / os.fsdecode(name))
    assert found(tmp_path) == [("good.svs", "slide")]
    ((path, reason),) = ignored(tmp_path).items()
    assert path == ascii(os.fsdecode(name))
    assert path.isascii() and path.isprintable()
    assert reason == "has a name that is not plain text: rename it"


def test_a_folder_whose_name_no_table_can_hold_is_listed_and_not_entered(tmp_path: Path) -> None:
    put(tmp_path / "a\nb" / "0.dcm")
    assert found(tmp_path) == []
    assert list(ignored(tmp_path)) == [r"'a\nb'"]


def test_a_badly_named_file_in_a_series_does_not_make_the_series_look_changed(tmp_path: Path) -> None:
    put(tmp_path / "ct/0.dcm")
    put(tmp_path / "ct/1\n.dcm")
    image = only(tmp_path)
    assert identity_now(tmp_path, image.path, image.kind, image.files) == image.identity
    assert [file.name for file in series_files(tmp_path / "ct")] == ["0.dcm"]


def test_a_folder_that_links_to_itself_is_entered_once(tmp_path: Path) -> None:
    put(tmp_path / "a/1.svs")
    (tmp_path / "a/again").symlink_to(tmp_path / "a")
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert found(tmp_path) == [("a/1.svs", "slide")]
    loop = "is a link to a folder that contains it"
    assert ignored(tmp_path) == {"a/again/": loop, "a/up/": loop}


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "archive/1.svs")
    put(tmp_path / "archive/ct/0.dcm")
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "s.svs").symlink_to(tmp_path / "archive/1.svs")
    (raw / "ct").symlink_to(tmp_path / "archive/ct")
    assert found(raw) == [("ct", "series"), ("s.svs", "slide")]
    image = scan(raw)[0][1]
    assert image.size == 6


@pytest.mark.parametrize("target", ["nowhere", "broken.svs"])
def test_a_link_to_nothing_or_to_itself_is_an_image_that_cannot_be_opened(tmp_path: Path, target: str) -> None:
    put(tmp_path / "good.svs")
    (tmp_path / "broken.svs").symlink_to(tmp_path / target)
    assert found(tmp_path) == [("broken.svs", "slide"), ("good.svs", "slide")]


def deny(monkeypatch: pytest.MonkeyPatch, forbidden: str) -> None:
    """Make one folder unreadable, for root too."""
    allowed = os.scandir

    def scandir(path: os.PathLike[str]) -> object:
        if Path(path).name == forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_an_unreadable_folder_is_listed_and_the_others_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "closed/1.svs")
    put(tmp_path / "open/1.svs")
    deny(monkeypatch, "closed")
    assert found(tmp_path) == [("open/1.svs", "slide")]
    assert ignored(tmp_path) == {"closed/": "cannot be opened (Permission denied)"}


def test_an_unreadable_mirax_folder_does_not_stop_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "s.mrxs")
    put(tmp_path / "s/Slidedat.ini")
    put(tmp_path / "t.svs")
    deny(monkeypatch, "s")
    assert found(tmp_path) == [("s.mrxs", "slide"), ("t.svs", "slide")]


def test_loose_ct_files_in_raw_itself_are_ignored_with_the_reason(tmp_path: Path) -> None:
    reason = "DICOM outside of any folder: `python -m pipeline sort-dicom` gives each series its own"
    put_dicom(tmp_path / "0.dcm", CT, "1.1")
    assert found(tmp_path) == []
    assert ignored(tmp_path) == {"0.dcm": reason}
    for number in range(1, 12):
        put_dicom(tmp_path / f"{number}.dcm", CT, "1.1")
    assert ignored(tmp_path) == {"0.dcm and 11 more": reason}  # an archive has a million of them


def test_what_lies_beside_ct_files_is_no_part_of_the_series(tmp_path: Path) -> None:
    for number in range(3):
        put_dicom(tmp_path / f"ct/{number}", CT, "1.1")  # no suffix, as archives write them
    alone = only(tmp_path).identity
    for name in ("LICENSE", "DICOMDIR", "VERSION", "notes.txt"):
        put(tmp_path / "ct" / name)
    image = only(tmp_path)
    assert (image.path, image.kind, image.identity) == ("ct", "series", alone)
    assert [file.name for file in series_files(tmp_path / "ct")] == ["0", "1", "2"]
    assert ignored(tmp_path) == {"ct/notes.txt": "is no slide and no DICOM file"}


def test_files_without_suffix_that_are_no_dicom_are_no_series(tmp_path: Path) -> None:
    put(tmp_path / "x/blob")
    assert found(tmp_path) == []
    assert ignored(tmp_path) == {"x/blob": "is no slide and no DICOM file"}


def test_a_broken_file_named_dcm_makes_its_folder_a_series(tmp_path: Path) -> None:
    put(tmp_path / "ct/0.dcm", b"")
    assert found(tmp_path) == [("ct", "series")]


def test_a_series_inside_a_series_is_another_one(tmp_path: Path) -> None:
    put(tmp_path / "ct/0.dcm")
    put(tmp_path / "ct/second/0.dcm")
    assert found(tmp_path) == [("ct", "series"), ("ct/second", "series")]
    assert [file.name for file in series_files(tmp_path / "ct")] == ["0.dcm"]


TIFF, PNG, JPEG = b"II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose first bytes are looked at from here on."""
    looked: list[str] = []
    look = companions.content

    def content(path: Path) -> companions.Content:
        looked.append(path.name)
        return look(path)

    monkeypatch.setattr(companions, "content", content)
    return looked


@pytest.mark.parametrize("name", ["slide", "1.2.840", "slide.qptiff", "a.jpg", "a.PNG", "a.jpeg", "a.bmp"])
@pytest.mark.parametrize("head", [TIFF, b"MM\0*", b"II+\0", b"MM\0+", b"ZISRAWFILE"])
def test_a_tiff_or_czi_file_is_a_slide_under_a_name_that_says_nothing_or_lies(
    tmp_path: Path, name: str, head: bytes
) -> None:
    put(tmp_path / "x" / name, head)
    image = only(tmp_path)
    assert (image.path, image.kind, image.plain) == (f"x/{name}", "slide", False)
    assert ignored(tmp_path) == {}


@pytest.mark.parametrize("name", ["a.xml", "a.part", "a.svs.tmp", "a.gz", "LICENSE"])
def test_a_name_that_says_something_else_is_believed(tmp_path: Path, name: str) -> None:
    put(tmp_path / "x" / name, TIFF)
    assert found(tmp_path) == []


def test_a_slide_by_its_name_is_a_slide_whatever_is_in_it(tmp_path: Path) -> None:
    put(tmp_path / "1.svs", JPEG)
    assert (only(tmp_path).kind, only(tmp_path).plain) == ("slide", False)


@pytest.mark.parametrize(("name", "head"), [("a.png", PNG), ("a.JPG", JPEG), ("a.jpeg", PNG), ("a.bmp", b"BM6")])
def test_a_picture_is_a_plain_image(tmp_path: Path, name: str, head: bytes) -> None:
    put(tmp_path / name, head)
    image = only(tmp_path)
    assert (image.path, image.kind, image.plain, image.files) == (name, "slide", True, (name,))
    assert identity_now(tmp_path, image.path, image.kind, image.files) == image.identity


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
def test_what_is_called_a_picture_and_is_none_is_ignored(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, b"GIF89a")
    assert found(tmp_path) == []
    assert ignored(tmp_path) == {name: "is no slide and no DICOM file"}


def test_slides_without_suffix_are_found_beside_strangers(tmp_path: Path) -> None:
    for number in range(8):
        put(tmp_path / f"x/{number}", TIFF if number in (3, 6) else b"blob")
    assert found(tmp_path) == [("x/3", "slide"), ("x/6", "slide")]
    assert list(ignored(tmp_path)) == [f"x/{number}" for number in (0, 1, 2, 4, 5, 7)]


def test_a_slide_without_suffix_beside_a_ct_series_leaves_the_series_whole(tmp_path: Path) -> None:
    for number in range(1, 5):
        put_dicom(tmp_path / f"ct/{number}", CT, "1.1")
    put(tmp_path / "ct/0", TIFF)
    images, strangers = scan(tmp_path)
    assert [(image.path, image.kind) for image in images] == [("ct", "series"), ("ct/0", "slide")]
    assert [file.name for file in series_files(tmp_path / "ct")] == ["1", "2", "3", "4"]
    assert [identity_now(tmp_path, i.path, i.kind, i.files) for i in images] == [i.identity for i in images]
    assert strangers == []


def test_few_files_of_a_ct_series_and_no_named_slide_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = count_looks(monkeypatch)
    for number in range(100):
        put_dicom(tmp_path / f"ct/{number:03d}", CT, "1.1")
        put(tmp_path / f"named/{number:03d}.dcm")
        put(tmp_path / f"slides/{number:03d}.svs")
    scan(tmp_path)
    assert sorted(looked) == ["000", "000.dcm", "050", "050.dcm"]


def test_no_file_is_looked_at_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = count_looks(monkeypatch)
    for number in range(10):
        put(tmp_path / f"x/{number}", TIFF)
        put(tmp_path / f"x/{number}.jpg", JPEG)
    assert len(found(tmp_path)) == 20
    assert sorted(looked) == sorted([*(f"{n}" for n in range(10)), *(f"{n}.jpg" for n in range(10))])


def test_a_hamamatsu_slide_is_one_image_with_the_files_it_names(tmp_path: Path) -> None:
    text = b"[Virtual Microscope Specimen]\nImageFile=s-0.jpg\nImageFile(1,0)=s-1\nMapFile=map.jpg\nMacroImage=m.jpg\n"
    put(tmp_path / "x/s.vms", text + b"OptimisationFile=s.opt\n")
    for name in ("s-0.jpg", "s-1", "m.jpg", "s.opt"):
        put(tmp_path / "x" / name, JPEG)
    put(tmp_path / "x/other.jpg", JPEG)
    slide, other = sorted(scan(tmp_path)[0], key=lambda image: image.plain)
    assert slide.files == ("x/s.vms", "x/s-0.jpg", "x/s-1", "x/m.jpg", "x/s.opt")
    assert (slide.missing, other.path) == (("map.jpg",), "x/other.jpg")
    assert ignored(tmp_path) == {}
    assert identity_now(tmp_path, slide.path, slide.kind, slide.files) == slide.identity
    put(tmp_path / "x/m.jpg", JPEG + b"more")
    assert identity_now(tmp_path, slide.path, slide.kind, slide.files) != slide.identity


def test_the_files_of_a_hamamatsu_slide_are_in_no_series_beside_it(tmp_path: Path) -> None:
    put(tmp_path / "x/s.vmu", b"ImageFile=1.ngr\nMapFile=2.ngr\n")
    put(tmp_path / "x/1.ngr")
    put(tmp_path / "x/2.ngr")
    put_dicom(tmp_path / "x/0", CT, "1.1")
    series, slide = scan(tmp_path)[0]
    assert (series.path, slide.files) == ("x", ("x/s.vmu", "x/1.ngr", "x/2.ngr"))
    assert [file.name for file in series_files(tmp_path / "x")] == ["0"]
    assert identity_now(tmp_path, "x", "series", ()) == series.identity


def test_a_mirax_slide_that_is_not_all_there_says_what_is_missing(tmp_path: Path) -> None:
    put(tmp_path / "x/s.mrxs", JPEG)
    assert only(tmp_path).missing == ("s/Slidedat.ini",)
    put(tmp_path / "x/s/Slidedat.ini", b"[HIERARCHICAL]\nINDEXFILE = I.dat\n[DATAFILE]\nFILE_0 = D.dat\n")
    assert only(tmp_path).missing == ("s/I.dat", "s/D.dat")
    put(tmp_path / "x/s/I.dat")
    put(tmp_path / "x/s/D.dat")
    assert only(tmp_path).missing == ()


@pytest.mark.parametrize("name", ["1.geojson", "1.svs.geojson"])
def test_an_annotation_beside_a_slide_is_its_last_file(tmp_path: Path, name: str) -> None:
    put(tmp_path / "a/1.svs")
    put(tmp_path / "a/other.geojson", b"{}")
    alone = only(tmp_path)
    put(tmp_path / "a" / name, b"{}")
    image = only(tmp_path)
    assert image.files == ("a/1.svs", f"a/{name}")
    assert image.identity != alone.identity
    assert ignored(tmp_path) == {"a/other.geojson": "is no slide and no DICOM file"}
    put(tmp_path / "a" / name, b"{} ")
    assert only(tmp_path).identity != image.identity
    assert identity_now(tmp_path, image.path, image.kind, image.files) == only(tmp_path).identity


def test_an_annotation_of_a_slide_of_many_files_comes_after_them(tmp_path: Path) -> None:
    put_dicom(tmp_path / "d/a.dcm", WSI, "1.1")
    put_dicom(tmp_path / "d/b.dcm", WSI, "1.1")
    put(tmp_path / "d/a.geojson", b"{}")
    put(tmp_path / "m/s.mrxs")
    put(tmp_path / "m/s/t.dat")
    put(tmp_path / "m/s.geojson", b"{}")
    dicom, mirax = scan(tmp_path)[0]
    assert dicom.files == ("d/a.dcm", "d/b.dcm", "d/a.geojson")
    assert mirax.files == ("m/s.mrxs", "m/s/t.dat", "m/s.geojson")


def waiting(age: float, settle: float, *missing: str, hidden: bool = False) -> str:
    return RawImage("s", "slide", "", 0, (), 0, missing).waits(age, settle, hidden)


def test_an_image_waits_until_it_is_left_alone_and_longer_when_it_is_incomplete() -> None:
    recent = "changed too recently: run again"
    assert [waiting(age, 30) for age in (-5, 29, 30)] == [recent, recent, ""]
    one = "incomplete: Data0005.dat is not there yet"
    assert [waiting(age, 30, "s/Data0005.dat") for age in (0, 599, 600)] == [one, one, ""]
    three = ("s/Data0005.dat", "s/6.dat", "s/7.dat")
    assert waiting(599, 30, *three) == "incomplete: Data0005.dat and 2 more of its files are not there yet"
    assert waiting(-5, 0) == waiting(-5, 0, *three) == ""


def test_a_reason_to_wait_names_no_file_when_names_are_hidden() -> None:
    assert waiting(0, 30, "Doe.jpg", hidden=True) == "incomplete: 1 of its files is not there yet"
    assert waiting(0, 30, "Doe.jpg", "Doe.opt", hidden=True) == "incomplete: 2 of its files are not there yet"


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / ".hidden.svs")
    put(tmp_path / ".folder/1.svs")
    put(tmp_path / "a/._1.svs")
    assert scan(tmp_path) == ([], [])


@pytest.mark.parametrize("kind", ["slide", "series"])
def test_identity_changes_with_name_size_and_mtime_of_any_file(tmp_path: Path, kind: str) -> None:
    first, second = (tmp_path / n for n in (("s.mrxs", "s/0.dat") if kind == "slide" else ("s/0.dcm", "s/1.dcm")))
    seen = set()

    def look() -> int:
        image = only(tmp_path)
        assert identity_now(tmp_path, image.path, image.kind, image.files) == image.identity
        seen.add(image.identity)
        return len(seen)

    put(first)
    put(second)
    assert look() == 1
    put(second, b"more pixels")
    assert look() == 2
    put(second, b"more pixels", NOON + 1)
    assert look() == 3
    second.rename(second.with_stem("2"))
    assert look() == 4
    put(first, b"more pixels")
    assert look() == 5
    put(second.with_stem("3"))
    assert look() == 6


@pytest.mark.parametrize("kind", ["slide", "series"])
def test_identity_changes_with_nothing_else(tmp_path: Path, kind: str) -> None:
    names = ("s.mrxs", "s/0.dat") if kind == "slide" else ("s/0.dcm", "s/1.dcm")
    for name in names:
        put(tmp_path / "here" / name)
    before = only(tmp_path)
    put(tmp_path / "here" / names[1], b"PIXELS")  # other bytes, same size and time: the content hash sees them
    (tmp_path / "here" / names[0]).chmod(0o600)
    put(tmp_path / "here/README")
    assert only(tmp_path).identity == before.identity
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = only(tmp_path)
    assert moved.path == before.path.replace("here", "there")
    assert moved.identity == before.identity


@pytest.mark.parametrize("kind", ["slide", "series"])
def test_identity_now_notices_what_happened_since_the_scan(tmp_path: Path, kind: str) -> None:
    file = put(tmp_path / ("a b/ü.svs" if kind == "slide" else "a b/ü/0.dcm"))
    image = only(tmp_path)
    assert identity_now(tmp_path, image.path, image.kind, image.files) == image.identity
    os.utime(file, ns=(NOON, NOON + DAY))
    assert identity_now(tmp_path, image.path, image.kind, image.files) != image.identity
    shutil.rmtree(tmp_path / "a b")
    assert identity_now(tmp_path, image.path, image.kind, image.files) != image.identity


@pytest.mark.parametrize("names", [("ct/0.dcm", "ct/1.dcm"), ("s.mrxs", "s/0.dat")])
def test_an_image_is_as_young_as_its_youngest_file(tmp_path: Path, names: tuple[str, str]) -> None:
    future = NOON * 3
    for young in names:
        for name in names:
            put(tmp_path / name, mtime_ns=future if name == young else NOON)
        assert only(tmp_path).changed_ns == future


def test_a_copy_that_keeps_an_old_date_still_counts_as_changed_now(tmp_path: Path) -> None:
    """A copy in progress may carry the date of its source; the time of the inode's change does not lie."""
    image_file = put(tmp_path / "1.svs", mtime_ns=NOON)
    assert only(tmp_path).changed_ns == image_file.stat().st_ctime_ns > NOON


def test_a_missing_folder_holds_nothing(tmp_path: Path) -> None:
    assert scan(tmp_path / "absent") == ([], [])


def test_a_file_in_place_of_the_raw_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raw: .* is a file: name the folder"):
        scan(put(tmp_path / "raw"))


def test_pipes_are_not_read_and_deep_folders_not_entered(tmp_path: Path) -> None:
    """Reading a pipe waits for ever."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b.mrxs").write_bytes(b"\xff\xd8\xff")
    os.mkfifo(tmp_path / "b" / "Slidedat.ini")
    os.mkfifo(tmp_path / "pipe")
    for name in ("x.dcm", "x.vms", "x.png"):
        (tmp_path / name).symlink_to("pipe")
    deep = tmp_path
    for _ in range(120):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.svs").write_bytes(b"")
    images, ignored = scan(tmp_path)
    assert {image.path for image in images} == {"b.mrxs"}  # a link to a pipe is a pipe
    assert not any(image.path.endswith("a.svs") for image in images)
    assert any("more than 100 folders" in item.reason for item in ignored)
