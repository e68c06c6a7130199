"""Folders of this machine's cache: compiled programs, and local copies of what is in a bucket."""

import hashlib
import os
import pathlib

VARIABLE = (
    "BERT_FAST_CACHE"  # environment variable: another folder for the cache, or "off" to keep no compiled programs
)
CACHE = "~/.cache/bert_fast"
COMPILED = f"{CACHE}/compiled"  # if VARIABLE names a folder, the programs are directly in it


def folder(kind: str) -> pathlib.Path:
    """The folder for `kind`, inside the folder that VARIABLE names, else inside CACHE. It may not exist yet."""
    place = os.environ.get(VARIABLE, "off")
    return pathlib.Path(CACHE if place == "off" else place).expanduser().absolute() / kind


def digest(url: str) -> str:
    """A short hash that tells apart the copies of two URLs."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]
