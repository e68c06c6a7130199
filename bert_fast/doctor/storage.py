"""Checks of the place where runs will be stored: a folder, or a bucket."""

import os
import pathlib
import secrets
import shutil
import tempfile

import tensorstore

from bert_fast.data.files import atomic_write, check_output, hold
from bert_fast.doctor import Result, failed, passed

LEAST_DISK = 2 * 2**30  # bytes: room for a few checkpoints of BERT-base
PATIENCE = 20.0  # seconds for a bucket to answer


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
    """Whether objects can be written, read, listed and deleted below a URL such as gs://BUCKET/runs."""
    name, content = f"doctor-{secrets.token_hex(4)}", os.urandom(1 << 10)
    did = "open"
    try:
        store = tensorstore.KvStore.open(url.rstrip("/") + "/").result(timeout=PATIENCE)
        did = "write"
        store.write(name, content).result(timeout=PATIENCE)
        did = "read"
        found = store.read(name).result(timeout=PATIENCE).value
        did = "list"
        listed = store.list().result(timeout=PATIENCE)
        did = "delete"
        store.delete_range(tensorstore.KvStore.KeyRange(name, name + "0")).result(timeout=PATIENCE)
    except Exception as error:  # tensorstore has no error classes of its own
        reason = (str(error).strip().splitlines() or [f"no answer within {PATIENCE:.0f} s"])[0]
        remedy = (
            "check its name, your login (gcloud auth application-default login; aws configure) and your permissions"
        )
        return failed("bucket", f"{url}: could not {did}: {reason}", f"{remedy}: to read, write, list and delete")
    if found != content or name.encode() not in listed:
        return failed(
            "bucket", f"{url}: what was written cannot be read or listed", "use a bucket of a different service"
        )
    return passed("bucket", f"objects in {url} can be written, read, listed and deleted")
