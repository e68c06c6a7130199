"""Objects in a bucket: requests are repeated, every wait has a limit, and errors say what to do."""

import pathlib
import threading
import time

import pytest

from bert_fast import BadInput, storage
from bert_fast.storage import BucketError
from helpers.command_line import bert_fast


def test_objects_are_written_read_listed_and_deleted(bucket):
    store = storage.open(f"{bucket}/runs/a/")
    assert store.url == f"{bucket}/runs/a"
    assert store.read("x") is None
    for name in ("x", "x/y z", "w"):
        store.write(name, name.encode())
    storage.open(f"{bucket}/runs/ab").write("other", b"")
    assert store.names() == ["w", "x", "x/y z"]
    assert store.names("x/") == ["x/y z"]
    assert store.read("x/y z") == b"x/y z"
    store.delete("x")
    store.delete("x")
    assert store.names() == ["w", "x/y z"]
    assert storage.open(bucket).names() == ["runs/a/w", "runs/a/x/y z", "runs/ab/other"]


def test_an_object_is_replaced_only_if_nobody_else_has_replaced_it(bucket):
    one, other = storage.open(bucket), storage.open(bucket)
    absent = one.look("lock").version
    first = one.replace("lock", b"1", absent)
    assert first
    assert other.replace("lock", b"2", absent) is None
    assert other.look("lock") == (b"1", first)
    second = other.replace("lock", b"2", first)
    assert second
    assert one.replace("lock", b"3", first) is None
    assert one.read("lock") == b"2"


def test_a_request_that_fails_for_a_passing_reason_is_repeated(bucket, bucket_server):
    store = storage.open(bucket)
    for status in (500, 503, 429):
        bucket_server.fail("PUT", status, times=2)
        store.write("x", str(status).encode())
        assert store.read("x") == str(status).encode()
    bucket_server.fail("GET", 500, times=2)
    assert store.names() == ["x"]
    for _ in range(2):
        bucket_server.fail("GET", 500, times=4)  # a request is sent 4 times at most
        with pytest.raises(BucketError):
            store.names()


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.write("x", b""),
        lambda store: store.read("x"),
        lambda store: store.names(),
        lambda store: store.delete("x"),
        lambda store: store.replace("x", b"", b"\x02"),
    ],
)
def test_a_server_that_keeps_failing_is_an_error_with_a_remedy(bucket, bucket_server, ask):
    bucket_server.fail(status=503)
    with pytest.raises(BucketError, match=rf"{bucket}: could not .*tried again 3 times.*HTTP 503.*AWS_ENDPOINT_URL"):
        ask(storage.open(bucket))


def test_a_hasty_request_is_repeated_once(bucket, bucket_server):
    bucket_server.fail("PUT", 503)
    with pytest.raises(BucketError, match="tried again 1 times"):
        storage.open(bucket, hasty=True).write("x", b"")


def test_refused_requests_are_not_repeated_and_the_error_asks_for_a_login(bucket, bucket_server):
    bucket_server.fail(status=403, times=1)
    with pytest.raises(BucketError, match=r"HTTP 403.*log in .*aws configure.*gcloud auth.*rights to read, write"):
        storage.open(bucket).names()


@pytest.mark.parametrize("ask", [storage.Bucket.check, storage.Bucket.names, lambda store: store.write("x", b"")])
def test_a_bucket_that_does_not_exist_is_an_error(bucket, ask):
    with pytest.raises(BucketError, match=r"s3://no-such-bucket/a: could not .*create the bucket, or correct its name"):
        ask(storage.open("s3://no-such-bucket/a"))


def test_an_unreachable_server_is_an_error(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BucketError, match=r"Could not connect.*check the network"):
        storage.open(bucket).names()


def test_a_server_that_says_nothing_is_an_error(bucket, bucket_server):
    store, began = storage.open(bucket, hasty=True), time.monotonic()
    bucket_server.pause()
    try:
        with pytest.raises(BucketError, match=r"tried again 1 times: .*too slow"):
            store.read("x")
    finally:
        bucket_server.go_on()
    assert 3 < time.monotonic() - began < 30  # two requests of two seconds
    assert store.read("x") is None


def test_all_attempts_of_a_request_share_one_time_limit(bucket, bucket_server, monkeypatch):
    monkeypatch.setattr(storage, "LIMIT", 0.5)
    monkeypatch.setattr(storage, "LARGEST", 0)
    store = storage.open(bucket)
    bucket_server.pause()
    try:
        with pytest.raises(BucketError, match=r"could not read x within .* s"):
            store.read("x")
    finally:
        bucket_server.go_on()


def test_a_large_object_gets_more_time(bucket, bucket_server, monkeypatch):
    monkeypatch.setattr(storage, "LIMIT", 0.1)
    monkeypatch.setattr(storage, "SLOWEST", 100)
    store = storage.open(bucket)
    bucket_server.pause()
    threading.Timer(0.5, bucket_server.go_on).start()
    store.write("x", bytes(1000))  # 1000 bytes at 100 bytes per second may take ten seconds more
    bucket_server.pause()
    threading.Timer(0.5, bucket_server.go_on).start()
    with pytest.raises(BucketError, match="could not write x within"):
        store.write("x", b"")


@pytest.mark.parametrize("url", ["az://bucket/a", "https://example.org/a", "s3://", "gs:///a"])
def test_other_urls_are_refused(url):
    assert storage.is_url(url)
    with pytest.raises(BadInput, match="expected a folder, s3://BUCKET/PATH or gs://BUCKET/PATH"):
        storage.open(url)


def test_paths_are_not_urls_and_a_path_made_of_a_url_is_refused():
    assert not any(map(storage.is_url, ("runs/a", "/runs/s3:/a", "", "C:/a", pathlib.Path("runs/a"))))
    for url in ("s3://bucket/a", "gs://bucket/a"):
        with pytest.raises(BadInput, match="give the URL as a string"):
            storage.is_url(pathlib.Path(url))


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "--config=glue:task=mrpc", "--checkpoint=run", "--workdir=s3://bucket/a"],
        ["finetune", "--config=glue:task=mrpc", "--checkpoint=run", "--workdir=a", "--config.data.dir=gs://bucket/a"],
        ["prepare", "--source=docs", "--out=s3://bucket/a"],
        ["export", "--checkpoint=run", "--out=s3://bucket/a"],
        ["export", "--checkpoint=run", "--out=a", "--results=s3://bucket/a"],
        ["embed", "--checkpoint=run", "--out=s3://bucket/a.npy", "text"],
        ["report", "run", "--out=s3://bucket/a"],
        ["compare", "smoke", "--out=gs://bucket/a"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_that_need_a_disk_refuse_a_bucket(arguments):
    done = bert_fast(*arguments)
    assert done.returncode == 2
    assert "is in a bucket" in done.stderr
    assert f"{arguments[0]} needs a place on a disk here" in done.stderr
