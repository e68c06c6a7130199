"""A run whose folder is in a bucket: it works in a local folder, which is copied to the bucket after each save.

A bucket neither renames nor appends. So the loop, its rows and its checkpoints stay on the disk, in the cache's folder
runs/NAME-HASH. What is in the bucket is enough to continue on another machine.
"""

import contextlib
import hashlib
import json
import math
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from bert_fast import BadInput, Interrupted, cached, storage
from bert_fast.data.files import atomic_write
from bert_fast.storage import BucketError
from bert_fast.train import agreement, checkpoint, remote_checkpoints, remote_lock, rollback
from bert_fast.train.remote_lock import LockedBucket, LockLost, RemoteLock
from bert_fast.train.report import say
from bert_fast.train.saver import ALONE, Mirror

MARKER = ".bucket"  # in the local folder: see `BucketMirror.noted`
UNKNOWN = {"run": "", "copied": "", "back": None}
MEETING = ".meeting"  # in the local folder: a token that all processes must read


@contextlib.contextmanager
def run_folder(workdir: str | pathlib.Path) -> Iterator[tuple[pathlib.Path, Mirror]]:
    """The local folder for a run, and what copies it: nothing, if `workdir` is a folder already.

    At the end of the block, everything is in the bucket, or BadInput is raised, which names the local folder. Of
    several processes, the first one uses the bucket, and all must share the local folder.
    """
    if not storage.is_url(workdir):
        yield pathlib.Path(workdir), ALONE
        return
    url = str(workdir).rstrip("/")
    folder = cached.folder("runs") / f"{storage.name_of(url)}-{cached.digest(url)}"
    if jax.process_index() > 0:
        _meet(folder)
        yield folder, ALONE
        return
    mirror = BucketMirror(storage.open(url), folder)
    mirror.begin()
    try:
        _meet(folder)
        yield folder, mirror
    except BaseException as error:
        mirror.end(error)
        raise
    mirror.end(None)


def _meet(folder: pathlib.Path):
    """Returns once the first process has prepared the folder. Raises BadInput on all processes if it is not shared."""
    if jax.process_count() == 1:
        return
    if jax.process_index() == 0:
        atomic_write(folder / MEETING, secrets.token_hex(8).encode())
    agreement.agree("run in the bucket", dict)
    path = folder / MEETING
    token = path.read_text() if path.is_file() else "missing"
    topic = f"local folder for the run, which all must share (let {cached.VARIABLE} name a shared place)"
    agreement.agree(topic, lambda: {"token in it": token})


class Commit(NamedTuple):
    """What identifies a checkpoint: its step, and a digest of its commit marker."""

    step: int
    digest: str


