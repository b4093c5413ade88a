"""A disk without room, in tests."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no file can be opened to be written."""
    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
