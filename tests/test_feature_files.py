"""Embeddings that exist already: what is read from each format, exactly, and what is refused, without its name."""

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas
import pytest
import torch
import zarr

from pipeline.errors import ImageError
from pipeline.feature_files import Features, content, read_features, read_folder
from pipeline.store import write_store

VALUES = np.array([[1.5, -2.0, 0.25], [0.0, 3.0, 65504.0]], np.float16)
COORDS = np.array([[0, 512], [512, 1024]], np.int64)


def write_h5(
    path: Path, attributes: dict[str, Any] | None = None, root: dict[str, Any] | None = None, **arrays: Any
) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        if "coords" in arrays:
            file["coords"].attrs.update(attributes or {})
        file.attrs.update(root or {})
    return path


def refusal(path: Path, read: Callable[[Path], Features] = read_features) -> str:
    with pytest.raises(ImageError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.stem not in message
    return message


def test_an_h5_file_of_clam_is_read(tmp_path: Path) -> None:
    found = read_features(write_h5(tmp_path / "Doe.h5", features=VALUES, coords=COORDS))
    assert found.embeddings.dtype == np.float16
    np.testing.assert_array_equal(found.embeddings, VALUES)
    assert found.origins is not None and found.origins.dtype == np.int32
    assert found.origins.tolist() == [[0, 512], [512, 1024]]
    assert (found.origins_unit, found.size, found.notes, found.rows) == ("level0_pixels", (), (), (2,))


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"patch_size": 256, "patch_level": 0}, (256.0, 256.0)),
        ({"patch_size": 256, "patch_level": 1}, ()),  # of another level: how large at level 0 is not said
        ({"patch_size": 256}, ()),
        ({"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20}, (512.0, 512.0)),
        ({"patch_size_level0": "a word"}, ()),
    ],
)
def test_the_size_of_a_tile_is_taken_where_it_is_of_level_0(
    tmp_path: Path, attributes: dict[str, Any], size: tuple[float, ...]
) -> None:
    assert read_features(write_h5(tmp_path / "1.h5", attributes, features=VALUES, coords=COORDS)).size == size


def test_an_h5_file_of_trident_with_a_leading_axis_is_read(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)[None]
    found = read_features(write_h5(tmp_path / "1.h5", {"patch_size_level0": 512}, features=values, coords=COORDS))
    assert found.embeddings.dtype == np.float32
    np.testing.assert_array_equal(found.embeddings, values[0])


