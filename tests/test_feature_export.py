"""Embeddings that go out: each format as its own tools read it, back again without a loss, and nothing outside."""

import csv
import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import torch

from pipeline.cli import main
from pipeline.errors import PipelineError, StoreError
from pipeline.feature_export import Export, export_path, read_export, write_export
from pipeline.feature_files import read_features
from pipeline.store import Store, write_json, write_store

VALUES = np.array([[1.5, -2.0, 0.25], [0.0, 3.0, 65504.0], [6e-8, 1.0, 1.0]], np.float16)
ORIGINS = np.array([[0, 100], [224, 100], [448, 301]], np.int32)
LEVEL0 = [[0, 250], [560, 250], [1120, 752]]
"""ORIGINS of a slide that was opened at 2.5 pixels of level 0 each; 752.5 is rounded to the even number."""
FORMATS = ("h5", "pt", "npz", "zarr")


def write_slide_stores(name: str, values: Any = VALUES, **properties: object) -> dict[str, Any]:
    """The stores of a tiled and embedded slide below results; the row of its receipt."""
    tile, embed = Path(f"results/tile/s/{name}/t.zarr"), Path(f"results/embed/s/{name}/e.zarr")
    told = {"key": "t", "size": [224, 224], "properties": {"downsample": 2.5, "l0_extent": [5000, 4000], **properties}}
    write_store(tile, {"origins": ORIGINS}, told)
    arrays = {"embeddings": values, "origins": ORIGINS, "status": np.zeros(3, np.uint8)}
    write_store(embed, arrays, {"key": f"key {name}", "tile_store": str(tile), "tile_key": "t"})
    return {"id": name, "status": "done", "store": str(embed), "key": f"key {name}"}


def write_run(*rows: dict[str, Any]) -> None:
    """The catalog and the receipt of a run."""
    write_json(Path("results/receipts/embed/slide-labelled-0000of0001.0.json"), {"rows": list(rows)})
    lines = ["image\tstatus\tstore", *(f"{row['id']}\t{row['status']}\t{row.get('store', '')}" for row in rows)]
    Path("results/catalog.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which two slides were embedded and a third failed."""
    monkeypatch.chdir(tmp_path)
    write_run(
        write_slide_stores("a/1.svs"),
        write_slide_stores("a/2.0.svs", VALUES.astype(np.float32)),
        {"id": "a/3.svs", "status": "failed"},
    )
    return tmp_path


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_h5_file_is_as_clam_and_trident_write_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "out"]) == 0
    assert files_below(work / "out") == ["a/1.h5", "a/2.0.h5"]
    with h5py.File("out/a/1.h5") as file:
        assert sorted(file) == ["coords", "features"]
        assert (file["features"].dtype, file["coords"].dtype) == (np.float16, np.int64)
        np.testing.assert_array_equal(file["features"][()], VALUES)
        assert file["coords"][()].tolist() == LEVEL0
        assert dict(file["coords"].attrs) == {
            "patch_size_level0": 560,
            "level0_width": 5000,
            "level0_height": 4000,
            "unit": "level0_pixels",
        }
        assert file["features"].chunks == (3, 3)  # all rows: not one chunk each
    printed = capsys.readouterr().out
    assert "written: a/1.svs: 3 × 3, coordinates in level0_pixels: out/a/1.h5\n" in printed
    assert printed.endswith("2 written\n")


def test_rows_are_read_together_and_not_all_at_once(tmp_path: Path) -> None:
    values = np.zeros((5000, 1000), np.float16)  # 2000 bytes a row: 524 in 1 MiB
    write_export(tmp_path / "1.h5", Export(values, None, ""))
    with h5py.File(tmp_path / "1.h5") as file:
        assert file["features"].chunks == (524, 1000)
        assert list(file) == ["features"]


def test_a_pt_file_is_a_tensor(work: Path) -> None:
    assert main(["export", "out", "--format", "pt"]) == 0
    found = torch.load("out/a/1.pt", weights_only=True)
    assert torch.equal(found, torch.from_numpy(VALUES))
    assert torch.load("out/a/2.0.pt", weights_only=True).dtype == torch.float32


