"""Runs in a bucket that go back, lose their lock, or were continued by another machine."""

import json
import shutil

import pytest

from bert_fast import storage
from bert_fast.train import checkpoint, remote, remote_checkpoints, remote_lock, rollback
from bert_fast.train.counters import Counters
from helpers.made_checkpoints import described, state_of
from helpers.mirrored_runs import (
    assert_holds,
    empty_cache,
    folder_of,
    fork,
    go_back,
    made,
    requests_of,
    run_until,
    save,
    take_over,
)


@pytest.mark.parametrize("how", ["known", "suspended"])
def test_nothing_is_written_or_deleted_after_the_lock_is_lost_during_an_upload(url, bucket_server, monkeypatch, how):
    requests, upload = [], remote_checkpoints.upload

    def work(folder, mirror):
        def losing(*arguments):
            take_over(url)
            if how == "known":
                with pytest.raises(remote_lock.LockLost):
                    mirror.lock.renew()
            else:
                mirror.lock.signed -= remote_lock.STALE
            requests.append(len(bucket_server.requests()))
            upload(*arguments)

        save(folder, mirror, 1, keep=1)
        monkeypatch.setattr(remote_checkpoints, "upload", losing)
        save(folder, mirror, 2, keep=1)

    with pytest.raises(remote_lock.LockLost, match="process 1 on elsewhere has taken over"):
        run_until(url, ValueError("goes on"), work)
    assert {name for _, name in requests_of(bucket_server, url, requests[0])} <= {"lock.json"}
    assert remote_checkpoints.steps(storage.open(url).names()) == [1]


def test_rows_are_not_copied_after_the_lock_is_lost(url, bucket_server):
    def work(folder, mirror):
        save(folder, mirror, 1)
        take_over(url)
        (folder / "metrics.jsonl").write_text("other")
        mirror.copy_files()

    with pytest.raises(remote_lock.LockLost):
        run_until(url, ValueError("goes on"), work)
    assert storage.open(url).read("metrics.jsonl") == b"1\n"


def test_thread_that_outlives_its_run_copies_nothing(url):
    mirrors = []
    with pytest.raises(KeyboardInterrupt):
        run_until(url, KeyboardInterrupt(), lambda *given: mirrors.append(given))
    ((folder, mirror),) = mirrors
    with pytest.raises(remote_lock.LockLost):
        save(folder, mirror, 1)
    assert remote_checkpoints.steps(storage.open(url).names()) == []


@pytest.mark.parametrize("failing", [False, True])
def test_run_killed_after_going_back_does_not_get_the_later_checkpoint_again(url, bucket_server, failing, said):
    def work(folder, mirror):
        save(folder, mirror, 1, 2)
        if failing:
            bucket_server.fail("PUT|DELETE", 503)
        go_back(folder, mirror, 1)

    with pytest.raises(KeyboardInterrupt):
        run_until(url, KeyboardInterrupt(), work)
    bucket_server.recover()
    assert any("after step 1 are still in the bucket" in line for line in said) == failing
    if not failing:
        empty_cache()
    with remote.run_folder(url) as (folder, mirror):
        assert checkpoint.steps(folder / "checkpoints") == [1]
        save(folder, mirror, 3)
    assert remote_checkpoints.steps(storage.open(url).names()) == [1, 3]


def test_later_checkpoint_that_the_bucket_failed_to_delete_is_deleted_at_the_next_save(url, bucket_server):
    with remote.run_folder(url) as (folder, mirror):
        save(folder, mirror, 1)
        bucket_server.fail("DELETE", 503)
        go_back(folder, mirror, 0)
        bucket_server.recover()
        mirror.saved(0, 2)
        mirror.uploads.wait()
        assert remote_checkpoints.steps(storage.open(url).names()) == []


def test_checkpoint_missing_on_the_disk_is_deleted_in_the_bucket_before_new_rows_are_copied(url, bucket_server):
    with remote.run_folder(url) as (folder, mirror):
        save(folder, mirror, 1, 2)
        rollback.discard_later(folder / "checkpoints", 1)
        since = len(bucket_server.requests())
        save(folder, mirror, 3, keep=3)
    requests = requests_of(bucket_server, url, since)
    rows = requests.index(("PUT", "metrics.jsonl"))
    assert requests.index(("DELETE", "checkpoints/2/checksums.json")) < rows
    assert remote_checkpoints.steps(storage.open(url).names()) == [1, 3]


