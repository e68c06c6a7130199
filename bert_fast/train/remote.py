"""A run whose folder is in a bucket: it works in a local folder, which is copied to the bucket after each save.

A bucket can neither rename nor append. So the training loop works on the disk, and keeps its rows and checkpoints in
the cache's folder runs/NAME-HASH. What is in the bucket is enough to continue on another machine.
"""

import contextlib
import math
import pathlib
import secrets
from collections.abc import Iterator

import jax

from bert_fast import BadInput, Interrupted, cached, storage
from bert_fast.data.files import atomic_write
from bert_fast.storage import BucketError
from bert_fast.train import agreement, checkpoint, remote_checkpoints, remote_lock, rollback
from bert_fast.train.remote_lock import GuardedBucket, LockLost, RemoteLock
from bert_fast.train.remote_notes import Commit, Notes, digest
from bert_fast.train.report import say
from bert_fast.train.saver import ALONE, Mirror
from bert_fast.train.uploads import Uploads

MEETING = ".meeting"  # in the local folder: a token that all processes must read


@contextlib.contextmanager
def run_folder(workdir: str | pathlib.Path) -> Iterator[tuple[pathlib.Path, Mirror]]:
    """The local folder for a run, and the mirror that copies it. If `workdir` is not a URL, nothing is copied.

    At the end of the block, everything is in the bucket, or BadInput is raised and names the local folder. With
    several processes, only the first one uses the bucket, and all must share the local folder.
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


class BucketMirror(Mirror):
    """Copies a run from its local folder to the bucket."""

    def __init__(self, store: storage.Bucket, folder: pathlib.Path):
        self.folder, self.root = folder, folder / remote_checkpoints.FOLDER
        self.lock = RemoteLock(store, say)
        self.store = GuardedBucket(store, self.may_go_on)
        self.uploads = Uploads(self.upload)
        self.notes = Notes(folder, say)
        self.step = 0  # of the newest save
        self.keep: int | None = None  # checkpoints to keep; None until the first save
        self.behind: Exception | None = None  # why the newest checkpoint is not in the bucket
        self.sent: dict[str, tuple[int, int]] = {}  # name -> time and size of a file when it was copied

    def begin(self):
        """Takes the lock, then gets from the bucket what the local folder lacks. Raises BadInput if it cannot."""
        # If lock.json was deleted, the bucket's checkpoints are assumed to belong to the run in the local folder.
        self.lock.take(self.notes.run if remote_checkpoints.steps(self.store.names()) else "")
        try:
            self.claim()
            if self.notes.back is not None:
                self.delete_later(self.notes.back)
            self.fetch()
        except BaseException:
            self.lock.release()
            raise

    def claim(self):
        """Moves the local folder aside if its run is no longer in the bucket. Also moves it aside if another machine
        has continued the run, but not from the local folder's newest checkpoint.
        """
        there, local = self.newest_there(), [digest(self.commit(step)) for step in checkpoint.steps(self.root)]
        copied = self.notes.copied
        if self.notes.run != self.lock.run:
            self.notes.move_aside(f"the run in {self.folder} is no longer the one in {self.store}")
        elif there is not None and local and there.digest != copied:
            if local[-1] == copied:  # another machine has continued from this checkpoint, or went back
                mine = {step for step in checkpoint.steps(self.root) if digest(self.commit(step)) == there.digest}
                rollback.discard_later(self.root, there.step if there.step in mine else there.step - 1)
            elif there.digest not in local:
                self.notes.move_aside(
                    f"another machine has continued {self.store}, but not from the end of {self.folder}"
                )
        self.notes.write(run=self.lock.run)

    def newest_there(self) -> Commit | None:
        """The commit marker of the newest checkpoint in the bucket."""
        for step in remote_checkpoints.steps(self.store.names())[::-1]:
            content = self.store.read(remote_checkpoints.key(step, remote_checkpoints.COMMIT))
            return Commit(step, digest(content or b""))
        return None

    def commit(self, step: int) -> bytes:
        """The commit marker of a checkpoint in the local folder."""
        return (self.root / str(step) / remote_checkpoints.COMMIT).read_bytes()

    def fetch(self):
        """If the bucket is ahead of the local folder, gets its newest undamaged checkpoint and the run's files."""
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
                self.notes.write(copied=digest(self.commit(step)))
                break
        if newer and mine < 0:
            raise BadInput(f"every checkpoint in {self.store} is damaged: delete them to start again from step 0")
        if newer:
            self.fetch_good([step for step in there if step <= mine])
        if 0 in there and mine > 0 and not (self.root / "0" / remote_checkpoints.COMMIT).is_file():
            self.fetched(0)  # a method may need the initial parameters
        if saved and mine > (there[-1] if there else -1):
            say(f"{self.folder} is at step {mine}, which is newer than what is in {self.store}: continuing it")
        say(f"{self.store}: the run works in {self.folder}, and is copied to the bucket after each save")

    def fetch_good(self, steps: list[int]):
        """Gets older checkpoints, down to one from before the skipped steps. The run may have to go back to it."""
        for step in reversed(steps):
            folder = self.root / str(step)
            there = (folder / remote_checkpoints.COMMIT).is_file() or not self.fetched(step)
            if there and checkpoint.about(folder).counters.streak == 0:
                return

    def fetched(self, step: int) -> str:
        """Gets a checkpoint. If it is damaged, says how, and returns that text. Otherwise returns an empty string."""
        if problem := remote_checkpoints.fetch(self.store, step, self.root):
            next_one = "; trying the previous one" if step else ""
            say(f"checkpoint {self.store}/checkpoints/{step} is damaged: {problem}{next_one}")
        return problem

    def may_go_on(self):
        """Called before an object is written or deleted. Raises LockLost, or GiveWay if an upload must stop."""
        self.uploads.may_go_on()
        self.lock.confirm()

    def check(self):
        """Raises LockLost if another process has taken over the run. Raises the error of an upload that failed."""
        self.lock.check()
        self.uploads.check()

    def saved(self, step: int, keep: int):
        """Asks the upload thread to copy the run. keep: how many checkpoints are kept."""
        self.step, self.keep = step, keep
        self.uploads.ask()

    def upload(self):
        """Copies the run. If that fails, says so, and the next save tries again."""
        step = self.step
        try:
            self.copy()
        except (BucketError, OSError) as error:
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
        self.uploads.cancel()
        self.notes.write(back=step)
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
        self.notes.write(back=None, copied=newest.digest if newest else "")

    def delete_discarded(self, saved: list[int]):
        """Deletes the bucket's checkpoints that the local folder should have, but lacks. It lacks them because the run
        went back to an earlier checkpoint, or because they were damaged. saved: the steps in the local folder.
        """
        names, oldest = self.store.names(), min((step for step in saved if step), default=math.inf)
        for step in remote_checkpoints.begun(names):
            if step > oldest and step not in saved:
                remote_checkpoints.delete(self.store, step, names)

    def copy(self):
        """Copies new checkpoints and the run's files, then deletes old checkpoints. The checksums.json of a checkpoint
        is copied after the checkpoint's other files and the run's files.
        """
        self.lock.renew()
        if self.notes.back is not None:
            self.delete_later(self.notes.back)
        saved = checkpoint.steps(self.root)
        self.delete_discarded(saved)  # first, because the rows copied below do not belong to these checkpoints
        names = self.store.names()
        there = remote_checkpoints.steps(names)
        kept = self.kept({*saved, *there}, saved)
        for step in sorted(kept & set(saved), reverse=True):
            with contextlib.suppress(FileNotFoundError):  # the run has deleted it meanwhile
                if not self.is_there(step, there):
                    self.copy_checkpoint(step, names, step == saved[-1])
                if step == saved[-1]:
                    self.notes.write(copied=digest(self.commit(step)))
        self.copy_files()
        if "summary.json" in names and not (self.folder / "summary.json").is_file():  # the run was extended
            self.store.delete("summary.json")
        for step in remote_checkpoints.begun(names):
            if step not in kept and self.keep is not None:
                remote_checkpoints.delete(self.store, step, names)

    def copy_checkpoint(self, step: int, names: list[str], is_newest: bool):
        """Copies a checkpoint, unless it is damaged. Raises BucketError if the newest one is damaged."""
        with remote_checkpoints.linked(self.root / str(step)) as folder:
            problem = checkpoint.damage(folder)
            if problem is None:
                remote_checkpoints.upload(self.store, folder, names, self.copy_files)
                return
        problem = f"checkpoint {self.root / str(step)} is damaged, and not uploaded: {problem}"
        if is_newest:
            raise BucketError(problem)
        say(problem)

    def kept(self, every: set[int], saved: list[int]) -> set[int]:
        """The steps that the bucket keeps: as many as the local folder, and step 0 if the local folder has it."""
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
        """Renews the lock, and copies the files that have changed."""
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
        try:
            if not isinstance(error, KeyboardInterrupt | LockLost):
                self.finish(error)
        finally:
            self.lock.stop()

    def finish(self, error: BaseException | None):
        """Does the copying for `end`. `end` skips it after KeyboardInterrupt and LockLost."""
        behind, copied = self.settle(), False
        if error is None or (self.keep is not None and behind is None):
            try:
                self.copy()
                behind, copied = None, True
            except Exception as other:  # the run's own error is the one to raise
                behind = other
        if behind is not None:
            left = (
                f"everything is in {self.folder}, but not all of it in the bucket: do not delete that folder. {behind}"
            )
            if error is None:
                raise BadInput(left) from behind
            say(f"WARNING: {left}")
        if behind is None:
            self.lock.release()
        if copied:
            whole = error is None or isinstance(error, Interrupted)
            say(f"the run is in {self.store}" + ("" if whole else ", as far as it was saved"))

    def settle(self) -> Exception | None:
        """Waits for the upload in progress. Cancels it if a newer save is waiting. Returns why an upload failed."""
        if self.uploads.asked:
            self.uploads.cancel()
            self.behind = None  # the error of an earlier upload; the newest save has not been tried yet
        self.uploads.wait()
        error, self.uploads.error = self.uploads.error, None
        return error if isinstance(error, Exception) else self.behind
