"""Which feature files are found, which are one image, and which say the same twice."""

import os
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.feature_scan import find_images, identity_now, scan_features, without_suffix
from pipeline.raw import RawImage


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"numbers")


def paths(images: list[RawImage]) -> list[str]:
    return [image.path for image in images]


def test_every_feature_file_in_depth_is_an_image(tmp_path: Path) -> None:
    put(tmp_path, "a.h5", "b/c.pt", "b/d/e.npz", "b/d/f.H5", "g.csv", "h.hdf5", "i.pth", "j.npy", "k.zarr/zarr.json")
    put(tmp_path, ".hidden.h5", "b/.tmp/x.h5", "k.zarr/X/c/0/0", "process_list.txt", "README")
    images, ignored = scan_features(tmp_path, "slide", "file")
    assert paths(images) == ["a.h5", "b/c.pt", "b/d/e.npz", "b/d/f.H5", "g.csv", "h.hdf5", "i.pth", "j.npy", "k.zarr"]
    assert all((image.kind, image.files) == ("slide", (image.path,)) for image in images)
    assert images[-1].size == 14  # all files of the Zarr folder
    assert [(item.path, item.reason) for item in ignored] == [("process_list.txt", "is no feature file")]


def test_strangers_of_one_folder_are_one_line(tmp_path: Path) -> None:
    put(tmp_path, *(f"ct/{n}.dcm" for n in range(5)), "a.h5")
    _, ignored = scan_features(tmp_path, "slide", "file")
    assert [(item.path, item.reason) for item in ignored] == [("ct/0.dcm and 4 more", "is no feature file")]


@pytest.mark.parametrize(
    ("names", "taken", "left"),
    [
        (["h5_files/a.h5", "pt_files/a.pt"], ["h5_files/a.h5"], {"pt_files/a.pt"}),
        (
            ["x/h5_files/a.h5", "x/pt_files/a.pt", "pt_files/a.pt"],
            ["pt_files/a.pt", "x/h5_files/a.h5"],
            {"x/pt_files/a.pt"},
        ),
        (["pt_files/a.pt", "h5_files/b.h5"], ["h5_files/b.h5", "pt_files/a.pt"], set()),
        (["a.csv", "a.pt", "a.npy", "a.h5"], ["a.h5"], {"a.csv", "a.npy", "a.pt"}),
        (["a.pt", "a.npz"], ["a.npz"], {"a.pt"}),
        (["a.b.pt", "a.c.pt"], ["a.b.pt", "a.c.pt"], set()),
        (["one/a.h5", "two/a.h5"], ["one/a.h5", "two/a.h5"], set()),  # two images
        (["one/a.h5", "two/a.pt"], ["one/a.h5", "two/a.pt"], set()),
    ],
)
def test_of_two_forms_of_one_image_the_one_with_coordinates_is_taken(
    tmp_path: Path, names: list[str], taken: list[str], left: set[str]
) -> None:
    put(tmp_path, *names)
    images, ignored = scan_features(tmp_path, "slide", "file")
    assert paths(images) == taken
    assert {item.path for item in ignored} == left
    assert all(item.reason.startswith("is another form of an image whose .") for item in ignored)


def test_a_folder_is_an_image_with_the_files_that_it_holds_itself(tmp_path: Path) -> None:
    put(tmp_path, "p1/a.h5", "p1/a.pt", "p1/b.h5", "p1/deeper/c.h5", "p2/d.zarr/zarr.json", "x.h5", "y.h5")
    images, ignored = scan_features(tmp_path, "series", "folder")
    assert [(image.path, image.files) for image in images] == [
        ("p1", ("p1/a.h5", "p1/b.h5")),
        ("p1/deeper", ("p1/deeper/c.h5",)),
        ("p2", ("p2/d.zarr",)),
    ]
    outside = "lies outside of any folder, and features_of says that a folder is one image"
    assert [(item.path, item.reason) for item in ignored] == [
        ("p1/a.pt", "is another form of an image whose .h5 file is taken"),
        ("x.h5 and 1 more", outside),
    ]


