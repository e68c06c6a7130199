"""Shards in a bucket: they are copied once, and a damaged or partial copy is made whole."""

import json
import shutil
import threading
import time

import pytest

from bert_fast import BadInput, cached, storage
from bert_fast.data import fetched, masking, shards
from bert_fast.hf import metadata


def forget(monkeypatch):
    """Makes this process forget what it has fetched, as if it were new."""
    monkeypatch.setattr(fetched, "_manifests", {})
    monkeypatch.setattr(fetched, "_complete", set())


def gets(bucket_server, since):
    return [request.rpartition("/")[2] for request in bucket_server.requests()[since:] if request.startswith("GET")]


def test_shards_are_copied_once_and_read_from_the_copy(shards_url, small_shards, bucket_server, monkeypatch, capfd):
    since = len(bucket_server.requests())
    assert shards.read_manifest(shards_url) == shards.read_manifest(small_shards)
    assert gets(bucket_server, since) == ["manifest.json"]
    assert shards.verify(shards_url) == shards.verify(small_shards)
    copy = fetched.folder(shards_url)
    assert copy == cached.folder("shards") / shards.read_manifest(small_shards)["fingerprint"][:32]
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in small_shards.iterdir()
    }
    assert f"{shards_url}: getting file 1 of" in capfd.readouterr().err
    assert [len(document.tokens_T) for document in shards.Split(shards_url, "valid")] == shards.Split(
        small_shards, "valid"
    ).lengths_D.tolist()
    assert masking.read_vocab(shards_url).fingerprint == masking.read_vocab(small_shards).fingerprint
    forget(monkeypatch)
    since = len(bucket_server.requests())
    shards.verify(shards_url)
    assert gets(bucket_server, since) == ["manifest.json"]


def test_local_folder_is_used_as_it_is(small_shards):
    assert fetched.folder(small_shards) == small_shards
    assert not fetched.repaired(small_shards)


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "vocabulary", "everything"])
def test_damaged_copy_is_made_whole(shards_url, small_shards, damage, monkeypatch, bucket_server):
    shards.verify(shards_url)
    copy = fetched.folder(shards_url)
    path = copy / ("vocab.txt" if damage == "vocabulary" else "train-00000-of-00002.array_record")
    content = path.read_bytes()
    if damage == "everything":
        shutil.rmtree(copy)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    forget(monkeypatch)
    since = len(bucket_server.requests())
    assert shards.verify(shards_url) == shards.verify(small_shards)
    assert path.read_bytes() == content
    if damage != "everything":
        assert gets(bucket_server, since) == ["manifest.json", path.name]  # only this file is read again


def test_copy_that_another_run_damages_is_made_whole_by_verify(shards_url, capfd):
    shards.verify(shards_url)
    path = fetched.folder(shards_url) / "train-lengths.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    shards.verify(shards_url)  # this process has already found the copy complete
    assert path.read_bytes() == content
    assert "is damaged: getting the damaged files again" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("manifest.json", None, "no manifest.json in s3://"),
        ("manifest.json", b"{", "manifest.json is damaged"),
        ("manifest.json", b"[]", "manifest.json is damaged"),
        ("manifest.json", b'{"fingerprint": "../../outside"}', "manifest.json is damaged"),
        ("manifest.json", b'{"fingerprint": "abc"}', "manifest.json is damaged"),
        ("train-lengths.npy", b"other", r"train-lengths.npy is damaged: it has sha256 .*copy the shards there again"),
        ("vocab.txt", None, "vocab.txt is missing, but the manifest lists it"),
    ],
)
def test_shards_that_are_damaged_in_the_bucket_are_refused(shards_url, name, content, said):
    store = storage.open(shards_url)
    store.write(name, content) if content is not None else store.delete(name)
    with pytest.raises(BadInput, match=said):
        shards.verify(shards_url)


def test_a_file_outside_the_folder_is_not_written(shards_url):
    store = storage.open(shards_url)
    manifest = json.loads(store.read("manifest.json"))
    manifest["splits"]["train"]["lengths"]["file"] = "../outside"
    store.write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(BadInput, match="a file outside the folder"):
        fetched.folder(shards_url)


def test_bucket_that_does_not_exist_is_named(bucket):
    with pytest.raises(storage.BucketError, match="create the bucket, or correct its name"):
        shards.read_manifest("s3://no-such-bucket/shards")


def test_two_processes_make_one_copy(shards_url, bucket_server, monkeypatch, capfd):
    since, original = len(bucket_server.requests()), fetched._fetch
    began = threading.Event()

    def slow(*arguments):
        began.set()
        threading.Event().wait(1.5)
        original(*arguments)

    monkeypatch.setattr(fetched, "_fetch", slow)
    other = threading.Thread(target=fetched.folder, args=[shards_url])
    other.start()
    assert began.wait(10)
    shards.verify(shards_url)
    other.join()
    assert gets(bucket_server, since).count("train-00000-of-00002.array_record") == 1
    assert "waiting for another process" in capfd.readouterr().err


def test_copy_that_is_deleted_meanwhile_is_made_again(shards_url, small_shards):
    shutil.rmtree(fetched.folder(shards_url))
    copied, made = (
        sorted(path.name for path in place.iterdir()) for place in (fetched.folder(shards_url), small_shards)
    )
    assert copied == made


def test_bucket_that_fails_is_not_called_a_damaged_copy(shards_url, bucket_server, capfd):
    fetched.manifest(shards_url)
    bucket_server.fail(status=403)
    with pytest.raises(storage.BucketError, match="HTTP 403"):
        shards.verify(shards_url)
    assert "is damaged" not in capfd.readouterr().err


def test_second_process_waits_as_long_as_the_copy_grows(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(fetched, "PATIENCE", 0.4)
    monkeypatch.setattr(fetched, "POLL", 0.05)
    copy, held, over = tmp_path / "copy", threading.Event(), threading.Event()
    copy.mkdir()

    def make(seconds):
        with fetched.alone(copy):
            held.set()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                (copy / "file").write_text("")
                time.sleep(0.05)
            over.wait()

    maker = threading.Thread(target=make, args=[1.5])
    maker.start()
    assert held.wait(5)
    began = time.monotonic()
    try:
        with pytest.raises(BadInput, match="has written nothing for"), fetched.alone(copy):
            pass
    finally:
        over.set()
    assert time.monotonic() - began > 1.5
    assert capfd.readouterr().err.count("waiting for another process") == 1
    maker.join()


def test_model_card_does_not_need_the_shards(shards_url, bucket_server, capfd):
    assert metadata.manifest_at(shards_url)["fingerprint"]
    assert metadata.manifest_at(f"{shards_url}/deleted") == {}
    fetched._manifests.clear()
    bucket_server.fail(status=403)
    assert metadata.manifest_at(shards_url) == {}
    assert "the card does not name the source of the text" in capfd.readouterr().err
