"""The raw files of a job's images, found again by their ids."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import ImageError
from pipeline.names import raw_path, read_private_table
from pipeline.raw import identity_now, series_files
from pipeline.runners.job import Job


class RawImages:
    """Where the raw files of a job's images lie, hidden behind their ids when names are not to be seen."""

    def __init__(self, job: Job) -> None:
        self.raw = Path(job.slice["raw"])
        self.hidden = bool(job.slice["private"])
        self.table = read_private_table(job.slice["private"], job.stage, job.slice_path.stem)

    def check_unchanged(self, image: dict[str, Any]) -> None:
        """Refuse an image whose files are not those that were planned.

        Raises:
            ImageError: they changed; the next run will plan them as they are then.
        """
        path, files = raw_path(self.raw, image, self.table)
        below = path.relative_to(self.raw).as_posix()
        if identity_now(self.raw, below, image["kind"], files) != image["identity"]:
            raise ImageError("its files changed while the run was going: the next run reads them as they are then")

    @contextlib.contextmanager
    def opened(self, image: dict[str, Any]) -> Iterator[tuple[Path, list[Path]]]:
        """An image's path and files; with hidden names, links to them whose names say nothing.

        Libraries put paths into their messages; behind links, what they can tell is the id.
        """
        path, names = raw_path(self.raw, image, self.table)
        files = series_files(path) if image["kind"] == "series" else [self.raw / name for name in names]
        if not self.hidden:
            yield path, files
            return
        with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
            links = Path(folder) / str(image["id"])
            links.mkdir()
            if image["kind"] == "series":
                for number, file in enumerate(files):
                    (links / f"{number:06d}.dcm").symlink_to(file.resolve())
                yield links, series_files(links)
                return
            linked = []
            for number, file in enumerate(files):
                # Companions lie in a folder named like the slide (MIRAX) or beside it: under names of their own that
                # its first file tells (VMS), or under any (DICOM, a mask).
                if file.parent != path.parent:
                    name = f"image/{file.name}"
                elif number and path.suffix.lower() in (".vms", ".vmu") and file.suffix != ".geojson":
                    name = file.name
                else:
                    name = f"image{'' if file.suffix == '.geojson' else number or ''}{file.suffix}"
                (links / name).parent.mkdir(exist_ok=True)
                (links / name).symlink_to(file.resolve())
                linked.append(links / name)
            yield linked[0], linked