def test_an_npz_file_has_features_and_coords(work: Path) -> None:
    assert main(["export", "out", "--format", "npz"]) == 0
    with np.load("out/a/1.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["features"], VALUES)
        assert file["coords"].tolist() == LEVEL0


@pytest.mark.filterwarnings("error")
def test_a_zarr_folder_is_read_by_anndata(work: Path) -> None:
    assert main(["export", "out", "--format", "zarr"]) == 0
    found = anndata.read_zarr("out/a/1.zarr")
    assert found.X.dtype == np.float16
    np.testing.assert_array_equal(found.X, VALUES)
    assert found.obsm["spatial"].tolist() == LEVEL0
    assert (list(found.obs_names), list(found.var_names)) == (["0", "1", "2"], ["0", "1", "2"])
    assert (list(found.obs), list(found.var), dict(found.uns)) == ([], [], {})


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("origins", "unit", "size"),
    [
        (np.array(LEVEL0, np.int32), "level0_pixels", (560.0, 560.0)),
        (np.array([[0.0, 256.5], [256.25, 0.1], [7.0, 1e-9]]), "micrometres", (256.25, 256.25)),
        (np.array([[0, 0, 3], [0, 0, 4], [1, 0, 4]], np.int32), "", ()),
        (None, "", ()),
    ],
    ids=["pixels", "micrometres", "unit not known", "none"],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_written_is_read_back_the_same(
    tmp_path: Path, format: str, origins: Any, unit: str, size: tuple[float, ...], dtype: type
) -> None:
    values = VALUES.astype(dtype)
    values[0, 0] = -0.0
    write_export(tmp_path / f"1.{format}", Export(values, origins, unit, size))
    found = read_features(tmp_path / f"1.{format}")
    assert found.embeddings.dtype == dtype
    assert found.embeddings.tobytes() == values.tobytes()
    assert found.notes == ()
    if format == "pt" or origins is None:  # a bare tensor says nothing of places
        assert found.origins is None
        return
    assert found.origins is not None and found.origins.dtype == origins.dtype
    np.testing.assert_array_equal(found.origins, origins)
    assert (found.origins_unit, found.size) == (unit, size)


@pytest.mark.parametrize("format", FORMATS)
def test_stores_go_out_and_come_in_again_the_same(work: Path, format: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "out", "--format", format]) == 0
    assert main(["import", "out", "in"]) == 0
    first = read_features(work / "in/a/1.zarr")
    assert first.embeddings.tobytes() == VALUES.tobytes()
    assert (first.origins.tolist() if first.origins is not None else None) == (None if format == "pt" else LEVEL0)
    assert first.origins_unit == ("" if format == "pt" else "level0_pixels")
    assert first.size == (() if format == "pt" else (560.0, 560.0))
    assert "done: a/1." in capsys.readouterr().out


def test_a_series_goes_out_with_the_numbers_of_its_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slices = np.array([[0, 0, 0], [0, 0, 1]], np.int32)
    write_store(
        Path("t.zarr"), {"origins": slices}, {"key": "t", "size": [512, 512, 1], "properties": {"z_mm": [0, 5]}}
    )
    told = {"key": "e", "tile_store": "t.zarr", "tile_key": "t"}
    write_store(Path("e.zarr"), {"embeddings": VALUES[:2], "origins": slices}, told)
    write_run({"id": "ct/1.2.840.4", "status": "done", "store": "e.zarr", "key": "e"})
    assert main(["export", "out"]) == 0
    assert files_below(tmp_path / "out") == ["ct/1.2.840.4.h5"]  # no suffix: the name of a folder
    found = read_features(tmp_path / "out/ct/1.2.840.4.h5")
    assert found.origins is not None and found.origins.tolist() == slices.tolist()
    assert (found.origins_unit, found.size) == ("", ())


