"""A run's files in a bucket: what is copied there and back, in which order, and what happens if a part is missing."""

import errno
import hashlib
import json
import os
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from bert_fast import BadInput, Interrupted, storage
from bert_fast.train import checkpoint, remote, remote_checkpoints
from helpers.made_checkpoints import described, state_of
from helpers.mirrored_runs import (
    assert_holds,
    empty_cache,
    folder_of,
    made,
    requests_of,
    run_until,
    save,
)


def test_what_is_in_the_bucket_is_enough_to_continue(url, said):
    made(url, 1, 2, 3)
    names = storage.open(url).names()
    assert remote_checkpoints.steps(names) == [2, 3]
    assert {"metrics.jsonl", "lock.json"} <= set(names)
    empty_cache()
    with remote.run_folder(url) as (folder, _):
        assert checkpoint.steps(folder / "checkpoints") == [3]
        assert_holds(folder, 3)
        assert (folder / "metrics.jsonl").read_text() == "1\n2\n3\n"
        assert not (folder / "lock.json").exists()
    assert f"{url} is at step 3: getting it" in said


def test_a_local_run_folder_is_used_directly(tmp_path):
    with remote.run_folder(tmp_path / "run") as (folder, mirror):
        assert folder == tmp_path / "run"
        mirror.saved(1, 2)
        mirror.check()
    assert not folder.exists()


def test_commit_marker_is_written_after_everything_else_and_deleted_first(url, bucket_server):
    since = len(bucket_server.requests())
    made(url, 1, 2, keep=1)
    requests = requests_of(bucket_server, url, since)
    for step in (1, 2):
        commit = requests.index(("PUT", f"checkpoints/{step}/checksums.json"))
        before = [name for method, name in requests[:commit] if method == "PUT"]
        later = [name for method, name in requests[commit + 1 :] if method == "PUT"]
        assert f"checkpoints/{step}/about.json" in before
        assert before.count("metrics.jsonl") == step  # the log is uploaded before each commit
        assert not [name for name in later if name.startswith(f"checkpoints/{step}/")]
    deleted = [name for method, name in requests if method == "DELETE"]
    assert deleted[0] == "checkpoints/1/checksums.json"
    assert len(deleted) > 5
    assert all(name.startswith("checkpoints/1/") for name in deleted)


def test_checkpoint_without_its_commit_marker_does_not_exist(url):
    made(url, 1, 2)
    store = storage.open(url)
    store.delete("checkpoints/2/checksums.json")
    assert checkpoint.find(url).name == "1"
    empty_cache()
    with remote.run_folder(url) as (folder, mirror):
        assert checkpoint.steps(folder / "checkpoints") == [1]
        save(folder, mirror, 3)
    assert remote_checkpoints.steps(store.names()) == [1, 3]
    assert not store.names("checkpoints/2/")  # the rest of the incomplete checkpoint is deleted


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside", "a/"])
def test_file_outside_a_checkpoint_is_not_written(url, tmp_path, name):
    (tmp_path / "inside").mkdir()
    sums = json.dumps({name: hashlib.sha256(b"x").hexdigest()}).encode()
    store = storage.open(url)
    store.write("checkpoints/1/checksums.json", sums)
    problem = remote_checkpoints.fetch(store, 1, tmp_path / "inside")
    assert problem.endswith("which is outside the checkpoint")
    assert not (tmp_path / "outside").exists()


def test_run_whose_checkpoints_are_all_damaged_is_an_error(url):
    made(url, 1)
    storage.open(url).write("checkpoints/1/vocab.txt", b"other")
    empty_cache()
    with pytest.raises(BadInput, match=rf"every checkpoint in {url} is damaged"), remote.run_folder(url):
        pass


def test_newer_side_wins(url, said, bucket_server):
    folder = made(url, 1)
    behind = shutil.copytree(folder, folder.with_name("copy"))
    made(url, 2)
    shutil.rmtree(folder)
    behind.rename(folder)  # step 1, while another machine has continued to step 2

    def work(folder, mirror):
        assert checkpoint.newest(folder / "checkpoints").name == "2"
        assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
        bucket_server.fail("PUT", 503)
        save(folder, mirror, 3)

    with pytest.raises(KeyboardInterrupt):  # the run stops at once, before step 3 is uploaded
        run_until(url, KeyboardInterrupt(), work)
    bucket_server.recover()
    assert remote_checkpoints.steps(storage.open(url).names()) == [1, 2]
    with remote.run_folder(url) as (folder, _):
        assert checkpoint.newest(folder / "checkpoints").name == "3"
        assert (folder / "metrics.jsonl").read_text() == "1\n2\n3\n"
    assert remote_checkpoints.steps(storage.open(url).names())[-1] == 3
    assert any("is at step 3, which is newer than what is in" in line for line in said)


