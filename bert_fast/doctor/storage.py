"""Checks of the place where runs will be stored: a folder, or a bucket."""

import os
import pathlib
import secrets
import shutil
import tempfile

from bert_fast import storage
from bert_fast.data.files import atomic_write, check_output, hold
from bert_fast.doctor import Result, failed, passed

LEAST_DISK = 2 * 2**30  # bytes: room for a few checkpoints of BERT-base


def disk(folder: pathlib.Path) -> Result:
    """Whether files can be written, renamed, locked and deleted in the folder, and how much space there is."""
    check_output(folder, "--workdir")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    with tempfile.TemporaryDirectory(dir=there, prefix=".doctor-") as inside:
        atomic_write(pathlib.Path(inside, "file"), os.urandom(1 << 20))
        hold(pathlib.Path(inside, "lock"), "").close()
    free = shutil.disk_usage(there).free
    found = f"{there} can be written, {free / 2**30:.1f} GiB free"
    if free < LEAST_DISK:
        return failed("disk", found, f"free some: expected at least {LEAST_DISK / 2**30:.0f} GiB")
    return passed("disk", found)


def bucket(url: str) -> Result:
    """Whether objects below a URL can be written, read, listed, deleted, and replaced if they are unchanged."""
    try:
        problem, remedy = _tried(storage.open(url, hasty=True))
    except storage.BucketError as error:
        return failed("bucket", error.problem, error.remedy or "give another --workdir")
    if problem:
        return failed("bucket", f"{url}: {problem}", f"use a bucket of a different service{remedy}")
    return passed("bucket", f"objects in {url} can be written, read, listed, deleted, and replaced if unchanged")


def _tried(store: storage.Bucket) -> tuple[str, str]:
    """The problem with a bucket, and words to append to the remedy. Leaves no object in the bucket.

    Both texts are empty if there is no problem.
    """
    name, content = f"doctor-{secrets.token_hex(4)}", os.urandom(1 << 10)
    try:
        store.write(name, content)
        found, version = store.look(name)
        if (found, store.names(name)) != (content, [name]):
            return "what was written cannot be read or listed", ""
        if store.replace(name, b"", version) is None:
            return "an object is not replaced although its version is the same (If-Match fails)", ""
        if store.replace(name, b"", version) is not None:  # `version` is out of date by now
            found = "an object is replaced although its version has changed (If-Match is ignored)"
            return found, ": in this one, two runs could write to the same place"
        return "", ""
    finally:
        store.delete(name)