class BucketMirror(Mirror):
    """Copies a run from its local folder to the bucket."""

    def __init__(self, store: storage.Bucket, folder: pathlib.Path):
        self.folder, self.root = folder, folder / remote_checkpoints.FOLDER
        self.lock = RemoteLock(store, say)
        self.store = LockedBucket(self.lock)
        # run: its identity. copied: a digest of the newest commit marker that is both here and in the bucket. back: the
        # step to which the run went back, until the later ones are deleted in the bucket.
        self.noted: dict[str, Any] = UNKNOWN
        self.keep: int | None = None  # checkpoints to keep; None until the first save
        self.behind: BucketError | None = None  # why the newest checkpoint is not in the bucket
        self.sent: dict[str, tuple[int, int]] = {}  # name -> time and size of a file when it was copied

    def begin(self):
        """Takes the lock, and gets what the bucket has and the local folder lacks. Raises BadInput if it cannot."""
        if (self.folder / MARKER).is_file():
            self.noted = UNKNOWN | json.loads((self.folder / MARKER).read_bytes())
        # Without a lock.json (it was deleted), the checkpoints there are those of the run in the local folder.
        self.lock.take(self.noted["run"] if remote_checkpoints.steps(self.store.names()) else "")
        try:
            self.claim()
            if self.noted["back"] is not None:
                self.delete_later(self.noted["back"])
            self.fetch()
        except BaseException:
            self.lock.release()
            raise

    def claim(self):
        """Moves the local folder aside if it belongs to a run that is no longer in the bucket, or if another machine
        has continued the run but not from its newest checkpoint.
        """
        there, local = self.newest_there(), [_digest(self.commit(step)) for step in checkpoint.steps(self.root)]
        copied = self.noted["copied"]
        if self.noted["run"] != self.lock.run:
            self.move_aside(f"the run in {self.folder} is no longer the one in {self.store}")
        elif there is not None and local and there.digest != copied:
            if local[-1] == copied:  # another machine has continued from it, or went back
                rollback.discard_later(self.root, there.step)
            elif there.digest not in local:
                self.move_aside(f"another machine has continued {self.store}, but not from the end of {self.folder}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.note(run=self.lock.run)

    def move_aside(self, reason: str):
        """Renames the local folder, and says why."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            others = (self.folder.with_name(f"{self.folder.name}.{number}") for number in range(1, 10_000))
            aside = next(path for path in others if not path.exists())
            self.folder.rename(aside)
            say(f"{reason}: it was moved to {aside}")
        self.noted = UNKNOWN

    def note(self, **facts):
        """Changes `noted`, also in the local folder."""
        self.noted = self.noted | facts
        atomic_write(self.folder / MARKER, json.dumps(self.noted).encode())

    def newest_there(self) -> Commit | None:
        """The commit marker of the newest checkpoint in the bucket."""
        for step in remote_checkpoints.steps(self.store.names())[::-1]:
            content = self.store.read(remote_checkpoints.key(step, remote_checkpoints.COMMIT))
            return Commit(step, _digest(content or b""))
        return None

    def commit(self, step: int) -> bytes:
        """The commit marker of a checkpoint in the local folder."""
        return (self.root / str(step) / remote_checkpoints.COMMIT).read_bytes()

    def fetch(self):
        """Gets the newest undamaged checkpoint and the files of the run, if the bucket's checkpoint is newer."""
        names = self.store.names()
        there, saved = remote_checkpoints.steps(names), checkpoint.steps(self.root)
        mine = max((step for step in saved if not checkpoint.damage(self.root / str(step))), default=-1)
        newer = [step for step in there if step > mine]
        if newer:
            say(f"{self.store} is at step {newer[-1]}: getting it")
            others = [name for name in names if not name.startswith(f"{remote_checkpoints.FOLDER}/")]
            # First the files: a checkpoint without its rows could not be continued.
            remote_checkpoints.copy_files(self.store, self.folder, [n for n in others if n != remote_lock.NAME])
        for step in reversed(newer):
            if not self.fetched(step):
                mine = step
                self.note(copied=_digest(self.commit(step)))
                break
        if newer and mine < 0:
            raise BadInput(f"every checkpoint in {self.store} is damaged: delete them to start again from step 0")
        if 0 in there and mine > 0 and not (self.root / "0" / remote_checkpoints.COMMIT).is_file():
            self.fetched(0)  # methods may need the first parameters
        if saved and mine > (there[-1] if there else -1):
            say(f"{self.folder} is at step {mine}, which is newer than what is in {self.store}: continuing it")
        say(f"{self.store}: the run works in {self.folder}, and is copied to the bucket after each save")

    def fetched(self, step: int) -> str:
        """Gets a checkpoint. Returns, and says, what is wrong with it; "" if it is undamaged."""
        if problem := remote_checkpoints.fetch(self.store, step, self.root):
            say(f"checkpoint {self.store}/checkpoints/{step} is damaged: {problem}; trying the previous one")
        return problem

    def check(self):
        """Raises LockLost if another process has taken over the run."""
        self.lock.check()

    def saved(self, step: int, keep: int):
        """Copies the run after a save. If that fails, says so, and the next save tries again. keep: how many
        checkpoints are kept. Raises LockLost.
        """
        self.keep = keep
        try:
            if self.behind is not None:
                self.lock.hasty.check()  # while the bucket does not answer, a save is not kept waiting again
            self.copy()
        except BucketError as error:
            self.behind = error
            say(
                f"WARNING: step {step} is saved in {self.folder}, but not in the bucket. The run goes on, and uploads "
                f"it at the next save. {error}"
            )
        else:
            if self.behind is not None:
                say(f"step {step} is in {self.store}: the bucket can be used again")
            self.behind = None

    def go_back(self, step: int):
        """Deletes the checkpoints after this step in the bucket. If that fails, the next copy or next start does it."""
        self.note(back=step)
        try:
            self.delete_later(step)
        except BucketError as error:
            say(f"WARNING: the checkpoints after step {step} are still in the bucket, until the next save. {error}")

    def delete_later(self, step: int):
        """Deletes the checkpoints after this step in the bucket."""
        names = self.store.names()
        for later in remote_checkpoints.begun(names):
            if later > step:
                remote_checkpoints.delete(self.store, later, names)
        newest = self.newest_there()
        self.note(back=None, copied=newest.digest if newest else "")

    def delete_discarded(self, saved: list[int]):
        """Deletes the checkpoints in the bucket that the local folder should have, but has not. The run went back to an
        earlier one, or they are damaged. saved: the steps in the local folder.
        """
        names, oldest = self.store.names(), min((step for step in saved if step), default=math.inf)
        for step in remote_checkpoints.begun(names):
            if step > oldest and step not in saved:
                remote_checkpoints.delete(self.store, step, names)

    def copy(self):
        """Copies what is new: checkpoints, each with the other files before its commit marker. Deletes old ones."""
        self.lock.renew()
        if self.noted["back"] is not None:
            self.delete_later(self.noted["back"])
        saved = checkpoint.steps(self.root)
        self.delete_discarded(saved)  # before new rows are copied, which do not belong to them
        names = self.store.names()
        there = remote_checkpoints.steps(names)
        kept = self.kept({*saved, *there}, saved)
        for step in sorted(kept & set(saved), reverse=True):
            if self.is_there(step, there):
                pass
            elif step != saved[-1] and (problem := checkpoint.damage(self.root / str(step))):
                say(f"checkpoint {self.root / str(step)} is damaged, and not uploaded: {problem}")
            else:
                remote_checkpoints.upload(self.store, self.root / str(step), names, self.copy_files)
            if step == saved[-1]:
                self.note(copied=_digest(self.commit(step)))
        self.copy_files()
        if "summary.json" in names and not (self.folder / "summary.json").is_file():  # of a run that was extended
            self.store.delete("summary.json")
        for step in remote_checkpoints.begun(names):
            if step not in kept and self.keep is not None:
                remote_checkpoints.delete(self.store, step, names)

    def kept(self, every: set[int], saved: list[int]) -> set[int]:
        """The steps that the bucket keeps: as many as the local folder, and the first one if it is there too."""
        if not saved:
            return every
        older = sorted((step for step in every if step < saved[-1]), reverse=True)
        more = older if self.keep is None else older[: self.keep - 1]
        return {saved[-1], *more, *({0} & set(saved))}

    def is_there(self, step: int, there: list[int]) -> bool:
        """Whether the bucket has this checkpoint. A run that went back writes a step again, with other content."""
        if step not in there:
            return False
        return self.store.read(remote_checkpoints.key(step, remote_checkpoints.COMMIT)) == self.commit(step)

    def copy_files(self):
        """Gives a sign of life, and copies the files that have changed."""
        self.lock.renew()
        for name, path in remote_checkpoints.files_of(self.folder).items():
            with contextlib.suppress(FileNotFoundError):  # the run has deleted it since it was listed
                about = path.stat()
                if self.sent.get(name) != (stamp := (about.st_mtime_ns, about.st_size)):
                    self.store.write(name, path.read_bytes())
                    self.sent[name] = stamp

    def end(self, error: BaseException | None):
        """Copies what is left, and releases the lock. error: why the run ends; None: it is finished.

        Raises BadInput if a finished run cannot be copied.
        """
        if isinstance(error, KeyboardInterrupt | LockLost):
            self.lock.stop()
            return
        behind, copied = self.behind, False
        if error is None or (self.keep is not None and behind is None):
            try:
                self.copy()
                behind, copied = None, True
            except (BucketError, LockLost) as other:
                behind = other
        if behind is None:
            self.lock.release()
            if copied:
                whole = error is None or isinstance(error, Interrupted)
                say(f"the run is in {self.store}" + ("" if whole else ", as far as it was saved"))
            return
        self.lock.stop()
        left = f"everything is in {self.folder}, but not all of it in the bucket: do not delete that folder. {behind}"
        if error is None:
            raise BadInput(left)
        say(f"WARNING: {left}")


def _digest(commit: bytes) -> str:
    return hashlib.sha256(commit).hexdigest()
