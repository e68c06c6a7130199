"""Folders of this machine's cache: compiled programs, and local copies of what is in a bucket."""

import hashlib
import os
import pathlib

from bert_fast import BadInput

# An environment variable: another folder for the cache, or "off" to keep no compiled programs.
VARIABLE = "BERT_FAST_CACHE"
CACHE = "~/.cache/bert_fast"
COMPILED = f"{CACHE}/compiled"  # if VARIABLE names a folder, the programs are directly in it


def folder(kind: str) -> pathlib.Path:
    """The folder for `kind`, inside the folder that VARIABLE names, else inside CACHE. It may not exist yet.

    Raises BadInput if VARIABLE names a file.
    """
    place = os.environ.get(VARIABLE, "off")
    whole = pathlib.Path(CACHE if place == "off" else place).expanduser().absolute()
    if whole.is_file():
        raise BadInput(f"{VARIABLE}={place} is a file: set it to a folder, or unset it")
    return whole / kind


def digest(url: str) -> str:
    """A short hash that tells apart the copies of two URLs."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]
