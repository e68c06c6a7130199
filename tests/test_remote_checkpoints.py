"""A run's files in a bucket: what is copied there and back, in which order, and what happens if a part is lacking."""

import hashlib
import json
import shutil

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


@pytest.fixture
def url(bucket) -> str:
    return f"{bucket}/runs/first"


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines that a run prints about its bucket."""
    lines = []
    monkeypatch.setattr(remote, "say", lines.append)
    return lines


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


def test_a_folder_is_used_as_it_is(tmp_path):
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
        assert before.count("metrics.jsonl") == step  # the rows that this checkpoint counts
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
    assert not store.names("checkpoints/2/")  # the rest of the half one is deleted


@pytest.mark.parametrize("damage", ["changed", "missing", "unreadable checksums"])
def test_damaged_checkpoint_is_found_and_the_previous_one_is_used(url, said, damage):
    made(url, 1, 2)
    store = storage.open(url)
    if damage == "changed":
        store.write("checkpoints/2/vocab.txt", b"other")
    elif damage == "missing":
        store.delete("checkpoints/2/vocab.txt")
    else:
        store.write("checkpoints/2/checksums.json", b"{")
    warnings = []
    assert checkpoint.find(url, warnings.append).name == "1"
    assert f"checkpoint {url}/checkpoints/2 is damaged: " in warnings[0]
    with pytest.raises(BadInput, match=r"could be used is damaged"):
        checkpoint.find(f"{url}/checkpoints/2", warnings.append)
    empty_cache()
    with remote.run_folder(url) as (folder, _):
        assert_holds(folder, 1)
        assert checkpoint.steps(folder / "checkpoints") == [1]
    assert any("checkpoints/2 is damaged" in line and line.endswith("trying the previous one") for line in said)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside", "a/"])
def test_file_outside_a_checkpoint_is_not_written(tmp_path, name):
    (tmp_path / "inside").mkdir()
    sums = json.dumps({name: hashlib.sha256(b"x").hexdigest()}).encode()
    problem = remote_checkpoints.compared(sums, lambda _: b"x", tmp_path / "inside")
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


def test_a_failed_upload_is_said_and_made_up_for_by_the_next_save(url, bucket_server, said):
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


def test_a_bucket_that_fails_keeps_only_the_first_save_waiting(url, bucket_server, monkeypatch):
    def work(folder, mirror):
        bucket_server.fail("PUT|GET", 500)
        save(folder, mirror, 1)
        with monkeypatch.context() as patch:
            patch.setattr(remote.BucketMirror, "copy", lambda _: pytest.fail("waited again"))
            save(folder, mirror, 2)

    with pytest.raises(ValueError, match="over"):
        run_until(url, ValueError("over"), work)
    assert checkpoint.steps(folder_of(url) / "checkpoints") == [1, 2]


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


def test_second_signal_uploads_nothing_and_the_next_run_takes_the_lock(url):
    with pytest.raises(KeyboardInterrupt):
        run_until(url, KeyboardInterrupt(), save_and_write)
    assert storage.open(url).read("late.txt") is None
    with remote.run_folder(url):
        pass
    assert storage.open(url).read("late.txt") == b"late"


def test_step_that_is_written_again_replaces_the_one_in_the_bucket(url):
    with remote.run_folder(url) as (folder, mirror):
        save(folder, mirror, 1, 2)
        again = state_of(2)._replace(params=state_of(7).params)
        checkpoint.save(folder / "checkpoints", again, described(2), {1})  # the run went back, and came to step 2 again
        mirror.saved(2, 2)
    empty_cache()
    with remote.run_folder(url) as (folder, _):
        found = checkpoint.restore(folder / "checkpoints/2", state_of(0))
        jax.tree.map(np.testing.assert_array_equal, found.params, state_of(7).params)


def test_first_checkpoint_is_kept_and_fetched_if_the_run_keeps_it(url):
    made(url, 0, 1, 2, 3)
    assert remote_checkpoints.steps(storage.open(url).names()) == [0, 2, 3]
    empty_cache()
    with remote.run_folder(url) as (folder, mirror):
        assert checkpoint.steps(folder / "checkpoints") == [0, 3]
        save(folder, mirror, 4)
    assert remote_checkpoints.steps(storage.open(url).names()) == [0, 3, 4]


def test_bucket_keeps_as_many_checkpoints_on_a_new_machine(url):
    made(url, 1, 2, 3, keep=3)
    empty_cache()
    with remote.run_folder(url) as (folder, mirror):
        save(folder, mirror, 4, keep=3)
    assert remote_checkpoints.steps(storage.open(url).names()) == [2, 3, 4]


def test_summary_of_a_run_that_is_extended_is_deleted(url):
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


def test_copy_for_reading_is_used_again_and_repaired(url, bucket_server):
    made(url, 1, 2)
    found = checkpoint.find(url)
    assert found.name == "2"
    since = len(bucket_server.requests())
    assert checkpoint.find(url) == found
    arrays = [request for request in bucket_server.requests()[since:] if "/arrays/" in request]
    assert not arrays
    (found / "vocab.txt").write_text("damaged")
    assert checkpoint.find(url) == found
    assert checkpoint.damage(found) is None
    assert checkpoint.find(f"{url}/checkpoints/1/").name == "1"
    assert not found.exists()  # only what was read last is kept
    with pytest.raises(BadInput, match=r"no checkpoint in .*/checkpoints/7: .*it has the steps 1, 2"):
        checkpoint.find(f"{url}/checkpoints/7")
    with pytest.raises(BadInput, match=r"no checkpoint in .*nothing: .*it has none"):
        checkpoint.find(f"{url}/nothing")