def test_an_h5_file_of_stamp_is_read_in_micrometres(tmp_path: Path) -> None:
    coords = np.array([[0.0, 256.5], [256.25, 512.0]], np.float32)
    root = {"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224, "extractor": "Doe"}
    found = read_features(write_h5(tmp_path / "1.h5", root=root, feats=VALUES, coords=coords))
    assert found.origins is not None and found.origins.dtype == np.float64
    assert found.origins.tolist() == [[0.0, 256.5], [256.25, 512.0]]
    assert (found.origins_unit, found.size) == ("micrometres", (256.0, 256.0))
    before = read_features(write_h5(tmp_path / "2.h5", feats=VALUES, coords=COORDS))  # of before it stated a unit
    assert (before.origins_unit, before.size) == ("", ())


def test_compressed_and_chunked_h5_arrays_are_read(tmp_path: Path) -> None:
    values = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    with h5py.File(tmp_path / "1.hdf5", "w") as file:
        file.create_dataset("features", data=values, chunks=(1, 3), compression="gzip")
    np.testing.assert_array_equal(read_features(tmp_path / "1.hdf5").embeddings, values)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", ["features", "feats", "embeddings", "anything", ""])
def test_tensors_and_dictionaries_of_tensors_are_read(tmp_path: Path, name: str, zipped: bool) -> None:
    tensor = torch.from_numpy(VALUES)
    other = {"coords": torch.tensor(COORDS), "numbers": torch.arange(2)}
    torch.save({name: tensor, **other} if name else tensor, tmp_path / "1.pt", _use_new_zipfile_serialization=zipped)
    found = read_features(tmp_path / "1.pt")
    np.testing.assert_array_equal(found.embeddings, VALUES)
    assert found.origins_unit == ""
    assert (found.origins is None) if not name else (found.origins.tolist() == COORDS.tolist())  # type: ignore[union-attr]


def test_bfloat16_becomes_float32_exactly(tmp_path: Path) -> None:
    """1 + 2^-7 is the neighbour of 1 in bfloat16; 3e38 would be too much for float16."""
    torch.save(torch.tensor([[1.0078125, 3.0e38]], dtype=torch.bfloat16), tmp_path / "1.pth")
    found = read_features(tmp_path / "1.pth")
    assert found.embeddings.dtype == np.float32
    assert found.embeddings[0, 0] == 1.0078125
    assert found.embeddings[0, 1] == pytest.approx(3.0e38, rel=2**-8)
    assert found.notes == ("bfloat16 became float32",)


def test_floats_of_8_bits_become_float32_and_others_are_refused(tmp_path: Path) -> None:
    torch.save(torch.tensor([[1.5, -448.0]]).to(torch.float8_e4m3fn), tmp_path / "1.pt")
    found = read_features(tmp_path / "1.pt")
    assert (found.embeddings.dtype, found.embeddings.tolist()) == (np.float32, [[1.5, -448.0]])
    assert found.notes == ("float8_e4m3fn became float32",)
    torch.save({"features": torch.ones(2, 3).to_sparse()}, tmp_path / "Doe.pt")
    assert "its features are sparse or quantized" in refusal(tmp_path / "Doe.pt")


def test_float64_becomes_float32_and_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.array([[0.1, 2.0]]))
    found = read_features(tmp_path / "1.npy")
    assert found.embeddings.tolist() == [[0.10000000149011612, 2.0]]  # 0.1 as float32
    assert found.notes == ("float64 became float32",)


def test_other_byte_orders_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.array([[1.5, 2.5], [3.5, 4.5]], ">f4", order="F"))
    found = read_features(tmp_path / "1.npy").embeddings
    assert found.dtype.isnative and found.flags.c_contiguous
    assert found.tolist() == [[1.5, 2.5], [3.5, 4.5]]


