"""What is kept of an image that is being embedded, so that a killed job goes on where it was."""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store import Store, write_store

Embeddings = NDArray[np.float16] | NDArray[np.float32]


class Partial:
    """Runs of tiles that are embedded already: small stores in a folder beside the store they will become.

    Each is named by the number of its first tile, appears whole or not at all, and carries checksums like any store.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        """Of the store that they will become: nothing else's runs are taken."""

    def load(self) -> tuple[Embeddings, NDArray[np.uint8]] | None:
        """Embeddings (tile, feature) and status (tile,) of all runs from the first tile to the first gap."""
        values: list[Embeddings] = []
        status: list[NDArray[np.uint8]] = []
        while (path := self._run(sum(map(len, status)))).exists():
            try:
                run = Store(path, self.key)
                part, read = run.read("embeddings"), run.read("status")
            except StoreError:
                shutil.rmtree(path, ignore_errors=True)  # these tiles are embedded again
                break
            values.append(part)
            status.append(read)
        if not status:
            return None
        joined: Embeddings = np.concatenate(values, dtype=np.result_type(*values))
        return joined, np.concatenate(status)

    def save(self, first: int, values: Embeddings, status: NDArray[np.uint8]) -> None:
        """Keep a run of tiles that begins with tile number `first`."""
        write_store(self._run(first), {"embeddings": values, "status": status}, {"key": self.key})

    def close(self) -> None:
        """Forget all: the store is there, or the image failed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, first: int) -> Path:
        return self.folder / f"{first:09d}.zarr"
