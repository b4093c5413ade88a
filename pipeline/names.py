"""How images, patients and cases are called in results: as the user calls them, or by a keyed hash.

With `ids: hashed` no name from a path or from the table of labels reaches results or logs. The key, and the table that
leads back from a hash to a path, lie in the private folder, which jobs read and nobody shares.
"""

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.cohort import Row
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.raw import RawImage
from pipeline.store import read_json, write_json

if TYPE_CHECKING:
    from pipeline.plan import Job


@dataclass(frozen=True, slots=True)
class Names:
    """Gives everything its name. Without a key, names are left as they are."""

    private: Path
    key: bytes

    @classmethod
    def of(cls, config: Config) -> "Names":
        """The names of an experiment; makes the key when it is first needed.

        Raises:
            ConfigError: the key is damaged.
        """
        if config.ids == "path":
            return cls(Path(config.private), b"")
        path = Path(config.private) / "names.key"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        except FileExistsError:
            pass
        key = path.read_bytes()
        if len(key) != 64:  # an empty key would hide nothing
            raise ConfigError(
                f"{path}: has {len(key)} bytes, not 64: put the key back as it was, or delete the file if it was just "
                "made: another key gives everything another name"
            )
        return cls(path.parent, key)

    def _hash(self, what: str, text: str) -> str:
        return f"{what}-" + hmac.new(self.key, f"{what}:{text}".encode(), "sha256").hexdigest()[:16]

    def by_path(self, path: str, kind: str) -> str:
        """The id of an image."""
        return self._hash(kind, path) if self.key else path

    def image(self, image: RawImage) -> str:
        """The id of an image."""
        return self.by_path(image.path, image.kind)

    def files(self, image: RawImage) -> list[str]:
        """The files of a slide; nothing when names are hidden, because then the private table says it."""
        return [] if self.key else list(image.files)

    def patient(self, patient: str) -> str:
        """The name of a patient."""
        return self._hash("patient", patient) if self.key else patient

    def bag(self, bag: str, unit: str, path: str, kind: str) -> str:
        """The name of a bag, which is an image, a case or a patient."""
        if bag == path:
            return self.by_path(path, kind)
        return self._hash(unit, bag) if self.key else bag

    def missing(self, row: Row) -> list[str]:
        """The name and line of a row whose image is not there."""
        return [self._hash("missing", row.image) if self.key else row.image, str(row.number)]

    def free_text(self, text: str) -> str:
        """A user's own words, or a path that is no image's."""
        return "(hidden)" if self.key else text

    def keep(self, *jobs: "Job", images: list[RawImage]) -> None:
        """Write down where the images of some jobs lie, when their ids do not say it."""
        if not self.key:
            return
        where = {self.image(i): {"path": i.path, "files": list(i.files)} for i in images}
        for job in jobs:
            table = private_table(self.private, job.stage, job.key)
            if not table.exists():
                write_json(table, {entry["id"]: where[entry["id"]] for entry in job.slice["images"]})


def private_table(private: Path, stage: str, key: str) -> Path:
    """Path of the table from ids to paths of one job."""
    return private / stage / f"{key}.json"


def raw_path(raw: Path, image: dict[str, object], table: dict[str, dict[str, object]]) -> tuple[Path, tuple[str, ...]]:
    """Where an image of a slice lies, and the files of a slide below the raw folder."""
    known = table.get(str(image["id"]), {"path": image["id"], "files": image.get("files") or [image["id"]]})
    files = known["files"]
    assert isinstance(files, list)
    return raw / PurePosixPath(str(known["path"])), tuple(str(name) for name in files)


def read_private_table(private: str, stage: str, key: str) -> dict[str, dict[str, object]]:
    """The table from ids to paths of one job; empty when ids are paths."""
    table: dict[str, dict[str, object]] = read_json(private_table(Path(private), stage, key)) if private else {}
    return table