@pytest.mark.parametrize("name", ["features", "feats", "embeddings", "arr_0"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_are_read(tmp_path: Path, name: str, save: Callable[..., None]) -> None:
    save(tmp_path / "1.npz", **{name: VALUES, "coords": COORDS, "names": np.array(["a", "b"])})
    found = read_features(tmp_path / "1.npz")
    np.testing.assert_array_equal(found.embeddings, VALUES)
    assert found.origins is not None and found.origins.tolist() == COORDS.tolist()
    assert found.origins_unit == ""


@pytest.mark.parametrize(
    ("text", "rows", "origins"),
    [
        ("1,2.5\n-3,4e1\n", [[1, 2.5], [-3, 40]], None),
        ("\ufeff1\t2\n3\t4\n", [[1, 2], [3, 4]], None),
        ("a;b\r\n1;2\r\n", [[1, 2]], None),
        ("f0,x,y,f1\n1,7,8,2\n3,9,8,4\n", [[1, 2], [3, 4]], [[7, 8], [9, 8]]),
        ("Y,X,f\n8,7,1\n", [[1]], [[7, 8]]),
        ("x,f\n7,1\n", [[7, 1]], None),  # one alone is a number like others
        ("x,z,y,y2\n1,2,3,4\n", [[2, 4]], [[1, 3]]),
        (",f0,f1\n0,5,6\n1,7,8\n", [[5, 6], [7, 8]], None),  # pandas' numbers of rows
        ("0,1,2\n5,6,7\n", [[5, 6, 7]], None),  # pandas' numbers of columns
    ],
)
def test_tables_of_numbers_are_read(tmp_path: Path, text: str, rows: list[Any], origins: list[Any] | None) -> None:
    (tmp_path / "1.csv").write_text(text, newline="")
    found = read_features(tmp_path / "1.csv")
    assert found.embeddings.dtype == np.float32
    assert found.embeddings.tolist() == rows
    assert (found.origins.tolist() if found.origins is not None else None) == origins
    assert found.notes[0] == "numbers of a table became float32"


def test_what_is_left_out_of_a_table_is_noted(tmp_path: Path) -> None:
    pandas.DataFrame({"a": [1.0], "b": [2.0]}).to_csv(tmp_path / "1.csv")
    assert (
        "a column without a name is left out: it is taken for the numbers of the rows"
        in read_features(tmp_path / "1.csv").notes
    )
    pandas.DataFrame([[1.0, 2.0]]).to_csv(tmp_path / "2.csv", index=False)
    assert read_features(tmp_path / "2.csv").embeddings.tolist() == [[1, 2]]
    assert read_features(tmp_path / "2.csv").notes[1].startswith("the first line, 0, 1, 2 and so on, is taken for")


def test_a_table_with_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Doe.csv").write_text("f0,Bag_Label\n1,0\n")
    assert "a column called a label, which features must not hold" in refusal(tmp_path / "Doe.csv")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("y,f0,f1", "a column called a label"),
        ("f0,f1,Target", "a column called a label"),
        ("index,f0,f1", "1 of its columns are called otherwise than features"),
        ("tile,a,b", "1 of its columns are called otherwise than features"),
        ("f0,f1,f2,x_coord,y_coord", "2 of its columns are called otherwise than features"),
        ("x,y,0,1,2,level", "1 of its columns are called otherwise than features"),
        ("1.5,,2", "its first line holds names and numbers: is a number lacking there?"),
    ],
)
def test_columns_that_are_no_features_are_refused(tmp_path: Path, header: str, said: str) -> None:
    numbers = ",".join(str(number + 0.5) for number in range(header.count(",") + 1))
    (tmp_path / "Doe.csv").write_text(f"{header}\n{numbers}\n")
    assert said in refusal(tmp_path / "Doe.csv")


