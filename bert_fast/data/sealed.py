"""JSON files with a checksum of their content, so that damage is found when they are read."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from bert_fast import BadInput
from bert_fast.data.files import atomic_json

SEAL = "seal"  # the key of the checksum


def checksum(content: dict) -> str:
    """The sha256 of a JSON object. It does not depend on the order of keys or on white space."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write(path: pathlib.Path, content: dict) -> dict:
    """Writes a JSON object with its seal, atomically. Returns what `read` will return."""
    content = json.loads(json.dumps(content))  # tuples become lists, as in what `read` returns
    atomic_json(path, content | {SEAL: checksum(content)})
    return content


def read(path: pathlib.Path, remedy: str, unsealed: Sequence[int | None] = ()) -> dict[str, Any]:
    """The JSON object in a file, without its seal. Raises BadInput if the file has changed since it was written. The
    message ends with `remedy`.

    unsealed: a file may lack a seal if the value of its key "format" is one of these. None stands for no such key.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} is damaged: it holds {type(found).__name__}, expected a JSON object: {remedy}")
    seal = found.pop(SEAL, None)
    if seal != checksum(found) and not (seal is None and found.get("format") in unsealed):
        raise BadInput(f"{path} is damaged: its content does not match the checksum in it ({SEAL!r}): {remedy}")
    return found