def test_run_that_fails_before_its_first_save_does_not_claim_to_be_copied(url, said):
    with pytest.raises(ValueError, match="early"):
        run_until(url, ValueError("early"), lambda *_: None)
    assert not any(line.startswith("the run is in") for line in said)
    assert json.loads(storage.open(url).read("lock.json"))["owner"] is None


def test_run_without_its_lock_file_keeps_what_was_not_copied(url, bucket_server, said):
    fork(url, bucket_server, 2)
    storage.open(url).delete("lock.json")
    with remote.run_folder(url) as (folder, _):
        assert checkpoint.newest(folder / "checkpoints").name == "2"
    assert not any("was moved to" in line for line in said)
    assert remote_checkpoints.steps(storage.open(url).names()) == [1, 2]


def test_local_folder_is_moved_aside_if_another_machine_has_continued_the_run(url, bucket_server, said):
    fork(url, bucket_server, 2, 5)
    folder = folder_of(url)
    first = folder.rename(folder.with_name("first machine"))
    made(url, 4)  # on another machine, from step 1
    shutil.rmtree(folder)
    first.rename(folder)
    with remote.run_folder(url) as (folder, _):
        assert checkpoint.steps(folder / "checkpoints") == [4]
    aside = folder.with_name(f"{folder.name}.1")
    assert_holds(aside, 5)
    (line,) = (line for line in said if "was moved to" in line)
    assert line == f"another machine has continued {url}, but not from the end of {folder}: it was moved to {aside}"


def test_run_that_went_back_on_another_machine_does_not_continue_from_the_discarded_step(url, said):
    folder = made(url, 1, 2)
    first = folder.rename(folder.with_name("first machine"))
    made(url)
    with remote.run_folder(url) as (folder, mirror):
        go_back(folder, mirror, 1)
    shutil.rmtree(folder)
    first.rename(folder)
    with remote.run_folder(url) as (folder, _):
        assert checkpoint.steps(folder / "checkpoints") == [1]
    assert not any("was moved to" in line for line in said)


def test_step_that_another_machine_went_back_to_and_saved_again_replaces_the_local_one(url, said):
    folder = made(url, 1, 2)
    first = folder.rename(folder.with_name("first machine"))
    made(url)
    with remote.run_folder(url) as (folder, mirror):
        go_back(folder, mirror, 1)
        checkpoint.save(folder / "checkpoints", state_of(7), described(2), {1})
        mirror.saved(2, 2)
        mirror.uploads.wait()
    shutil.rmtree(folder)
    first.rename(folder)
    with remote.run_folder(url) as (folder, _):
        found = checkpoint.restore(folder / "checkpoints/2", state_of(0))
    assert float(found.params["layers"]["kernel"][0, 0]) == 7.0
    assert not any("was moved to" in line for line in said)


def test_files_that_a_run_would_not_upload_are_not_downloaded(tmp_path, bucket):
    store = storage.open(f"{bucket}/run")
    names = ["a/b", f"/{tmp_path}/outside", "../outside", "a/", ".lock", ".bucket", "c//d"]
    for name in names:
        storage.open(bucket).write(f"run/{name}", b"x")
    assert set(names) <= set(store.names()) | {"../outside"}
    remote_checkpoints.copy_files(store, tmp_path / "inside", names)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "inside/a/b"]


def test_new_machine_fetches_the_last_checkpoint_before_the_skipped_steps_and_all_later_ones(url):
    with remote.run_folder(url) as (folder, mirror):
        for step, streak in ((1, 0), (2, 0), (3, 1), (4, 2)):
            about = described(step, counters=Counters(streak=streak))
            checkpoint.save(folder / "checkpoints", state_of(step), about, set(range(step)))
            mirror.saved(step, 9)
        mirror.uploads.wait()
    empty_cache()
    with remote.run_folder(url) as (folder, _):
        assert checkpoint.steps(folder / "checkpoints") == [2, 3, 4]


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError("disk")])
def test_lock_does_not_stay_alive_if_the_last_copy_fails(url, monkeypatch, said, problem):
    mirrors = []

    def fail(mirror):
        raise problem

    def work(folder, mirror):
        save(folder, mirror, 1)
        mirrors.append(mirror)
        monkeypatch.setattr(remote.BucketMirror, "copy", fail)

    expected = KeyboardInterrupt if isinstance(problem, KeyboardInterrupt) else ValueError
    with pytest.raises(expected):
        run_until(url, ValueError("the error of the run"), work)
    assert mirrors[0].lock.over.is_set()
    if expected is ValueError:
        assert any("not all of it in the bucket" in line and "disk" in line for line in said)
