"""The checksums of a checkpoint's files, so that a run does not use damaged ones."""

import json
import pathlib

from bert_fast.data.shards import sha256

FILE = "checksums.json"  # sha256 of every other file of the checkpoint, by name; written last


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if they are intact."""
    try:
        sums = json.loads((folder / FILE).read_text()).items()
    except (OSError, ValueError, AttributeError) as error:
        return f"{FILE} cannot be read ({error})"
    for name, expected in sums:
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            if sha256(folder / name) != expected:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
