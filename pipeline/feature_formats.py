"""Where the formats of embeddings keep what: each reader gives the arrays as they stand in the file.

A reader raises ImageError for what it understands and refuses, and whatever its library raises for what it does not.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.store import Store

NAMES = ("features", "feats", "embeddings")
"""What embeddings are called: by CLAM and TRIDENT, by STAMP, by others."""

MOST_RATIO = 64
"""ASSUME: compressed embeddings, also those of a network full of zeros, are more than a 64th of their size."""

UNKNOWN = "unknown"
"""Unit of coordinates that were written without knowing it."""


@dataclass(frozen=True, eq=False)
class Raw:
    """The arrays of a file, not looked at yet; the rest as in `Features`."""

    embeddings: NDArray[Any]
    origins: NDArray[Any] | None = None
    unit: str = ""
    size: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def read_h5(path: Path) -> Raw:
    """CLAM, TRIDENT: `features`, `coords` in pixels of level 0; STAMP: `feats`, `coords` in µm, attribute `unit`."""
    import h5py

    # locking: files lie on network disks where nobody may lock, and nobody writes them any more
    with h5py.File(path, "r", locking=False) as file:
        if any(not isinstance(file.get(name, getlink=True), h5py.HardLink) for name in file):
            raise ImageError("holds links, which are not followed: write the arrays into the file itself")
        arrays = {name: file[name] for name in file if isinstance(file[name], h5py.Dataset)}
        name = _choose({name: array.ndim for name, array in arrays.items() if array.dtype.kind == "f"}, set(arrays))
        coords = arrays.get("coords")
        attributes = {**dict(file.attrs), **(dict(coords.attrs) if coords is not None else {})}
        unit, size = _unit_and_size(attributes, default="" if name == "feats" else "level0_pixels")
        bytes_here = path.stat().st_size
        embeddings = _h5_values(arrays[name], bytes_here)
        origins = None if coords is None else _h5_values(coords, bytes_here)
        return Raw(embeddings, origins, unit, size)


def _h5_values(array: Any, bytes_here: int) -> NDArray[Any]:
    """All of a dataset, if the file holds all of it itself."""
    if array.is_virtual or array.external:
        raise ImageError("holds arrays whose numbers lie in other files, which are not followed: write them into it")
    _check_type(array.dtype)
    filters = array.id.get_create_plist().get_nfilters()
    chunks = prod(-(-side // part) for side, part in zip(array.shape, array.chunks or array.shape, strict=True) if part)
    # What was never written is read as zeros.
    lacking = array.chunks and array.size and array.id.get_num_chunks() < chunks
    if lacking or (not filters and array.id.get_storage_size() < array.nbytes):
        raise ImageError("lacks numbers that it should hold: it was not written to its end")
    _check_claim(array.nbytes, bytes_here * (MOST_RATIO if filters else 1))
    return np.asarray(array[()])


def _unit_and_size(attributes: Mapping[str, Any], default: str) -> tuple[str, tuple[float, ...]]:
    """The unit of coordinates and the size of a tile in it, by the attributes of CLAM, TRIDENT, STAMP and ours."""

    def number(*names: str) -> float:
        found = [np.asarray(attributes[name]) for name in names if name in attributes]
        return float(found[0].ravel()[0]) if found and found[0].size and found[0].dtype.kind in "iuf" else 0.0

    stated = attributes.get("unit", "")
    stated = stated.decode("ascii", "replace") if isinstance(stated, bytes) else str(stated)
    if stated in ("um", "µm", "micrometres"):
        unit, side = "micrometres", number("tile_size_um", "tile_size")
    elif stated in ("", "level0_pixels"):
        # ASSUME: CLAM's patch_size is of patch_level, and of level 0 when that is 0.
        at_level_0 = "patch_level" in attributes and not number("patch_level")
        unit, side = stated or default, number("patch_size_level0") or (number("patch_size") if at_level_0 else 0.0)
    else:
        return "", ()
    return unit, (side, side) if unit and side > 0 else ()


def read_pt(path: Path) -> Raw:
    """CLAM, HIPT: a tensor; or a dictionary of tensors, named as in h5 files."""
    import torch

    bytes_here = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_claim(sum(entry.file_size for entry in archive.infolist()), bytes_here)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    tensors = loaded if isinstance(loaded, dict) else {NAMES[0]: loaded}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    dense = {name: value for name, value in tensors.items() if value.layout == torch.strided and not value.is_quantized}
    numbers = {name: value.ndim for name, value in dense.items() if value.is_floating_point()}
    name = _choose(numbers, set(tensors))

    if name not in dense:
        raise ImageError("its features are sparse or quantized: save them as float16 or float32")

    def is_small(tensor: torch.Tensor) -> bool:
        """Of a kind that numpy does not have, and float32 holds exactly: bfloat16 and those of 8 bits."""
        return tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)

    def values(tensor: torch.Tensor) -> NDArray[Any]:
        _check_claim(tensor.numel() * tensor.element_size(), bytes_here)
        return (tensor.float() if is_small(tensor) else tensor).detach().numpy()

    kind = str(dense[name].dtype).removeprefix("torch.")
    notes = (f"{kind} became float32",) if is_small(dense[name]) else ()
    return Raw(values(dense[name]), values(dense["coords"]) if "coords" in dense else None, notes=notes)


def read_npy(path: Path) -> Raw:
    """One array; by a map of the file, because that is refused where the file is too short."""
    return Raw(np.array(np.load(path, mmap_mode="r", allow_pickle=False)))


def read_npz(path: Path) -> Raw:
    """Arrays named as in h5 files; `coords`, `unit` and `tile_size` as our export writes them."""
    with zipfile.ZipFile(path) as archive:
        _check_claim(sum(entry.file_size for entry in archive.infolist()), path.stat().st_size * MOST_RATIO)
        heads = {entry.filename.removesuffix(".npy"): _npy_head(archive, entry) for entry in archive.infolist()}
    floats = {name: len(shape) for name, (shape, dtype) in heads.items() if dtype.kind == "f"}
    name = _choose({name: axes for name, axes in floats.items() if name != "coords"}, set(heads))
    with np.load(path, allow_pickle=False) as file:
        attributes: dict[str, Any] = {key: file[key] for key in ("unit", "tile_size") if key in heads}
        unit, size = _unit_and_size(attributes, default="")
        if unit == "level0_pixels" and "tile_size" in attributes:
            size = tuple(attributes["tile_size"].astype(float).ravel().tolist())
        return Raw(file[name], file["coords"] if "coords" in heads else None, unit, size)


def _npy_head(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    """Shape and type of an array of an archive, if its numbers are as many as it says."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if not dtype.hasobject:  # objects are refused when they are read
            _check_claim(prod(shape) * dtype.itemsize, entry.file_size - file.tell())
    return shape, dtype