def test_nothing_is_overwritten(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out/a").mkdir(parents=True)
    Path("out/a/1.h5").write_bytes(b"mine")
    assert main(["export", "out"]) == 0
    assert Path("out/a/1.h5").read_bytes() == b"mine"
    printed = capsys.readouterr().out
    assert "there already: a/1.svs: out/a/1.h5 is not overwritten\n" in printed
    assert printed.endswith("1 there already, 1 written\n")
    with pytest.raises(PipelineError, match="exists already: it stays as it is"):
        write_export(work / "out/a/1.h5", Export(VALUES, None, ""))


def test_images_that_differ_in_their_suffix_alone_keep_it(work: Path) -> None:
    write_run(write_slide_stores("b/1.svs"), write_slide_stores("b/1.tiff"), write_slide_stores("b/2.tiff"))
    assert main(["export", "out"]) == 0
    assert files_below(work / "out") == ["b/1.svs.h5", "b/1.tiff.h5", "b/2.h5"]


def test_no_image_takes_the_name_of_another(work: Path) -> None:
    rows = [write_slide_stores(name, VALUES + number) for number, name in enumerate(("1.svs", "1.tiff", "1.svs.svs"))]
    write_run(*rows)
    assert main(["export", "out"]) == 0
    assert files_below(work / "out") == ["1.svs.h5", "1.svs.svs.h5", "1.tiff.h5"]
    np.testing.assert_array_equal(read_features(work / "out/1.svs.h5").embeddings, VALUES)


@pytest.mark.parametrize("command", ["import in", "export"])
@pytest.mark.parametrize(
    ("dest", "said"),
    [
        ("results/x", "lies in results, which holds what runs made: name a folder elsewhere"),
        ("file", "is a file: name a folder to write into"),
    ],
)
def test_a_folder_that_cannot_be_written_into_is_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], command: str, dest: str, said: str
) -> None:
    Path("in").mkdir()
    Path("file").write_bytes(b"mine")
    assert main([*command.split(), dest]) == 1
    assert capsys.readouterr().err == f"error: {dest}: {said}\n"
    assert not Path("results/x").exists()


def test_a_name_that_is_too_long_is_one_line_and_the_others_go_on(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x" * 251
    write_run(write_slide_stores(f"{name}.svs"), write_slide_stores("b.svs"))
    assert main(["export", "out", "--format", "zarr"]) == 1
    assert f"failed: {name}.svs: its name is too long for a file" in capsys.readouterr().out
    assert {path.name for path in Path("out").iterdir()} == {"b.zarr"}
    Path("in").mkdir()
    for each in (name, "b"):
        np.save(f"in/{each}.npy", VALUES)
    assert main(["import", "in", "dest"]) == 0
    assert rows_of_import(Path("dest"))[f"{name}.npy"]["reason"].startswith("its name is too long")
    assert rows_of_import(Path("dest"))["b.npy"]["status"] == "done"


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path, format: str) -> None:
    """As a quota is; in a process of its own, which HDF5 has brought down."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from pipeline.feature_export import Export, write_export
values = np.random.default_rng(0).random((5000, 50), np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_export(Path(sys.argv[1]), Export(values, None, ""))
except OSError as error:
    print(error.errno, error.filename)
"""
    command = [sys.executable, "-c", code, str(tmp_path / f"1.{format}")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout == f"{errno.EFBIG} {tmp_path}\n"
    assert list(tmp_path.iterdir()) == []


def test_images_are_chosen_by_their_ids(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "out", "--images", "a/2.0.svs"]) == 0
    assert files_below(work / "out") == ["a/2.0.h5"]
    assert main(["export", "out", "--images", "a/3.svs"]) == 1
    assert capsys.readouterr().err == (
        "error: a/3.svs: has no embeddings: see results/catalog.tsv for the images that have\n"
    )


@pytest.mark.parametrize("image", ["../1", "a/../../1", "/etc/1", "", "..", "link/1", "a\0b"])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, image: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path)
    with pytest.raises(PipelineError, match="leads out of the folder of the export"):
        export_path(tmp_path / "out", image, ".h5")
    assert export_path(tmp_path / "out", "a/b.c", ".h5") == tmp_path / "out/a/b.c.h5"