def test_names_of_many_kinds_may_be_those_of_features(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("Unnamed: 0,area,mean_red,mean_blue\n0,5,6,7\n1,8,9,10\n")
    assert read_features(tmp_path / "1.csv").embeddings.tolist() == [[5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ([[0, 1, 2]], "its first column counts the rows"),
        ([[1, 2, 3]], "its first column counts the rows"),
        ([[16, 16, 16], [40, 40, 41], [7, 8, 7]], "its first three columns look like a level and two coordinates"),
        ([[16, 16, 16], [40, 40, 41], [7, 7, 7]], ""),  # one place twice
        ([[16, 16, 15], [40, 40, 41], [7, 8, 7]], ""),  # two levels
        ([[16, 16, 16], [40, 40, 41], [7, 8, 7.5]], ""),
        ([[0, 2, 1]], ""),
    ],
)
def test_columns_in_front_that_are_no_features_are_refused(tmp_path: Path, columns: list[Any], said: str) -> None:
    features = [[0.25, 0.5, 0.75], [1.0, 2.0, 3.0]]
    values = np.array([*columns, *features], np.float32).T
    np.save(tmp_path / "Doe.npy", values)
    if said:
        assert said in refusal(tmp_path / "Doe.npy")
    else:
        np.testing.assert_array_equal(read_features(tmp_path / "Doe.npy").embeddings, values)


def test_whole_numbers_alone_are_features(tmp_path: Path) -> None:
    values = np.array([[5, 1, 2, 3], [5, 4, 2, 9], [5, 7, 8, 0]], np.float32)  # counts of cells, say
    np.save(tmp_path / "1.npy", values)
    np.testing.assert_array_equal(read_features(tmp_path / "1.npy").embeddings, values)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_anndata_is_read(tmp_path: Path, zarr_format: int) -> None:
    """Written by anndata itself."""
    data = anndata.AnnData(X=VALUES.astype(np.float32), obsm={"spatial": COORDS})
    anndata.settings.zarr_write_format = zarr_format
    try:
        data.write_zarr(tmp_path / "1.zarr")
    finally:
        anndata.settings.reset("zarr_write_format")
    found = read_features(tmp_path / "1.zarr")
    np.testing.assert_array_equal(found.embeddings, VALUES.astype(np.float32))
    assert found.origins is not None and found.origins.tolist() == COORDS.tolist()
    assert found.origins_unit == ""


def test_embedding_stores_are_read_back(tmp_path: Path) -> None:
    arrays = {"embeddings": VALUES, "origins": COORDS.astype(np.int32), "status": np.zeros(3, np.uint8)}
    write_store(tmp_path / "own.zarr", arrays, {"key": "k"})
    own = read_features(tmp_path / "own.zarr")
    np.testing.assert_array_equal(own.embeddings, VALUES)
    assert own.origins is not None and own.origins.tolist() == COORDS.tolist()
    assert (own.origins_unit, own.notes) == ("", ("coordinates are of the resolution the image was opened at",))
    told = {"key": "k", "origins_unit": "level0_pixels", "size": [512.0, 512.0]}
    write_store(tmp_path / "adopted.zarr", arrays, told)
    adopted = read_features(tmp_path / "adopted.zarr")
    assert (adopted.origins_unit, adopted.size, adopted.notes) == ("level0_pixels", (512.0, 512.0), ())
    write_store(tmp_path / "rows.zarr", {**arrays, "origins": np.array([[0], [1]], np.int32)}, told)
    assert read_features(tmp_path / "rows.zarr").origins is None


def test_a_damaged_embedding_store_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "Doe.zarr", {"embeddings": VALUES, "origins": COORDS.astype(np.int32)}, {"key": "k"})
    chunk = next(
        path for path in (tmp_path / "Doe.zarr/embeddings").rglob("*") if path.is_file() and path.name != "zarr.json"
    )
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    assert "cannot be read as Zarr" in refusal(tmp_path / "Doe.zarr")


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def pickled_tensors(path: Path, payload: Payload) -> None:
    torch.save({"features": torch.ones(2, 2), "more": payload}, path)


