"""Notes about a bucket, kept in a run's local folder, so that a later process finds out who wrote to the bucket.

The file is named .bucket, and holds three notes:

run      the run's identity
copied   a digest of the newest commit marker that is both in the local folder and in the bucket
back     the step to which the run went back, if the bucket's later checkpoints are still to be deleted; otherwise null
"""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from bert_fast.data.files import atomic_write

NAME = ".bucket"


class Commit(NamedTuple):
    """What identifies a checkpoint: its step, and a digest of its commit marker."""

    step: int
    digest: str


def digest(commit: bytes) -> str:
    return hashlib.sha256(commit).hexdigest()


class Notes:
    """The notes of a local folder. Those of a new folder are empty."""

    def __init__(self, folder: pathlib.Path, say: Callable[[str], object]):
        self.folder, self.path, self.say = folder, folder / NAME, say
        found = json.loads(self.path.read_bytes()) if self.path.is_file() else {}
        self.run: str = found.get("run", "")
        self.copied: str = found.get("copied", "")
        self.back: int | None = found.get("back")

    def write(self, **changed):
        """Changes the given notes, and writes all notes to the file."""
        vars(self).update(changed)
        self.folder.mkdir(parents=True, exist_ok=True)
        noted = {"run": self.run, "copied": self.copied, "back": self.back}
        atomic_write(self.path, json.dumps(noted).encode())

    def move_aside(self, reason: str):
        """Forgets the notes. If the folder has any content, renames it and says why."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            others = (self.folder.with_name(f"{self.folder.name}.{number}") for number in range(1, 10_000))
            aside = next(path for path in others if not path.exists())
            self.folder.rename(aside)
            self.say(f"{reason}: it was moved to {aside}")
        self.run, self.copied, self.back = "", "", None
