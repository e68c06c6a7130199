"""Folders of this machine's cache: compiled programs, and local copies of what is in a bucket."""

import hashlib
import os
import pathlib

VARIABLE = "BERT_FAST_CACHE"  # environment variable: another folder for compiled programs, or "off" to keep none
COMPILED = "~/.cache/bert_fast/compiled"


def folder(kind: str) -> pathlib.Path:
    """The folder for `kind`, next to the compiled programs. It may not exist yet."""
    place = os.environ.get(VARIABLE, COMPILED)
    return pathlib.Path(COMPILED if place == "off" else place).expanduser().absolute().parent / kind


def digest(url: str) -> str:
    """A short hash that tells apart the copies of two URLs."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]
