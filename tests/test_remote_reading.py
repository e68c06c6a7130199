"""Commands read a run in a bucket from a local copy. A damaged copy is repaired, and a run in progress is followed."""

import shutil

import pytest

from bert_fast import BadInput, storage
from bert_fast.train import checkpoint, remote, remote_checkpoints, rollback
from helpers.mirrored_runs import assert_holds, empty_cache, made, save


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
    with pytest.raises(BadInput, match=r"that was asked for is damaged"):
        checkpoint.find(f"{url}/checkpoints/2", warnings.append)
    empty_cache()
    with remote.run_folder(url) as (folder, _):
        assert_holds(folder, 1)
        assert checkpoint.steps(folder / "checkpoints") == [1]
    assert any("checkpoints/2 is damaged" in line and line.endswith("trying the previous one") for line in said)


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_run_is_read_again_if_it_changes_meanwhile(url, monkeypatch, change):
    made(url, 1, 2)
    fetch, said = remote_checkpoints.fetch, []

    def changing(store, step, root):
        monkeypatch.setattr(remote_checkpoints, "fetch", fetch)
        if change == "deleted":
            made(url, 3, 4)
        else:
            with remote.run_folder(url) as (folder, mirror):
                mirror.go_back(1)
                rollback.discard_later(folder / "checkpoints", 1)
                save(folder, mirror, 2)
            storage.open(url).delete("checkpoints/2/vocab.txt")  # as if the fetch began while step 2 was being replaced
            problem = fetch(store, step, root)
            storage.open(url).write("checkpoints/2/vocab.txt", (folder / "checkpoints/2/vocab.txt").read_bytes())
            return problem
        return fetch(store, step, root)

    monkeypatch.setattr(remote_checkpoints, "fetch", changing)
    found = checkpoint.find(url, said.append)
    assert found.name == ("4" if change == "deleted" else "2")
    assert checkpoint.damage(found) is None
    assert not said


def test_copy_is_made_again_if_another_command_deletes_it(url):
    made(url, 1)
    said, used = [], []

    def use(folder):
        used.append(folder)
        if len(used) == 1:
            shutil.rmtree(folder)
        return (folder / "vocab.txt").read_bytes()

    assert checkpoint.read(f"{url}/checkpoints/1", use, said.append)
    assert len(used) == 2
    assert "was deleted while it was read: copying it again" in said[0]


def test_copy_for_reading_loses_what_the_run_has_deleted(url):
    made(url, 1)
    storage.open(url).write("summary.json", b"{}")
    path = checkpoint.find(url).parents[1] / "summary.json"
    assert path.is_file()
    storage.open(url).delete("summary.json")
    checkpoint.find(url)
    assert not path.exists()


def test_run_that_is_called_lock_can_be_read(bucket):
    made(f"{bucket}/runs/lock", 1)
    assert checkpoint.find(f"{bucket}/runs/lock").name == "1"


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
    assert found.exists()  # another command may be reading this checkpoint
    made(url, 3)
    assert checkpoint.find(url).name == "3"
    assert not found.exists()  # a command that reads the newest step deletes the other checkpoints of the copy
    with pytest.raises(BadInput, match=r"no checkpoint in .*/checkpoints/7: .*it has the steps 2, 3"):
        checkpoint.find(f"{url}/checkpoints/7")
    with pytest.raises(BadInput, match=r"no checkpoint in .*nothing: .*it has none"):
        checkpoint.find(f"{url}/nothing")
