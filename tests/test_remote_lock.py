"""The lock of a run in a bucket: only one process writes there, and a dead process does not keep the lock."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from bert_fast import BadInput, storage
from bert_fast.train import remote_lock
from bert_fast.train.remote_lock import LockLost, RemoteLock


@pytest.fixture
def locks(bucket, monkeypatch):
    """Makes locks of one run. Their waiting times are short, and they are stopped after the test."""
    for name, seconds in {"BEAT": 0.1, "STALE": 1.5, "POLL": 0.05}.items():
        monkeypatch.setattr(remote_lock, name, seconds)
    made = []

    def make(machine="", said=None):
        lock = RemoteLock(storage.open(f"{bucket}/run"), (said if said is not None else []).append)
        lock.owner["machine"] = machine or lock.owner["machine"]
        made.append(lock)
        return lock

    yield make
    for lock in made:
        lock.stop()


def owner_in(bucket):
    return json.loads(storage.open(f"{bucket}/run").read("lock.json"))["owner"]


def test_run_keeps_its_identity_from_process_to_process(locks, bucket):
    first, second = locks(), locks()
    first.take()
    assert owner_in(bucket)["pid"] == os.getpid()
    first.release()
    assert owner_in(bucket) is None
    second.take()
    assert second.run == first.run


def test_second_run_on_the_same_machine_is_refused(locks):
    first = locks()
    first.take()
    with pytest.raises(BadInput, match=rf"another run \(process {os.getpid()} on .*is writing to s3://.*/run: wait"):
        locks().take()
    first.renew()


def test_second_run_on_another_machine_waits_for_a_sign_of_life_and_is_refused(locks):
    first, said = locks(machine="another"), []
    first.take()
    began = time.monotonic()
    with pytest.raises(BadInput, match="another run"):
        locks(said=said).take()
    assert time.monotonic() - began < 1.4  # before the lock counts as stale
    assert "a sign of life from it" in said[0]


def test_lock_without_a_sign_of_life_is_taken_over_and_its_owner_is_told(locks, bucket):
    said = []
    first, second = locks(machine="another"), locks(said=said)
    first.take()
    first.over.set()  # no more signs of life, as if the machine had been killed
    first.thread.join()
    second.take()
    assert second.run == first.run
    assert "no sign of life from process" in said[-1]
    assert owner_in(bucket)["token"] == second.token
    with pytest.raises(LockLost, match=r"process \d+ on .* has taken over s3://.*/run, because this run gave no sign"):
        first.renew()
    with pytest.raises(LockLost):
        first.check()
    first.release()
    assert owner_in(bucket)["token"] == second.token


def test_owner_that_is_still_alive_notices_that_its_lock_was_taken(locks, bucket):
    lock = locks()
    lock.take()
    there = json.loads(storage.open(f"{bucket}/run").read("lock.json"))
    there["owner"] |= {"token": "other", "pid": 1, "host": "elsewhere"}
    storage.open(f"{bucket}/run").write("lock.json", json.dumps(there).encode())
    lock.thread.join(5)
    with pytest.raises(LockLost, match="process 1 on elsewhere has taken over"):
        lock.check()


def test_deleted_lock_is_lost(locks, bucket):
    lock = locks()
    lock.take()
    storage.open(f"{bucket}/run").delete("lock.json")
    with pytest.raises(LockLost, match=r"lock\.json was deleted"):
        lock.renew()


def test_lock_of_a_dead_process_of_this_machine_is_taken_at_once(locks, bucket):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = locks()
    dead.owner |= {"pid": child.pid, "began": remote_lock.began(child.pid)}
    dead.take()
    dead.over.set()
    dead.thread.join()
    assert not remote_lock.is_gone(dead.owner)
    child.kill()  # not yet waited for: a zombie
    deadline = time.monotonic() + 10
    while not remote_lock.is_gone(dead.owner):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.communicate()
    assert remote_lock.is_gone(dead.owner)
    assert not remote_lock.is_gone(dead.owner | {"machine": "another"})
    assert remote_lock.is_gone(dead.owner | {"pid": 1})  # its process id now belongs to another process
    began, lock = time.monotonic(), locks()
    lock.take()
    assert time.monotonic() - began < 1.0


def test_only_one_of_many_runs_that_start_together_gets_the_lock(locks):
    made, won = [locks() for _ in range(6)], []

    def take(lock):
        try:
            lock.take()
            won.append(lock)
        except BadInput:
            pass

    threads = [threading.Thread(target=take, args=[lock]) for lock in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].renew()


def test_a_repeated_request_does_not_lose_the_lock(locks, bucket):
    lock = locks()
    lock.take()
    lock.over.set()
    lock.thread.join()
    lock.version = storage.open(f"{bucket}/run").look("other").version  # as if the answer had been lost
    lock.renew()
    lock.check()


def test_signs_of_life_survive_failing_requests(locks, bucket, bucket_server):
    lock = locks()
    lock.take()
    bucket_server.fail("PUT", 500)
    time.sleep(0.5)
    bucket_server.recover()
    before = json.loads(storage.open(f"{bucket}/run").read("lock.json"))["beat"]
    time.sleep(0.5)
    assert json.loads(storage.open(f"{bucket}/run").read("lock.json"))["beat"] > before
    lock.check()


def test_damaged_lock_is_an_error(locks, bucket):
    storage.open(f"{bucket}/run").write("lock.json", b"{}")
    with pytest.raises(BadInput, match=r"lock\.json is damaged .*delete it if no other run is writing there"):
        locks().take()


def test_lock_that_is_damaged_while_it_is_held_is_lost(locks, bucket):
    lock = locks()
    lock.take()
    storage.open(f"{bucket}/run").write("lock.json", b"{")
    lock.thread.join(5)
    with pytest.raises(LockLost, match=r"lock\.json is damaged"):
        lock.check()
