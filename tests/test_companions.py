"""Which files a slide names beside its first one, and what a file is by its first bytes."""

from pathlib import Path

import pytest

from pipeline.companions import annotation_name, content, missing_parts, named_parts, optional_parts, parts_there

SLIDEDAT = """[GENERAL]
SLIDE_NAME = Doe Jane
FILE_0 = not this one
[HIERARCHICAL]
INDEXFILE = Index.dat
[DATAFILE]
FILE_COUNT = 2
FILE_0 = Data0000.dat
FILE_1 = Data0001.dat
[LAYER_0_LEVEL_0_SECTION]
FILE_2 = nor this one
"""

VMS = """[Virtual Microscope Specimen]
NoLayers=1
ImageFile=s-0.jpg
ImageFile(1,0)=s-1.jpg
ImageFile(0,1,-2)=s 2.jpg
MapFile=s_map.jpg
OptimisationFile=s.opt
MacroImage=s_macro.jpg
SourceLens=20
"""


def put(path: Path, content: str | bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def mirax(folder: Path, text: str | bytes = SLIDEDAT) -> Path:
    put(folder / "s/Slidedat.ini", text)
    return put(folder / "s.mrxs")


WANTED = ["s/Slidedat.ini", "s/Index.dat", "s/Data0000.dat", "s/Data0001.dat"]


@pytest.mark.parametrize(
    "text",
    [
        SLIDEDAT,
        "\ufeff" + SLIDEDAT,
        SLIDEDAT.replace("\n", "\r\n"),
        SLIDEDAT.replace(" = ", "="),
        SLIDEDAT.replace("Doe Jane", "Müller").encode("latin-1"),
        SLIDEDAT.replace("FILE_1", "a line without equals\nFILE_0 = Data0000.dat\nfile_1"),
        SLIDEDAT.encode() + b"\xff\x00" * 50,
    ],
    ids=["as it is", "byte order mark", "DOS line ends", "no spaces", "latin-1", "twice, small letters", "rubbish"],
)
def test_a_mirax_slide_names_its_index_and_data_files(tmp_path: Path, text: str | bytes) -> None:
    assert named_parts(mirax(tmp_path, text)) == WANTED


@pytest.mark.parametrize(
    "name", ["../x.dat", "/etc/x.dat", "C:\\x.dat", "a/../../x.dat", "..\\x.dat", "", ".", "..", "./", "x\x1b[0m.dat"]
)
def test_names_that_lead_out_of_the_folder_or_name_nothing_are_left_out(tmp_path: Path, name: str) -> None:
    first = mirax(tmp_path, SLIDEDAT.replace("Data0000.dat", name))
    assert named_parts(first) == ["s/Slidedat.ini", "s/Index.dat", "s/Data0001.dat"]
    vms = put(
        tmp_path / "v.vms", f"[Virtual Microscope Specimen]\nImageFile={name}\nMacroImage={name}\nMapFile=v.vms\n"
    )
    assert named_parts(vms) == optional_parts(vms) == []


def test_a_name_with_backslashes_lies_in_a_folder(tmp_path: Path) -> None:
    first = mirax(tmp_path, SLIDEDAT.replace("Data0000.dat", "more\\Data0000.dat"))
    assert "s/more/Data0000.dat" in named_parts(first)


def test_what_is_missing_of_a_mirax_slide_is_named(tmp_path: Path) -> None:
    first = mirax(tmp_path)
    put(tmp_path / "s/Index.dat")
    (tmp_path / "s/Data0000.dat").mkdir()
    assert missing_parts(first) == ["s/Data0000.dat", "s/Data0001.dat"]
    (tmp_path / "s/Data0000.dat").rmdir()
    put(tmp_path / "s/Data0000.dat")
    put(tmp_path / "s/Data0001.dat")
    assert missing_parts(first) == []
    assert parts_there(first) == WANTED


def test_of_a_mirax_slide_without_its_list_the_list_is_missing(tmp_path: Path) -> None:
    assert missing_parts(put(tmp_path / "S.MRXS")) == ["S/Slidedat.ini"]


@pytest.mark.parametrize("suffix", [".vms", ".vmu", ".VMS"])
def test_a_hamamatsu_slide_needs_its_images_and_its_map_and_no_more(tmp_path: Path, suffix: str) -> None:
    first = put(tmp_path / f"s{suffix}", VMS)
    assert named_parts(first) == ["s-0.jpg", "s-1.jpg", "s 2.jpg", "s_map.jpg"]
    assert optional_parts(first) == ["s.opt", "s_macro.jpg"]
    for name in ("s-0.jpg", "s-1.jpg", "s_macro.jpg"):
        put(tmp_path / name)
    assert missing_parts(first) == ["s 2.jpg", "s_map.jpg"]
    assert parts_there(first) == ["s-0.jpg", "s-1.jpg", "s_macro.jpg"]


def test_a_list_that_cannot_be_read_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.vms").symlink_to(tmp_path / "nowhere")
    assert named_parts(tmp_path / "s.vms") == []


@pytest.mark.parametrize("name", ["1.svs", "1.tif", "1.jpg", "1", "1.dcm"])
def test_formats_of_a_single_file_name_nothing(tmp_path: Path, name: str) -> None:
    first = put(tmp_path / name, VMS)
    assert named_parts(first) is None
    assert optional_parts(first) == missing_parts(first) == parts_there(first) == []


def test_an_annotation_is_named_like_its_slide_and_the_exact_name_comes_first() -> None:
    assert annotation_name("1.svs", ["1.svs", "1.geojson", "1.svs.geojson"]) == "1.svs.geojson"
    assert annotation_name("1.svs", ["1.geojson", "2.geojson"]) == "1.geojson"
    assert annotation_name("1.svs", ["11.geojson", "1.geojson.bak"]) is None
    assert annotation_name("1.2.840", ["1.2.geojson"]) is None  # .840 is no suffix
    assert annotation_name("1.2.840", ["1.2.840.geojson"]) == "1.2.840.geojson"
    assert annotation_name("slide", ["slide.geojson"]) == "slide.geojson"


def dicom(sop_class: bytes, preamble: bytes = b"") -> bytes:
    """The meta information of a DICOM file: its class, written out by hand."""
    return preamble.ljust(128, b"\0") + b"DICM\x02\x00\x02\x00UI" + bytes([len(sop_class), 0]) + sop_class


WSI, CT = b"1.2.840.10008.5.1.4.1.1.77.1.6", b"1.2.840.10008.5.1.4.1.1.2\0"


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"II*\0", "slide"),
        (b"MM\0*", "slide"),
        (b"II+\0\x08\0", "slide"),
        (b"MM\0+\0\x08", "slide"),
        (b"ZISRAWFILE", "slide"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\xff\xd8\xff\xe0", "picture"),
        (b"BM\x00", "picture"),
        (dicom(WSI), "dicom slide"),
        (dicom(CT), "dicom"),
        (dicom(WSI, b"II*\0\x08\0\0\0"), "dicom slide"),  # a DICOM file that TIFF readers open too
        (b"\0" * 128 + b"DICM", "dicom"),
        (b"", ""),
        (b"II*", ""),
        (b"II\0*", ""),
        (b"GIF89a", ""),
    ],
)
def test_a_file_is_known_by_its_first_bytes(tmp_path: Path, head: bytes, what: str) -> None:
    assert content(put(tmp_path / "x", head)) == what


def test_a_file_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert content(tmp_path / "loop") == content(tmp_path / "absent") == content(tmp_path) == ""


def test_real_mirax_slide_of_which_two_files_were_lost(shared_data: Path) -> None:
    folder = shared_data / "wsi_odd/crs4__slaid/tests/data"
    first = folder / "Mirax2-Fluorescence-2.mrxs"
    names = named_parts(first)
    assert names == [
        "Mirax2-Fluorescence-2/Slidedat.ini",
        "Mirax2-Fluorescence-2/Index.dat",
        *(f"Mirax2-Fluorescence-2/Data{number:04d}.dat" for number in range(24)),
    ]
    assert missing_parts(first) == [f"Mirax2-Fluorescence-2/Data000{number}.dat" for number in (5, 6)]