def pickled_tensors_of_before(path: Path, payload: Payload) -> None:
    torch.save({"features": torch.ones(2, 2), "more": payload}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def pickled_objects(path: Path, payload: Payload) -> None:
    np.save(path, np.array([[payload, payload]], dtype=object))


def pickled_archive(path: Path, payload: Payload) -> None:
    np.savez(path, features=np.array([[payload, payload]], dtype=object))


def pickling_codec(path: Path, payload: Payload) -> None:
    """numcodecs has a codec that unpickles what it decodes, and a file may name it."""
    pickling_filters(path, payload, compressor={"id": "pickle", "protocol": 5})


def pickling_filters(path: Path, payload: Payload, **description: object) -> None:
    """The codec where zarr does not look for it."""
    group = zarr.create_group(path, zarr_format=2, attributes={"encoding-type": "anndata"})
    group.create_array("X", data=np.ones((2, 2), np.float32), compressors=None)
    described = json.loads((path / "X/.zarray").read_text())
    filters = {"filters": [{"id": "delta", "dtype": "<f4"}, {"id": "pickle", "protocol": 5}]}
    (path / "X/.zarray").write_text(json.dumps({**described, **(description or filters)}))
    (path / "X/0.0").write_bytes(pickle.dumps(payload))


@pytest.mark.parametrize(
    ("suffix", "write", "said"),
    [
        (".pt", pickled_tensors, "holds something else than tensors, and a pickle is not run: save the tensor alone"),
        (".pt", pickled_tensors_of_before, "holds something else than tensors, and a pickle is not run"),
        (".pth", bare_pickle, "holds something else than tensors, and a pickle is not run"),
        (".npy", bare_pickle, "cannot be read as npy"),
        (".npy", pickled_objects, "cannot be read as npy"),
        (
            ".npz",
            pickled_archive,
            "no array of floating point numbers that could be the features|cannot be read as npz",
        ),
        (".zarr", pickling_codec, "is stored in a way that is not read|cannot be read as Zarr"),
        (".zarr", pickling_filters, "is stored in a way that is not read|cannot be read as Zarr"),
    ],
)
def test_a_pickle_is_refused_and_not_run(
    tmp_path: Path, suffix: str, write: Callable[[Path, Payload], None], said: str
) -> None:
    path = tmp_path / f"Doe{suffix}"
    write(path, Payload(tmp_path / "it was run"))
    assert any(part in refusal(path) for part in said.split("|"))
    assert not (tmp_path / "it was run").exists()


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "it was run")))
    assert (tmp_path / "it was run").is_dir()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.ones(3, np.float32), "its features have 1 axes, not 2 (instance, feature): save one row per tile"),
        (np.ones((2, 3, 4), np.float32), "its features have 3 axes, not 2"),
        (np.ones((0, 3), np.float32), "its features have 0 rows of 3 numbers"),
        (np.ones((3, 0), np.float32), "its features have 3 rows of 0 numbers"),
        (np.ones((2, 3), np.int64), "its features are int64, not floating point numbers"),
        (np.ones((2, 3), bool), "its features are bool, not floating point numbers"),
        (np.array([[1, 2], [np.nan, 1], [np.inf, 1]], np.float32), "2 of its 3 rows hold NaN, infinity"),
        (np.array([[1e300, 1]]), "1 of its 1 rows hold NaN, infinity or more than float32 takes"),
        (np.array([["a", "b"]]), "not floating point numbers|no plain numbers"),
        (np.array([[1 + 2j]]), "not floating point numbers|no plain numbers"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_what_is_no_embedding_is_refused(tmp_path: Path, values: Any, said: str, suffix: str) -> None:
    path = tmp_path / f"Doe{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".npz":
        np.savez(path, features=values)
    else:
        write_h5(path, features=values.astype(bytes) if values.dtype.kind == "U" else values)
    message = refusal(path)
    assert any(part in message for part in said.split("|"))


@pytest.mark.parametrize(
    ("coords", "said"),
    [
        (COORDS[:1], "has coordinates of 1 tiles and features of 2: bring both of one run"),
        (np.array([[5, 5], [5, 5]]), "1 of its 2 tiles have the coordinates of another one"),
        (np.array([[0.0, np.nan], [1, 1]]), "some of its coordinates are NaN or infinity"),
    ],
)
def test_coordinates_that_cannot_be_right_are_refused(tmp_path: Path, coords: Any, said: str) -> None:
    assert said in refusal(write_h5(tmp_path / "Doe.h5", features=VALUES, coords=coords))


@pytest.mark.parametrize("coords", [np.ones((2, 4)), np.array([b"a", b"b"]), np.ones(())])
def test_coordinates_of_another_kind_are_left_out_with_a_note(tmp_path: Path, coords: Any) -> None:
    np.savez(tmp_path / "1.npz", features=VALUES, coords=coords)
    found = read_features(tmp_path / "1.npz")
    assert (found.origins, found.origins_unit, found.size) == (None, "", ())
    assert found.notes == ("coordinates are left out: they are not two or three numbers a tile",)


def test_several_arrays_that_could_be_the_features_are_refused(tmp_path: Path) -> None:
    said = "has 2 arrays that could be the features: keep one of them"
    assert said in refusal(write_h5(tmp_path / "Doe.h5", features=VALUES, feats=VALUES))
    np.savez(tmp_path / "Doe.npz", a=VALUES, b=VALUES)
    assert said in refusal(tmp_path / "Doe.npz")
    torch.save({"a": torch.ones(2, 2), "b": torch.ones(3, 2)}, tmp_path / "Doe.pt")
    assert said in refusal(tmp_path / "Doe.pt")


def test_a_file_without_features_is_refused(tmp_path: Path) -> None:
    said = "has no array of floating point numbers that could be the features"
    assert said in refusal(write_h5(tmp_path / "Doe.h5", coords=COORDS))  # CLAM's folder of patches
    torch.save([torch.ones(2, 2)], tmp_path / "Doe.pt")
    assert said in refusal(tmp_path / "Doe.pt")
    zarr.create_group(tmp_path / "Doe.zarr")
    assert "is neither an embedding store nor AnnData" in refusal(tmp_path / "Doe.zarr")


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".csv", ".zarr"])
@pytest.mark.parametrize("damage", ["empty", "rubbish", "cut"])
def test_empty_damaged_and_cut_files_are_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    path, whole = tmp_path / f"Doe{suffix}", np.arange(20_000, dtype=np.float32).reshape(200, 100)
    if suffix == ".zarr":
        path.mkdir()
        if damage == "cut":
            shutil.rmtree(path)
            anndata.AnnData(X=whole).write_zarr(path)
            shutil.rmtree(path / "X")
        elif damage == "rubbish":
            (path / "zarr.json").write_text("{")
        refusal(path)
        return
    if damage == "cut":
        writers: dict[str, Callable[[], object]] = {
            ".h5": lambda: write_h5(path, features=whole),
            ".hdf5": lambda: write_h5(path, features=whole),
            ".pt": lambda: torch.save(torch.from_numpy(whole), path),
            ".pth": lambda: torch.save(torch.from_numpy(whole), path, _use_new_zipfile_serialization=False),
            ".npy": lambda: np.save(path, whole),
            ".npz": lambda: np.savez(path, features=whole),
            ".csv": lambda: np.savetxt(path, whole, delimiter=",", fmt="%.1f"),
        }
        writers[suffix]()
        end = path.stat().st_size // 2
        path.write_bytes(path.read_bytes()[:end])
    else:
        path.write_bytes(b"" if damage == "empty" else b"\x93\x00 nothing of the kind \xff\n" * 40)
    message = refusal(path)
    said = ("cannot be read as", "its first line has", "holds something else than tensors")
    assert message.startswith("is empty: copy the file again" if damage == "empty" else said)


