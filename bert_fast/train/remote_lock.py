"""The lock of a run in a bucket: only its owner writes there.

The lock is the object lock.json, with three keys:

    run     the run's identity
    owner   the process that writes to the run, or null
    beat    a count that the owner increases

A bucket has no locks, but it can replace an object on the condition that nobody else has replaced it. The owner
replaces lock.json in this way every BEAT seconds, as a sign of life. Another process may take the lock if the owner has
given no sign of life for STALE seconds.
"""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from bert_fast import BadInput, storage
from bert_fast.storage import Bucket, BucketError, StoredObject

NAME = "lock.json"
BEAT = 20.0  # seconds between signs of life
STALE = 180.0  # the owner counts as lost after this many seconds without a sign of life
POLL = 5.0  # seconds between looks at another owner's lock
_held: set[str] = set()  # tokens of the locks that this process holds


class LockLost(BadInput):
    """Raised by a run whose lock another process has taken."""


class RemoteLock:
    """The lock of the run in `store`, between `take` and `release`. `run` is the run's identity."""

    def __init__(self, store: Bucket, say: Callable[[str], object]):
        self.store, self.say = store, say
        self.hasty = storage.open(store.url, hasty=True)  # so that a sign of life does not keep an upload waiting
        self.run, self.version, self.beat, self.lost, self.signed = "", b"", 0, "", 0.0
        self.owner = {"host": socket.gethostname(), "machine": machine(), "pid": os.getpid(), "began": began("self")}
        self.owner["token"] = self.token = secrets.token_hex(8)
        self.over, self.busy = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self.follow, name="lock", daemon=True)

    def take(self, run: str = ""):
        """Takes the lock. Waits if its owner may be lost. Raises BadInput if another run holds it.

        run: the identity that the run gets if the bucket has no lock. With "", the run gets a new identity.
        """
        self.run = run
        found = self.store.look(NAME)
        if found.content is None:
            self.store.check()  # without a bucket, a conditional write looks as if another process had been faster
        there = self.read(found)
        if there["owner"] and not is_gone(there["owner"]):
            found = self.outwait(found, there["owner"])
            there = self.read(found)
        self.run = there["run"]
        version = self.store.replace(NAME, self.content(self.owner), found.version)
        if version is None:
            found = self.store.look(NAME)  # this process's own request may have been repeated
            there = self.read(found)
            if not self.is_own(there["owner"]):
                raise BadInput(self.taken(there["owner"]))
            version = found.version
        self.version, self.signed = version, time.time()
        _held.add(self.token)
        self.thread.start()

    def read(self, found: StoredObject) -> dict[str, Any]:
        """The run and the owner in the lock. If the bucket has no lock, the owner is None."""
        if found.content is None:
            return {"run": self.run or secrets.token_hex(8), "owner": None}
        try:
            there = json.loads(found.content)
            return {"run": str(there["run"]), "owner": there["owner"] and dict(there["owner"])}
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{self.store}/{NAME} is damaged ({error!r}): delete it if no other run is writing there"
            ) from None

    def content(self, owner: dict[str, Any] | None) -> bytes:
        return json.dumps({"run": self.run, "owner": owner, "beat": self.beat}).encode()

    def is_own(self, owner: dict[str, Any] | None) -> bool:
        return bool(owner) and owner.get("token") == self.token

    def taken(self, owner: dict[str, Any] | None) -> str:
        busy = f"another run ({name_of(owner)}) is writing to {self.store}"
        return f"{busy}: wait for it to finish, or choose another --workdir"

    def outwait(self, found: StoredObject, owner: dict[str, Any]) -> StoredObject:
        """Waits until the owner has released the lock, or has given no sign of life for STALE seconds.

        Returns the lock. Raises BadInput after a sign of life.
        """
        self.say(
            f"{self.store} is locked by {name_of(owner)}, which may have been killed: waiting up to {STALE:.0f} s for "
            "a sign of life from it"
        )
        end = time.monotonic() + STALE
        while time.monotonic() < end:
            time.sleep(POLL)
            now = self.store.look(NAME)
            if now.version != found.version:
                if self.read(now)["owner"]:
                    raise BadInput(self.taken(self.read(now)["owner"]))
                return now
        self.say(f"no sign of life from {name_of(owner)}: this run continues {self.store}")
        return found

    def follow(self):
        """Gives signs of life until the lock is released or lost."""
        while not self.over.wait(BEAT):
            with contextlib.suppress(BucketError):  # an upload will report the error
                try:
                    self.renew(self.hasty)
                except LockLost:
                    return

    def renew(self, store: Bucket | None = None):
        """Gives a sign of life. Raises LockLost if another process has taken the lock."""
        store = store or self.store
        with self.busy:
            self.check()
            self.beat += 1
            version = store.replace(NAME, self.content(self.owner), self.version)
            if version is None:
                found = store.look(NAME)
                try:
                    owner = self.read(found)["owner"]
                except BadInput as error:
                    self.lost = str(error)
                    self.check()
                if not self.is_own(owner):
                    self.lost = f"{self.store}/{NAME} was deleted while this run was writing there"
                    if owner:
                        self.lost = (
                            f"{name_of(owner)} has taken over {self.store}, because this run gave no sign of life "
                            f"there for {STALE:.0f} s (its network failed, or it was suspended)"
                        )
                    self.check()
                version = found.version
            self.version, self.signed = version, time.time()

    def check(self):
        """Raises LockLost if the lock is known to be lost."""
        if self.lost:
            raise LockLost(f"{self.lost}. This run stops, and uploads nothing more")

    def confirm(self):
        """Raises LockLost if the lock is lost.

        If the last sign of life is old, for example because this process was suspended, gives a new sign of life. That
        shows whether the lock is lost.
        """
        self.check()
        if time.time() - self.signed > STALE / 2:
            self.renew()

    def stop(self):
        """Gives no more signs of life. From now on, `check` raises LockLost.

        The lock stays in the bucket until `release`, or until another run finds that its owner is gone.
        """
        self.over.set()
        self.lost = self.lost or f"this run has ended its work in {self.store}"
        _held.discard(self.token)

    def release(self):
        """Gives the lock back. If that fails, says so."""
        self.stop()
        try:
            with self.busy:
                self.beat += 1
                self.store.replace(NAME, self.content(None), self.version)  # does nothing to a lost lock
        except BucketError as error:
            self.say(f"the lock is not released ({error}): on another machine, the next run waits {STALE:.0f} s for it")


class GuardedBucket(Bucket):
    """The objects of a run. Before an object is written or deleted, `confirm` is called. If it raises an error, the
    object stays as it is.
    """

    def __init__(self, store: Bucket, confirm: Callable[[], object]):
        super().__init__(store.url, store.store)
        self.confirm = confirm

    def write(self, name: str, content: bytes):
        self.confirm()
        super().write(name, content)

    def delete(self, name: str):
        self.confirm()
        super().delete(name)


def name_of(owner: dict[str, Any] | None) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}" if owner else "an unknown process"


def machine() -> str:
    """Identifies this machine or container, inside which a process id is unique."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def began(process: int | str) -> str:
    """When a process of this machine began, in clock ticks. Returns "" if unknown, and "gone" if it has ended."""
    try:
        state, *fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "gone" if pathlib.Path("/proc/self/stat").is_file() else ""
    return "gone" if state in "ZX" else fields[18]


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner of a lock was a process of this machine that has ended, or an earlier run of this process."""
    if owner.get("machine") != machine():
        return False
    if owner.get("pid") == os.getpid() and owner.get("began") == began("self"):
        return owner.get("token") not in _held
    return began(owner.get("pid", 0)) not in ("", owner.get("began"))