def test_a_damaged_store_is_one_line_and_the_others_go_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("results/embed/s/a/1.svs/e.zarr/zarr.json").write_text("{}")
    assert main(["export", "out"]) == 1
    assert files_below(work / "out") == ["a/2.0.h5"]
    printed = capsys.readouterr()
    assert "failed: a/1.svs: results/embed/s/a/1.svs/e.zarr: cannot be read" in printed.out
    assert printed.err == "error: export: 1 of 2 images were not written: see above\n"


def test_after_a_retry_the_next_run_comes_first(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next(Path("results/receipts/embed").iterdir()).unlink()
    assert main(["export", "out"]) == 1
    assert "failed: a/1.svs: the receipt of its shard is gone: run snakemake again\n" in capsys.readouterr().out


def test_coordinates_need_the_store_of_the_tiles(work: Path) -> None:
    row = write_slide_stores("b/1.svs")
    Path("results/tile/s/b/1.svs/t.zarr/zarr.json").unlink()
    with pytest.raises(StoreError):
        read_export(Store(Path(row["store"]), row["key"]))


def rows_of_import(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "import.tsv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file, delimiter="\t")}


def test_good_files_are_imported_and_bad_ones_are_rows(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/sub").mkdir(parents=True)
    np.save("in/sub/good.npy", VALUES)
    np.save("in/bad.npy", np.full((1, 2), np.nan))
    Path("in/notes.docx").write_bytes(b"words")
    assert main(["import", "in", "dest"]) == 0
    printed = capsys.readouterr().out
    assert "done: sub/good.npy: 3 × 3\n" in printed
    assert "failed: bad.npy: 1 of its 1 rows hold NaN" in printed
    assert printed.endswith("1 done, 1 failed, 1 ignored\n")
    rows = rows_of_import(Path("dest"))
    assert rows["sub/good.npy"] == {
        "image": "sub/good.npy", "status": "done", "reason": "", "instances": "3", "features": "3", "notes": "",
    }  # fmt: skip
    assert rows["bad.npy"]["status"] == "failed"
    assert rows["notes.docx"]["reason"] == "is no feature file"
    np.testing.assert_array_equal(read_features(Path("dest/sub/good.zarr")).embeddings, VALUES)
    inode = Path("dest/sub/good.zarr").stat().st_ino
    assert main(["import", "in", "dest"]) == 0  # once more: what is there is found
    assert rows_of_import(Path("dest")) == rows
    assert Path("dest/sub/good.zarr").stat().st_ino == inode
    np.save("in/sub/good.npy", VALUES + 1)
    assert main(["import", "in", "dest"]) == 1  # nothing could be read: the name is taken
    assert "another store has its name in DEST, and stays" in rows_of_import(Path("dest"))["sub/good.npy"]["reason"]
    np.testing.assert_array_equal(read_features(Path("dest/sub/good.zarr")).embeddings, VALUES)


def test_the_files_of_a_folder_are_imported_as_one_image(work: Path) -> None:
    Path("in/patient").mkdir(parents=True)
    np.save("in/patient/b.npy", VALUES[:1])
    np.save("in/patient/a.npy", VALUES[1:])
    assert main(["import", "in", "dest", "--of", "folder"]) == 0
    np.testing.assert_array_equal(read_features(Path("dest/patient.zarr")).embeddings, VALUES[[1, 2, 0]])
    assert rows_of_import(Path("dest"))["patient"]["notes"] == "2 files"


@pytest.mark.parametrize(
    ("source", "dest", "said"),
    [
        ("gone", "dest", "error: gone: is no folder: name the one that holds the feature files\n"),
        (
            "in",
            "in/dest",
            "error: in/dest: lies in in, where its stores would be read again: name a folder elsewhere\n",
        ),
        ("in", "dest", "error: in: none of its 0 images could be read: see dest/import.tsv\n"),
    ],
)
def test_an_import_that_cannot_be_is_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], source: str, dest: str, said: str
) -> None:
    Path("in").mkdir()
    assert main(["import", source, dest]) == 1
    assert capsys.readouterr().err == said