def head_that_does_not_end(path: Path) -> None:
    np.save(path, VALUES)
    path.write_bytes(path.read_bytes().replace(b"(2, 3)", b"(2, 3 "))


def cell_beyond_all_measure(path: Path) -> None:
    path.write_text("a" * 200_000 + ",b\n1,2\n")


def number_of_a_storage_that_is_not_there(path: Path) -> None:
    torch.save(torch.from_numpy(VALUES), path, _use_new_zipfile_serialization=False)
    before, key, after = re.split(rb"(\d{6,})(?!.*\d{6,})", path.read_bytes(), maxsplit=1, flags=re.DOTALL)
    path.write_bytes(before + b"x" * len(key) + after)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", head_that_does_not_end),  # tokenize.TokenError
        (".csv", cell_beyond_all_measure),  # csv.Error
        (".pth", number_of_a_storage_that_is_not_there),  # AssertionError
    ],
)
def test_errors_of_rare_kinds_are_those_of_one_image(
    tmp_path: Path, suffix: str, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / f"Doe{suffix}")
    assert refusal(tmp_path / f"Doe{suffix}").startswith("cannot be read as ")


def test_a_zarr_folder_holds_files_alone(tmp_path: Path) -> None:
    """A pipe would be waited for, and a change behind a link would not be noticed."""
    write_store(tmp_path / "Doe.zarr", {"embeddings": VALUES}, {"key": "k"})
    (tmp_path / "Doe.zarr/embeddings").rename(tmp_path / "elsewhere")
    (tmp_path / "Doe.zarr/embeddings").symlink_to(tmp_path / "elsewhere")
    said = "holds links or other things than files"
    with pytest.raises(ImageError, match=said):
        content([tmp_path / "Doe.zarr"])
    (tmp_path / "Doe.zarr/embeddings").unlink()
    os.mkfifo(tmp_path / "Doe.zarr/embeddings")
    with pytest.raises(ImageError, match=said):
        content([tmp_path / "Doe.zarr"])


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Doe.h5").symlink_to(tmp_path / "gone")
    assert "cannot be opened (No such file or directory)" in refusal(tmp_path / "Doe.h5")