def read_zarr(path: Path) -> Raw:
    """An embedding store of ours, or AnnData: embeddings in `X`, coordinates in `obsm/spatial`."""
    import zarr

    group = zarr.open_group(path, mode="r")
    attributes = dict(group.attrs)
    if "schema" in attributes and "arrays" in attributes:
        return _read_store(path, group, attributes)
    if attributes.get("encoding-type") != "anndata":
        raise ImageError("is neither an embedding store nor AnnData: see docs/features.md for what is read")
    embeddings = _zarr_values(path, group, "X")
    if "obsm/spatial" not in group:
        return Raw(embeddings)
    spatial = _zarr_values(path, group, "obsm/spatial")
    stated = dict(group["obsm/spatial"].attrs)
    unit, _ = _unit_and_size({"unit": stated.get("unit", UNKNOWN)}, default="")
    size = np.asarray(stated.get("tile_size", ()), dtype=np.float64)
    return Raw(embeddings, spatial, unit, tuple(size.tolist()))


def _read_store(path: Path, group: Any, attributes: dict[str, Any]) -> Raw:
    for name in ("embeddings", "origins"):
        _check_claim(group[name].nbytes, _bytes_below(path / name))
    store = Store(path, str(attributes["key"]))
    embeddings, origins = store.read("embeddings"), store.read("origins")
    if origins.shape[1] == 1:  # the numbers of the rows, which stand for coordinates that nobody knew
        return Raw(embeddings)
    unit = str(attributes.get("origins_unit", ""))
    notes = () if "origins_unit" in attributes else ("coordinates are of the resolution the image was opened at",)
    size = tuple(float(side) for side in attributes.get("size", ())) if "origins_unit" in attributes else ()
    return Raw(embeddings, origins, unit, size, notes)


def _zarr_values(path: Path, group: Any, name: str) -> NDArray[Any]:
    """All of an array, if all of it is there and only compressed: a codec can also be one that runs a pickle."""
    import zarr
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise ImageError(f"its {name} is no dense array: store it densely")
    codecs = [*array.filters, *array.compressors, *([array.serializer] if array.serializer else [])]
    plain = (BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec)
    ids = {codec.codec_id for codec in codecs if hasattr(codec, "codec_id")}  # of Zarr v2
    others = [codec for codec in codecs if not hasattr(codec, "codec_id") and not isinstance(codec, plain)]
    _check_type(array.dtype)
    if others or ids - {"blosc", "gzip", "lz4", "zlib", "zstd"}:
        raise ImageError(f"its {name} is stored in a way that is not read: store plain numbers, compressed or not")
    if array.nchunks_initialized != array.nchunks:
        raise ImageError("lacks numbers that it should hold: it was not written to its end")
    _check_claim(array.nbytes, _bytes_below(path / name) * MOST_RATIO)
    return np.asarray(array[...])


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _choose(axes: Mapping[str, int], there: set[Any]) -> Any:
    """The name of the array that holds the features.

    Args:
        axes: of the arrays of floating point numbers, by name.
        there: the names of all arrays.
    """
    known = [name for name in NAMES if name in there]
    others = [] if known else [name for name, number in axes.items() if number in (2, 3) and name != "coords"]
    if len(known + others) > 1:
        raise ImageError(f"has {len(known + others)} arrays that could be the features: keep one of them")
    if not known + others:
        raise ImageError("has no array of floating point numbers that could be the features: is it another file?")
    return (known + others)[0]


def _check_type(dtype: "np.dtype[Any]") -> None:
    if dtype.kind not in "biuf":
        raise ImageError("its features or coordinates are no plain numbers: save them as float16 or float32")


def _check_claim(claimed: int, most: int) -> None:
    if claimed > most:
        raise ImageError("claims to hold more numbers than can be in it: is the file whole?")
