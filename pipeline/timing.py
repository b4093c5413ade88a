"""Where the time of embedding goes, and what that says about the machine."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

STILL = 0.1
"""A model that stands still for less than this share of the time is what everything waits for."""


@dataclass
class Times:
    """Seconds that an image took, by what was done. They overlap: reading goes on while the model works."""

    open: float = 0.0
    """Finding the file, its tiles and its directories."""
    read: float = 0.0
    """Bytes from the disk. What OpenSlide reads is counted as decoding: it does not tell them apart."""
    decode: float = 0.0
    """From bytes to the pixels of tiles."""
    wait: float = 0.0
    """The model stood still."""
    copy: float = 0.0
    """Tiles to the device."""
    forward: float = 0.0
    """Resizing, normalising and the model itself."""
    write: float = 0.0
    """The store, the picture and what is kept for a restart."""

    @contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        """Add the seconds that a block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.perf_counter() - began)

    def rounded(self) -> dict[str, float]:
        """Milliseconds are enough."""
        return {name: round(seconds, 3) for name, seconds in asdict(self).items()}


def total(times: Iterable[Mapping[str, float]]) -> Times:
    """The sum over images."""
    whole = Times()
    for each in times:
        for name, seconds in each.items():
            setattr(whole, name, getattr(whole, name) + seconds)
    return whole


def verdict(times: Times) -> str:
    """What the work was bound by, and the setting to change.

    The model's share of its own time tells whether it waited; what took longest beside it, what it waited for.
    """
    working = times.forward + times.copy
    if working + times.wait <= 0:
        return "nothing was embedded"
    still = times.wait / (working + times.wait)
    if still < STILL:
        return (
            f"compute-bound: the model stood still for {still:.0%} of the time. Faster: a GPU, backbone.precision bf16 "
            "there, a smaller backbone"
        )
    waits = f"the model stood still for {still:.0%} of the time"
    if times.write > times.open + times.read + times.decode:
        return f"disk-bound: {waits}, for stores to be written. Faster: results on a faster disk"
    if times.read + times.open > times.decode:
        return f"disk-bound: {waits}, for files to be read. Faster: raw files on a local disk"
    return (
        f"reader-bound: {waits}, for tiles to be decoded. Faster: more threads for the rule embed "
        "(--set-threads embed=16), or fewer jobs beside it"
    )