def test_the_identity_is_that_of_all_files_now(tmp_path: Path) -> None:
    put(tmp_path, "p/a.h5", "p/b.zarr/zarr.json", "p/b.zarr/X/0", "q/c.h5")
    images, _ = scan_features(tmp_path, "slide", "folder")
    for image in images:
        assert identity_now(tmp_path, image.files) == image.identity
    first, second = images
    os.utime(tmp_path / "p/b.zarr/X/0", ns=(1, 1))
    assert identity_now(tmp_path, first.files) not in ("", first.identity)
    (tmp_path / "q/c.h5").unlink()
    assert identity_now(tmp_path, second.files) == ""


def test_the_table_of_labels_is_no_image(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "labels.csv")
    images, ignored = scan_features(tmp_path, "slide", "file", tmp_path / "labels.csv")
    assert paths(images) == ["a.csv"]
    assert [(item.path, item.reason) for item in ignored] == [("labels.csv", "is the table of labels")]


def test_links_to_nothing_are_images_beside_a_table_of_labels_too(tmp_path: Path) -> None:
    put(tmp_path, "labels.csv")
    (tmp_path / "gone.h5").symlink_to(tmp_path / "nothing")
    (tmp_path / "self.h5").symlink_to("self.h5")
    images, _ = scan_features(tmp_path, "slide", "file", tmp_path / "labels.csv")
    assert paths(images) == ["gone.h5", "self.h5"]


def test_places_of_tiles_beside_features_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "a.pt", "a.index.npz", "b.pt", "b.index.npy", "c.index.npz")
    images, ignored = scan_features(tmp_path, "slide", "file")
    assert paths(images) == ["a.pt", "b.pt", "c.index.npz"]
    said = "holds the places of the tiles of the .pt file beside it, and no features"
    assert [(item.path, item.reason) for item in ignored] == [("a.index.npz", said), ("b.index.npy", said)]


def test_features_below_the_raw_folder_are_no_strangers_there(tmp_path: Path) -> None:
    put(tmp_path, "raw/features/a.zarr/X/c/0", "raw/features/a.zarr/zarr.json", "raw/features/b.pth", "raw/notes.txt")
    images, ignored = find_images(
        load_config({"raw": f"{tmp_path}/raw", "slide": {"features": f"{tmp_path}/raw/features"}})
    )
    assert paths(images) == ["a.zarr", "b.pth"]
    assert [item.path for item in ignored] == ["notes.txt"]


@pytest.mark.parametrize("folder", [".", "results", "results/embed", "link"])
def test_a_run_does_not_feed_on_its_own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "results/embed/a.zarr/zarr.json")
    Path("link").symlink_to("results/embed")
    with pytest.raises(ConfigError, match=f"slide.features: {folder} holds the results of runs, or lies in them"):
        find_images(load_config({"slide": {"features": folder}}))


def test_links_are_followed_and_a_circle_is_left(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/a.h5", "features/b.h5")
    (tmp_path / "features/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "features/circle").symlink_to(tmp_path / "features")
    (tmp_path / "features/gone.h5").symlink_to(tmp_path / "nothing")
    images, ignored = scan_features(tmp_path / "features", "slide", "file")
    assert paths(images) == ["b.h5", "gone.h5", "link/a.h5"]
    assert [(item.path, item.reason) for item in ignored] == [("circle/", "is a link to a folder that contains it")]


def test_names_that_no_table_can_hold_are_left(tmp_path: Path) -> None:
    put(tmp_path, "a\tb.h5")
    images, ignored = scan_features(tmp_path, "slide", "file")
    assert images == []
    assert [(item.path, item.reason) for item in ignored] == [
        ("'a\\tb.h5'", "has a name that is not plain text: rename it")
    ]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slide\.features: .*gone is no folder: name the one that holds the feature"):
        scan_features(tmp_path / "gone", "slide", "file")


def test_only_the_suffix_of_a_feature_file_is_one() -> None:
    names = ("a/b.h5", "a/TCGA-1.c7b1.pt", "a/1.2.840.4", "a.PTH")
    assert [without_suffix(name) for name in names] == ["a/b", "a/TCGA-1.c7b1", "a/1.2.840.4", "a"]
