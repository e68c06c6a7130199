"""Runs in a bucket that save small checkpoints without training."""

import json
import shutil

import jax
import numpy as np
import pytest

from bert_fast import cached, storage
from bert_fast.train import checkpoint, remote, rollback
from helpers.made_checkpoints import described, state_of


def save(folder, mirror, *steps, keep=2):
    """Writes checkpoints and a row for each, as a run does."""
    for step in steps:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(f"{step}\n")
        kept = {old for old in checkpoint.steps(folder / "checkpoints") if old > step - keep or old == 0}
        checkpoint.save(folder / "checkpoints", state_of(step), described(step), kept)
        mirror.saved(step, keep)
        mirror.uploads.wait()
        mirror.check()


def made(url, *steps, keep=2):
    """A run in the bucket that has saved these steps."""
    with remote.run_folder(url) as (folder, mirror):
        save(folder, mirror, *steps, keep=keep)
    return folder


def run_until(url, error, work):
    """A run in the bucket that does `work(folder, mirror)`, and then raises this error. Returns the local folder."""
    with remote.run_folder(url) as (folder, mirror):
        work(folder, mirror)
        raise error
    return folder


def folder_of(url):
    return cached.folder("runs") / f"first-{cached.digest(url)}"


def empty_cache():
    shutil.rmtree(cached.folder("runs"), ignore_errors=True)
    shutil.rmtree(cached.folder("read"), ignore_errors=True)


def assert_holds(folder, step):
    found = checkpoint.restore(folder / "checkpoints" / str(step), state_of(0))
    jax.tree.map(np.testing.assert_array_equal, found, state_of(step))


def requests_of(bucket_server, url, since=0):
    """(method, object name) of each request that changes an object of the run."""
    prefix = url.removeprefix("s3:/") + "/"
    parts = [request.split(" ", 1) for request in bucket_server.requests()[since:]]
    return [(method, path.removeprefix(prefix)) for method, path in parts if prefix in path and method != "GET"]


def take_over(url):
    """Another process takes the lock."""
    store = storage.open(url)
    there = json.loads(store.read("lock.json"))
    there["owner"] |= {"token": "other", "pid": 1, "host": "elsewhere"}
    store.write("lock.json", json.dumps(there).encode())


def go_back(folder, mirror, step):
    """Does what Saver.go_back does."""
    mirror.go_back(step)
    rollback.discard_later(folder / "checkpoints", step)


def fork(url, bucket_server, *steps):
    """A run that uploads step 1, and is killed after it has saved these steps but not uploaded them."""

    def work(folder, mirror):
        save(folder, mirror, 1)
        bucket_server.fail("PUT", 503)
        save(folder, mirror, *steps)

    with pytest.raises(KeyboardInterrupt):
        run_until(url, KeyboardInterrupt(), work)
    bucket_server.recover()
