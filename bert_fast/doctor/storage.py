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
    """Whether objects can be written, read, listed, replaced on a condition and deleted below a URL."""
    name, content = f"doctor-{secrets.token_hex(4)}", os.urandom(1 << 10)
    try:
        store = storage.open(url, hasty=True)
        version = store.look(name).version
        store.write(name, content)
        found, listed = store.read(name), store.names(name)
        condition = store.replace(name, b"", version) is None  # the object has another version by now
        store.delete(name)
    except storage.BucketError as error:
        return failed("bucket", error.problem, f"{error.remedy or 'give another --workdir'}")
    if (found, listed) != (content, [name]):
        return failed(
            "bucket", f"{url}: what was written cannot be read or listed", "use a bucket of a different service"
        )
    if not condition:
        return failed(
            "bucket",
            f"{url}: an object is replaced although its version has changed (If-Match is ignored)",
            "use a bucket of a different service: in this one, two runs could write to the same place",
        )
    return passed("bucket", f"objects in {url} can be written, read, listed, replaced on a condition, and deleted")