def external_link(file: h5py.File, elsewhere: Path) -> None:
    file["features"] = h5py.ExternalLink(str(elsewhere), "/features")


def soft_link(file: h5py.File, elsewhere: Path) -> None:
    file["beyond"] = h5py.ExternalLink(str(elsewhere), "/")
    file["features"] = h5py.SoftLink("/beyond/features")


def virtual(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout(VALUES.shape, VALUES.dtype)
    layout[:] = h5py.VirtualSource(str(elsewhere), "features", VALUES.shape)
    file.create_virtual_dataset("features", layout)


def raw_numbers(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("features", (2, 2), np.float32, external=[(str(elsewhere), 0, 16)])


@pytest.mark.parametrize("link", [external_link, soft_link, virtual, raw_numbers])
def test_an_h5_file_leads_nowhere_else(tmp_path: Path, link: Callable[[h5py.File, Path], None]) -> None:
    elsewhere = write_h5(tmp_path / "elsewhere.h5", features=VALUES)
    with h5py.File(tmp_path / "Doe.h5", "w") as file:
        link(file, elsewhere)
    assert "not followed" in refusal(tmp_path / "Doe.h5")


def test_h5_arrays_that_were_not_written_to_their_end_are_refused(tmp_path: Path) -> None:
    """HDF5 gives zeros for what was never written."""
    with h5py.File(tmp_path / "Doe.h5", "w") as file:
        file.create_dataset("features", (100, 10), np.float32, chunks=(10, 10))[:50] = 1
    assert "lacks numbers that it should hold" in refusal(tmp_path / "Doe.h5")
    with h5py.File(tmp_path / "Doe.h5", "w") as file:
        file.create_dataset("features", (1_000_000, 1_000_000), np.float32)
    assert "lacks numbers that it should hold" in refusal(tmp_path / "Doe.h5")


def test_claims_beyond_the_size_of_a_file_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    said = "claims to hold more numbers than can be in it"
    torch.save(torch.zeros(1).expand(1_000_000, 1_000_000), tmp_path / "Doe.pt")
    assert said in refusal(tmp_path / "Doe.pt")
    np.savez_compressed(tmp_path / "Doe.npz", features=np.zeros((2000, 2000), np.float32))
    assert said in refusal(tmp_path / "Doe.npz")
    with h5py.File(tmp_path / "Doe.h5", "w") as file:
        file.create_dataset(
            "features", data=np.zeros((2000, 2000), np.float32), compression="gzip", chunks=(2000, 2000)
        )
    assert said in refusal(tmp_path / "Doe.h5")
    group = zarr.create_group(tmp_path / "Doe.zarr", zarr_format=2, attributes={"encoding-type": "anndata"})
    group.create_array(
        "X", data=np.zeros((2000, 2000), np.float32), chunks=(2000, 2000), config={"write_empty_chunks": True}
    )
    assert said in refusal(tmp_path / "Doe.zarr")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    header = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "2 Doe.npz", "w") as archive:
        archive.writestr("features.npy", header + bytes(64))
    assert said in refusal(tmp_path / "2 Doe.npz")
    (tmp_path / "Doe.npy").write_bytes(header + bytes(64))
    assert "cannot be read as npy" in refusal(tmp_path / "Doe.npy")


def test_a_zarr_array_that_lacks_chunks_is_refused(tmp_path: Path) -> None:
    anndata.AnnData(X=np.ones((4, 2), np.float32)).write_zarr(tmp_path / "Doe.zarr", chunks=(2, 2))
    (tmp_path / "Doe.zarr/X/1.0").unlink()
    assert "lacks numbers that it should hold" in refusal(tmp_path / "Doe.zarr")


def test_the_files_of_a_folder_are_one_image_in_the_order_of_their_names(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", np.array([[3, 4]], np.float32))
    torch.save(torch.tensor([[5, 6], [7, 8]], dtype=torch.float16), tmp_path / "c.pt")
    write_h5(tmp_path / "a.h5", features=np.array([[1, 2]], np.float16), coords=np.array([[0, 0]]))
    found = read_folder([tmp_path / name for name in ("c.pt", "a.h5", "b.npy")])
    assert found.embeddings.dtype == np.float32
    assert found.embeddings.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert found.rows == (1, 1, 2)
    assert found.origins is None
    assert found.notes == ("3 files", "coordinates are left out: those of several files are of several pictures")
    one = read_folder([tmp_path / "a.h5"])
    assert one.origins is not None and one.origins.tolist() == [[0, 0]]


def test_files_of_a_folder_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "Doe.npy", np.ones((1, 2), np.float32))
    np.save(tmp_path / "Doe 2.npy", np.ones((1, 3), np.float32))
    files = sorted(tmp_path.iterdir())
    assert "its files have embeddings of widths [2, 3]" in refusal(tmp_path / "Doe.npy", lambda _: read_folder(files))
    (tmp_path / "Doe 3.npy").write_bytes(b"")
    files = sorted(tmp_path.iterdir())
    assert refusal(tmp_path / "Doe.npy", lambda _: read_folder(files)) == "file 2 of 3: is empty: copy the file again"


def test_the_sum_of_a_file_is_its_bytes_and_of_a_folder_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"abc")
    # the example of FIPS 180-2
    assert content([tmp_path / "a.csv"]) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    write_store(tmp_path / "a.zarr", {"embeddings": VALUES}, {"key": "k"})
    first = content([tmp_path / "a.zarr"])
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert content([tmp_path / "b.zarr"]) == first
    (tmp_path / "b.zarr/zarr.json").write_bytes(b"{}")
    assert content([tmp_path / "b.zarr"]) != first
    both = [tmp_path / "a.csv", tmp_path / "a.zarr"]
    assert content(both) == content(both[::-1]) != first
    with pytest.raises(ImageError, match="cannot be opened"):
        content([tmp_path / "gone.h5"])


def test_all_bags_of_kidney_slides_are_read(shared_data: Path) -> None:
    files = sorted((shared_data / "mil_wsi").rglob("*.pt"))
    assert len(files) == 270
    for path in files[::9]:
        found = read_features(path)
        reference = torch.load(path, weights_only=True)
        assert (found.embeddings.shape[1], found.embeddings.dtype, found.notes) == (192, np.float32, ())
        assert torch.equal(torch.from_numpy(found.embeddings), reference)


def test_a_table_of_many_bags_is_refused(shared_data: Path) -> None:
    """Its names of scans are no numbers, and its labels no features."""
    for path in (shared_data / "mil_ct").rglob("rsna_test_*.csv"):
        assert "a column called a label" in refusal(path)


def test_a_table_of_tabs_is_read(shared_data: Path) -> None:
    path = shared_data / "mil_classic/pevnak__MIProblems/Musk1/data.csv"
    np.testing.assert_array_equal(read_features(path).embeddings, np.genfromtxt(path, delimiter="\t", dtype=np.float32))