def test_a_failed_upload_is_reported_and_the_next_save_makes_up_for_it(url, bucket_server, said):
    with remote.run_folder(url) as (folder, mirror):
        save(folder, mirror, 1)
        bucket_server.fail("PUT .*/checkpoints/", 500)
        save(folder, mirror, 2)
        assert remote_checkpoints.steps(storage.open(url).names()) == [1]
        bucket_server.recover()
        save(folder, mirror, 3)
        assert remote_checkpoints.steps(storage.open(url).names()) == [2, 3]
    assert sum("WARNING: step 2 is saved in" in line and "not in the bucket" in line for line in said) == 1
    assert f"step 3 is in {url}: the bucket can be used again" in said


def test_upload_that_fails_to_the_end_is_an_error_that_names_the_local_folder(url, bucket_server):
    def work():
        with remote.run_folder(url) as (folder, mirror):
            bucket_server.fail("PUT", 500)
            save(folder, mirror, 1, 2)

    with pytest.raises(BadInput, match=r"everything is in .*/runs/first-.*do not delete that folder.*HTTP 500"):
        work()
    folder = folder_of(url)
    assert checkpoint.steps(folder / "checkpoints") == [1, 2]
    assert remote_checkpoints.steps(storage.open(url).names()) == []
    bucket_server.recover()
    with remote.run_folder(url) as (again, _):
        assert again == folder
    assert remote_checkpoints.steps(storage.open(url).names()) == [1, 2]


def test_a_save_does_not_wait_for_the_bucket(url, bucket_server):
    with remote.run_folder(url) as (folder, mirror):
        bucket_server.pause()
        try:
            began = time.monotonic()
            for step in (1, 2, 3):
                checkpoint.save(folder / "checkpoints", state_of(step), described(step), {step - 1})
                mirror.saved(step, 2)
                mirror.check()
            assert time.monotonic() - began < 1.5  # a request takes two seconds to fail
        finally:
            bucket_server.go_on()
    assert remote_checkpoints.steps(storage.open(url).names()) == [2, 3]


def test_checkpoint_that_is_deleted_while_it_is_copied_is_copied_completely(url, monkeypatch):
    upload, deleted = remote_checkpoints.upload, []
    with remote.run_folder(url) as (folder, mirror):

        def slow(store, linked, *more):
            if not deleted:
                deleted.append(checkpoint.discard(folder / "checkpoints/1"))
            upload(store, linked, *more)
            assert remote_checkpoints.steps(store.names())[-1] == int(linked.name)

        monkeypatch.setattr(remote_checkpoints, "upload", slow)
        save(folder, mirror, 1)
        assert remote_checkpoints.steps(storage.open(url).names()) == [1]
        save(folder, mirror, 2)
    assert remote_checkpoints.steps(storage.open(url).names()) == [1, 2]
    assert not (folder / ".uploading").exists()


def test_checkpoint_that_cannot_be_linked_or_copied_is_an_error(url, monkeypatch, said):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def work():
        with remote.run_folder(url) as (folder, mirror):
            save(folder, mirror, 1)
            monkeypatch.setattr(os, "link", full)
            monkeypatch.setattr(shutil, "copy2", full)
            save(folder, mirror, 2)

    with pytest.raises(BadInput, match=r"do not delete that folder.*No space left"):
        work()
    assert remote_checkpoints.steps(storage.open(url).names()) == [1]
    assert any("WARNING: step 2 is saved in" in line for line in said)


def test_after_a_failed_upload_an_interrupted_run_still_uploads_its_newest_checkpoint(url, bucket_server, monkeypatch):
    upload, reached, go_on = remote_checkpoints.upload, threading.Event(), threading.Event()

    def slow(store, linked, *more):
        if linked.name == "2":
            reached.set()
            assert go_on.wait(10)
        upload(store, linked, *more)

    def work(folder, mirror):
        bucket_server.fail("PUT .*/checkpoints/", 500)
        save(folder, mirror, 1)
        bucket_server.recover()
        monkeypatch.setattr(remote_checkpoints, "upload", slow)
        for step in (2, 3):
            checkpoint.save(folder / "checkpoints", state_of(step), described(step), set())
            mirror.saved(step, 1)
            assert reached.wait(10)
        threading.Timer(0.5, go_on.set).start()

    with pytest.raises(Interrupted):
        run_until(url, Interrupted(15, "saved"), work)
    assert remote_checkpoints.steps(storage.open(url).names()) == [3]


def test_interrupted_run_gives_up_the_upload_of_an_earlier_checkpoint(url, bucket_server, monkeypatch):
    upload, reached, go_on = remote_checkpoints.upload, threading.Event(), threading.Event()

    def slow(store, linked, *more):
        if linked.name == "1":
            reached.set()
            assert go_on.wait(10)
        upload(store, linked, *more)

    def work(folder, mirror):
        monkeypatch.setattr(remote_checkpoints, "upload", slow)
        checkpoint.save(folder / "checkpoints", state_of(1), described(1), set())
        mirror.saved(1, 1)
        assert reached.wait(10)
        checkpoint.save(folder / "checkpoints", state_of(2), described(2), set())
        mirror.saved(2, 1)
        threading.Timer(0.5, go_on.set).start()

    with pytest.raises(Interrupted):
        run_until(url, Interrupted(15, "saved"), work)
    assert not [name for method, name in requests_of(bucket_server, url) if name.startswith("checkpoints/1/")]
    assert remote_checkpoints.steps(storage.open(url).names()) == [2]


