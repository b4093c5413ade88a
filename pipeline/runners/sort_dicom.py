"""Runs `sort-dicom`: a dump of DICOM files as one folder per CT series, to be put below the raw folder."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.dicom_sort import Tally

EVERY_SECONDS, EVERY_FILES = 5.0, 10_000


def run_sort_dicom(arguments: argparse.Namespace) -> None:
    """Link or copy the CT slices below SOURCE into folders of DEST; prints counts and never a name.

    Raises:
        ConfigError: the folders cannot be used like this.
        OSError: the disk of DEST does not take what is written.
    """
    from pipeline.dicom_sort import SERIES, TABLE, sort_dicom

    progress = _Progress()
    try:
        tally = sort_dicom(Path(arguments.source), Path(arguments.dest), arguments.copy, progress)
    except PipelineError:
        raise
    except OSError as error:  # its own text has the names of files
        raise OSError(error.errno, error.strerror, arguments.dest) from None
    print(progress.line(tally))
    for status in ("sorted", "left", "failed"):
        reasons = [(reason, number) for (which, reason), number in tally.reasons.items() if which == status]
        for reason, number in sorted(reasons, key=lambda item: (-item[1], item[0])):
            print(f"  {status}: {number:,} {reason}")
    if tally.gone:
        print(f"  {tally.gone:,} sorted files are no longer in SOURCE; links to them lead nowhere")
    groups = tally.series.values()
    patients, studies = len({group.patient for group in groups}), len({name.partition("/")[0] for name in tally.series})
    print(f"{len(groups):,} series of {studies:,} studies and {patients:,} patients, in {SERIES} of DEST")
    print(f"{SERIES} and {TABLE} name patients: keep them where only those look who may see the headers")


class _Progress:
    """Prints a line now and then."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.files = 0

    def __call__(self, tally: "Tally") -> None:
        now = time.monotonic()
        self.files += 1
        if self.files >= EVERY_FILES or now - self.last >= EVERY_SECONDS:
            self.last, self.files = now, 0
            print(self.line(tally), flush=True)

    def line(self, tally: "Tally") -> str:
        """The counts so far, and how fast files are opened."""
        counts = ", ".join(f"{tally.rows[status]:,} {status}" for status in ("sorted", "left", "failed"))
        before = tally.rows.total() - tally.opened
        earlier = f" ({before:,} by an earlier run)" if before else ""
        rate = tally.opened / max(time.monotonic() - self.started, 1e-3)
        speed = f"; {rate:,.0f} files/s" if tally.opened else ""
        return f"{tally.rows.total():,} files{earlier}: {counts}{speed}"
