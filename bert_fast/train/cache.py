"""Keeps compiled programs on disk, so that a second start does not compile them again."""

import os
import pathlib

import filelock
import jax

from bert_fast.cached import COMPILED, VARIABLE
from bert_fast.train.report import say

BYTES = 4 * 2**30  # size limit; the least recently used programs are removed first
SECONDS = 0.1  # programs that compile faster are not kept


def keep_programs():
    """Turns on JAX's persistent cache, in one folder of limited size.

    Does nothing if `VARIABLE` is "off", or if JAX already has a cache folder (JAX_COMPILATION_CACHE_DIR).
    """
    place = os.environ.get(VARIABLE, COMPILED)
    if getattr(jax.config, "jax_compilation_cache_dir") is not None or place == "off":  # noqa: B009
        return
    folder = pathlib.Path(place).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lockfile", timeout=10):  # the lock that JAX itself uses
            remove_unfinished(folder)
    except (OSError, filelock.Timeout) as error:
        say(f"{folder} cannot be used ({error}), so nothing is cached: set {VARIABLE} to another folder, or to off")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)


def remove_unfinished(folder: pathlib.Path):
    """Removes unfinished entries that a killed process left. Otherwise, JAX would fail on them at every later write."""
    for entry in folder.glob("*-cache"):
        if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
            entry.unlink(missing_ok=True)