def save_and_write(folder, mirror):
    save(folder, mirror, 1)
    (folder / "late.txt").write_text("late")


@pytest.mark.parametrize("error", [Interrupted(15, "saved"), ValueError("a bug"), BadInput("bad")])
def test_run_that_ends_with_an_error_is_copied_and_its_lock_released(url, error, said):
    with pytest.raises(type(error)):
        run_until(url, error, save_and_write)
    store = storage.open(url)
    assert store.read("late.txt") == b"late"
    assert json.loads(store.read("lock.json"))["owner"] is None
    assert any(line.startswith(f"the run is in {url}") for line in said)


def test_after_a_second_signal_nothing_is_uploaded_and_the_next_run_takes_the_lock(url):
    with pytest.raises(KeyboardInterrupt):
        run_until(url, KeyboardInterrupt(), save_and_write)
    assert storage.open(url).read("late.txt") is None
    with remote.run_folder(url):
        pass
    assert storage.open(url).read("late.txt") == b"late"


def test_checkpoint_that_is_written_again_replaces_the_copy_in_the_bucket(url):
    with remote.run_folder(url) as (folder, mirror):
        save(folder, mirror, 1, 2)
        again = state_of(2)._replace(params=state_of(7).params)
        checkpoint.save(folder / "checkpoints", again, described(2), {1})  # the run went back, and came to step 2 again
        mirror.saved(2, 2)
        mirror.uploads.wait()
    empty_cache()
    with remote.run_folder(url) as (folder, _):
        found = checkpoint.restore(folder / "checkpoints/2", state_of(0))
        jax.tree.map(np.testing.assert_array_equal, found.params, state_of(7).params)


def test_checkpoint_0_stays_in_the_bucket_and_is_fetched_if_the_run_keeps_it(url):
    made(url, 0, 1, 2, 3)
    assert remote_checkpoints.steps(storage.open(url).names()) == [0, 2, 3]
    empty_cache()
    with remote.run_folder(url) as (folder, mirror):
        assert checkpoint.steps(folder / "checkpoints") == [0, 3]
        save(folder, mirror, 4)
    assert remote_checkpoints.steps(storage.open(url).names()) == [0, 3, 4]


def test_bucket_keeps_the_same_number_of_checkpoints_on_a_new_machine(url):
    made(url, 1, 2, 3, keep=3)
    empty_cache()
    with remote.run_folder(url) as (folder, mirror):
        save(folder, mirror, 4, keep=3)
    assert remote_checkpoints.steps(storage.open(url).names()) == [2, 3, 4]


def test_damaged_checkpoint_0_is_not_said_to_have_a_previous_one(url, said):
    made(url, 0, 1)
    storage.open(url).write("checkpoints/0/vocab.txt", b"other")
    empty_cache()
    with remote.run_folder(url):
        pass
    (line,) = (line for line in said if "checkpoints/0 is damaged" in line)
    assert "previous" not in line


def test_damaged_local_checkpoint_does_not_replace_the_copy_in_the_bucket(url):
    before = []

    def work(folder, mirror):
        save(folder, mirror, 1)
        checkpoint.save(folder / "checkpoints", state_of(7), described(1, rows=1), set())
        (folder / "checkpoints/1/vocab.txt").write_text("damaged")
        before.append(storage.open(url).read("checkpoints/1/checksums.json"))
        mirror.saved(1, 2)

    with pytest.raises(ValueError, match="over"):
        run_until(url, ValueError("over"), work)
    assert [storage.open(url).read("checkpoints/1/checksums.json")] == before


def test_summary_of_an_extended_run_is_deleted_from_the_bucket(url):
    with remote.run_folder(url) as (folder, mirror):
        save(folder, mirror, 1)
        (folder / "summary.json").write_text("{}")
    assert storage.open(url).read("summary.json") == b"{}"
    with remote.run_folder(url) as (folder, mirror):
        (folder / "summary.json").unlink()
        save(folder, mirror, 2)
    assert storage.open(url).read("summary.json") is None


def test_local_folder_of_another_run_is_moved_aside(url, said):
    folder = made(url, 1, 2)
    store = storage.open(url)
    for name in store.names():
        store.delete(name)
    with remote.run_folder(url) as (again, mirror):
        assert again == folder
        assert checkpoint.steps(folder / "checkpoints") == []
        save(folder, mirror, 1)
    aside = folder.with_name(f"{folder.name}.1")
    assert_holds(aside, 2)
    assert f"the run in {folder} is no longer the one in {url}: it was moved to {aside}" in said
