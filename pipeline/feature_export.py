"""Writes embeddings as files that other tools read: HDF5 like CLAM and TRIDENT, PyTorch, npz, and Zarr like AnnData.

A file appears whole or not at all, and never takes the place of another one.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.feature_formats import UNKNOWN
from pipeline.store import DISK_FULL, Store, new_folder, write_bytes

Format = Literal["h5", "pt", "npz", "zarr"]

CHUNK_BYTES = 1 << 20
"""Of rows that are read together: a chunk per row makes reading eight times as slow."""


@dataclass(frozen=True, eq=False)
class Export:
    """What is written of one image."""

    embeddings: NDArray[Any]
    """(instance, feature)"""
    origins: NDArray[Any] | None
    """(instance, axis), x first; None: nobody knew them."""
    unit: str
    """Of origins and size: `level0_pixels` or `micrometres`; empty: not known, or of CT, pixels and slices."""
    size: tuple[float, ...] = ()
    """Of a tile, x first; empty: not known."""
    level0_extent: tuple[int, ...] = ()
    """Width and height of the slide in level-0 pixels; empty: not known."""


def read_export(store: Store) -> Export:
    """What an embedding store holds, with coordinates in pixels of level 0 where the store of its tiles tells them.

    Raises:
        StoreError: it, or the store of its tiles, is damaged or gone.
    """
    embeddings, origins, attributes = store.read("embeddings"), store.read("origins"), store.attributes
    if "tile_store" not in attributes:
        if origins.shape[1] == 1:
            return Export(embeddings, None, "")
        return Export(embeddings, origins, str(attributes["origins_unit"]), tuple(attributes["size"]))
    tiled = Store(Path(attributes["tile_store"]), attributes["tile_key"]).attributes
    properties = tiled["properties"]
    if "downsample" not in properties:
        return Export(embeddings, origins, "")
    downsample = float(properties["downsample"])
    level0 = np.round(origins * downsample).astype(np.int32)
    size = tuple(float(round(side * downsample)) for side in tiled["size"])
    return Export(embeddings, level0, "level0_pixels", size, tuple(properties.get("l0_extent", ())))


def export_path(dest: Path, image: str, suffix: str) -> Path:
    """Where the file of an image goes: its id as a path below a folder.

    Raises:
        PipelineError: it would lie outside of the folder.
    """
    pure = PurePosixPath(image)
    path = dest / f"{pure}{suffix}"
    inside = path.parent.resolve().is_relative_to(dest.resolve())
    if not pure.name or pure.is_absolute() or ".." in pure.parts or "\0" in image or not inside:
        raise PipelineError(f"{image}: leads out of the folder of the export: leave it out with --images")
    return path


def write_export(path: Path, found: Export) -> None:
    """Write one image in the format of the path's suffix (.h5, .pt, .npz, .zarr).

    Cost: twice the memory of its embeddings, but for .zarr.

    Raises:
        PipelineError: there is something under that name already.
        OSError: the disk says no.
    """
    if path.exists() or path.is_symlink():
        raise PipelineError(f"{path}: exists already: it stays as it is")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zarr":
        with new_folder(path) as beside:
            _write_anndata(beside, found)
        return
    writers: dict[str, Callable[[io.BytesIO, Export], None]] = {
        ".h5": _write_h5,
        ".pt": _write_pt,
        ".npz": _write_npz,
    }
    whole = io.BytesIO()  # on a full disk HDF5 brings the process down, and torch does not say why it cannot write
    writers[path.suffix](whole, found)
    try:
        write_bytes(path, whole.getvalue())
    except OSError as error:
        if error.errno in DISK_FULL:  # a failed write does not say where it was
            error.filename = str(path.parent)
        raise


def _rows(values: NDArray[Any]) -> int:
    return min(len(values), max(1, CHUNK_BYTES * len(values) // max(1, values.nbytes)))


def _write_h5(buffer: io.BytesIO, found: Export) -> None:
    import h5py

    with h5py.File(buffer, "w") as file:
        values = found.embeddings
        file.create_dataset("features", data=values, chunks=(_rows(values), values.shape[1]))
        if found.origins is None:
            return
        whole = found.origins.dtype.kind == "i"
        coords = file.create_dataset("coords", data=found.origins.astype(np.int64) if whole else found.origins)
        coords.attrs["unit"] = {"micrometres": "um"}.get(found.unit, found.unit or UNKNOWN)
        for name, value in _sizes(found).items():
            coords.attrs[name] = value


def _sizes(found: Export) -> dict[str, float]:
    """Attributes as TRIDENT (pixels) and STAMP (µm) name them; tiles are squares."""
    sizes: dict[str, float] = dict(zip(("level0_width", "level0_height"), found.level0_extent, strict=False))
    if found.size and found.unit == "micrometres":
        sizes["tile_size_um"] = found.size[0]
    elif found.size and found.unit:
        side = found.size[0]
        sizes["patch_size_level0"] = int(side) if side.is_integer() else side
    return sizes


def _write_pt(file: io.BytesIO, found: Export) -> None:
    import torch

    torch.save(torch.from_numpy(np.array(found.embeddings)), file)


def _write_npz(file: io.BytesIO, found: Export) -> None:
    arrays: dict[str, Any] = {"features": found.embeddings}
    if found.origins is not None:
        arrays |= {"coords": found.origins, "unit": np.array(found.unit or UNKNOWN)}
        if found.size:
            arrays["tile_size"] = np.array(found.size)
    np.savez(file, allow_pickle=False, **arrays)


def _write_anndata(path: Path, found: Export) -> None:
    """AnnData's layout 0.1.0 in Zarr v2, which its older versions read too: tiles are observations."""
    import zarr

    def group(name: str, kind: str, version: str, **more: object) -> None:
        attributes = {"encoding-type": kind, "encoding-version": version, **more}
        zarr.create_group(path / name, zarr_format=2, attributes=attributes)

    def array(name: str, values: NDArray[Any], kind: str = "array", **more: object) -> None:
        attributes: dict[str, Any] = {"encoding-type": kind, "encoding-version": "0.2.0", **more}
        chunks = (_rows(values), *values.shape[1:])
        zarr.create_array(path / name, data=values, chunks=chunks, zarr_format=2, attributes=attributes,
                          config={"write_empty_chunks": True})  # fmt: skip

    group("", "anndata", "0.1.0")
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        group(name, "dict", "0.1.0")
    for name, count in zip(("obs", "var"), found.embeddings.shape, strict=True):
        group(name, "dataframe", "0.2.0", _index="_index", **{"column-order": []})
        index = np.array([str(number) for number in range(count)], dtype=np.dtypes.StringDType())
        array(f"{name}/_index", index, "string-array")
    array("X", found.embeddings)
    if found.origins is not None:
        array("obsm/spatial", found.origins, unit=found.unit or UNKNOWN, tile_size=list(found.size))
