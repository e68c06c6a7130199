"""The checkpoints and other files of a run in a bucket.

    URL/checkpoints/STEP/...              the files of a checkpoint, as in a run folder
    URL/checkpoints/STEP/checksums.json   written last and deleted first: without it, there is no checkpoint
    URL/metrics.jsonl, ...                the other files of a run folder

A bucket cannot rename a folder. So checksums.json (the commit marker) shows that a checkpoint is complete; on a disk,
its folder's name does.
"""

import contextlib
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Iterator

import filelock

from bert_fast import BadInput, cached, storage
from bert_fast.data.fetched import write_object
from bert_fast.data.files import full_disk_reported, rename_synced
from bert_fast.storage import Bucket, BucketError

FOLDER = "checkpoints"
COMMIT = "checksums.json"
READ = ("config.json", "stages.json", "metrics.jsonl", "summary.json", "costs.json", "results.json")
PATIENCE = 3600.0  # seconds to wait for another process that reads the same run


def key(step: int, name: str) -> str:
    """The name of an object of a checkpoint."""
    return f"{FOLDER}/{step}/{name}"


def begun(names: Collection[str]) -> dict[int, list[str]]:
    """The steps that have any object, complete or not, with the names of their objects."""
    found: dict[int, list[str]] = {}
    for name in names:
        if match := re.match(rf"{FOLDER}/(\d+)/", name):
            found.setdefault(int(match[1]), []).append(name)
    return found


def steps(names: Collection[str]) -> list[int]:
    """The steps of the complete checkpoints among these objects, oldest first."""
    return sorted(step for step, own in begun(names).items() if key(step, COMMIT) in own)


def upload(store: Bucket, folder: pathlib.Path, names: Collection[str], before_commit: Callable[[], None]):
    """Writes a checkpoint to the bucket. `before_commit` is called when only its commit marker is lacking.

    names: the objects there. Raises BucketError, also if the local checkpoint is damaged.
    """
    step, commit = int(folder.name), (folder / COMMIT).read_bytes()
    if key(step, COMMIT) in names:  # a checkpoint of this step that the run has replaced
        store.delete(key(step, COMMIT))
    sums: dict[str, str] = json.loads(commit)
    for name, expected in sums.items():
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise BucketError(f"{folder / name} has changed since it was written, so this checkpoint is not uploaded")
        store.write(key(step, name), content)
    for name in set(begun(names).get(step, ())) - {key(step, name) for name in (*sums, COMMIT)}:
        store.delete(name)
    before_commit()
    store.write(key(step, COMMIT), commit)


def delete(store: Bucket, step: int, names: Collection[str]):
    """Deletes a checkpoint, its commit marker first. names: the objects in the bucket."""
    own = begun(names).get(step, [])
    for name in sorted(own, key=lambda name: name != key(step, COMMIT)):
        store.delete(name)


def fetch(store: Bucket, step: int, root: pathlib.Path) -> str:
    """Copies a checkpoint into `root`, replacing one of the same step. Returns what is wrong with it, else "".

    A checkpoint that is damaged in the bucket is not copied.
    """
    part, old = root / f"{step}.part", root / f"{step}.old"
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    with full_disk_reported(root):
        part.mkdir(parents=True)
        commit = store.read(key(step, COMMIT)) or b""
        problem = compared(commit, lambda name: store.read(key(step, name)), part)
        if not problem:
            (part / COMMIT).write_bytes(commit)
            rename_synced(part, root / str(step), old)
            shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(part, ignore_errors=True)
    return problem


def compared(commit: bytes, read: Callable[[str], bytes | None], into: pathlib.Path | None = None) -> str:
    """What is wrong with a checkpoint's files, else "".

    commit: its checksums. read: returns a file's content. into: a folder that gets a copy.
    """
    try:
        sums = {str(name): str(expected) for name, expected in json.loads(commit).items()}
    except (ValueError, AttributeError) as error:
        return f"{COMMIT} cannot be read ({error})"
    for name, expected in sums.items():
        if not is_inside(name):
            return f"{COMMIT} names {name}, which is outside the checkpoint"
        content = read(name)
        if content is None:
            return f"{name} is missing"
        if hashlib.sha256(content).hexdigest() != expected:
            return f"{name} has changed since it was written"
        if into is not None:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_bytes(content)
    return ""


def local(place: str | pathlib.Path, warn: Callable[[str], object] = print) -> pathlib.Path:
    """The run folder or checkpoint at a place: the place itself, or a local copy if it is a URL.

    A copy of a run has its newest undamaged checkpoint, and the files that describe the run. `warn` gets a line for
    each damaged checkpoint. Raises BadInput if there is no checkpoint at the URL, or if every one is damaged.
    """
    if not storage.is_url(place):
        return pathlib.Path(place)
    url = str(place).rstrip("/")
    match = re.fullmatch(rf"(.+)/{FOLDER}/(\d+)", url)
    run = match[1] if match else url
    store = storage.open(run)
    names = store.names()
    found = steps(names)
    asked = [int(match[2])] if match else found
    if not set(asked) & set(found):
        there = f"it has the steps {', '.join(map(str, found))}" if found else "it has none"
        raise BadInput(f"no checkpoint in {url}: expected the --workdir of a run, or its {FOLDER}/STEP; {there}")
    with _copy_of(store) as folder:
        copy_files(store, folder, [name for name in names if name in READ])
        step = _copied(store, asked, folder / FOLDER, warn)
    return folder / FOLDER / str(step) if match else folder


def described(place: str | pathlib.Path) -> pathlib.Path:
    """As `local`, but the copy lacks the checkpoints, or has older ones. Raises BadInput if nothing is at the URL."""
    if not storage.is_url(place):
        return pathlib.Path(place)
    store = storage.open(str(place))
    names = [name for name in store.names() if name in READ]
    if not names:
        raise BadInput(f"no run in {place}: expected the --workdir of pretrain, which has written a row there")
    with _copy_of(store) as folder:
        copy_files(store, folder, names)
    return folder


@contextlib.contextmanager
def _copy_of(store: Bucket) -> Iterator[pathlib.Path]:
    """The folder for a local copy of a run, which no other process changes inside the block."""
    folder = cached.folder("read") / cached.digest(store.url) / storage.name_of(store.url)
    with full_disk_reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(folder.with_name("lock"), timeout=PATIENCE):
                yield folder
        except filelock.Timeout:
            raise BadInput(
                f"another process has read {store} for {PATIENCE:.0f} s: end it, then run the same command again"
            ) from None


def _copied(store: Bucket, asked: Collection[int], root: pathlib.Path, warn: Callable[[str], object]) -> int:
    """The newest of these steps that is undamaged. Its copy is in `root`, and no other one."""
    for step in sorted(asked, reverse=True):
        commit, folder = store.read(key(step, COMMIT)), root / str(step)
        have = (folder / COMMIT).read_bytes() if (folder / COMMIT).is_file() else None
        intact = have == commit and not compared(commit or b"", _reader(folder))
        problem = "" if intact else fetch(store, step, root)
        if not problem:
            for other in root.iterdir():
                if other.name != str(step):
                    shutil.rmtree(other, ignore_errors=True)
            return step
        warn(f"checkpoint {store}/{FOLDER}/{step} is damaged: {problem}")
    raise BadInput(f"every checkpoint in {store} that could be used is damaged: give another one, or train again")


def _reader(folder: pathlib.Path) -> Callable[[str], bytes | None]:
    return lambda name: (folder / name).read_bytes() if (folder / name).is_file() else None


def copy_files(store: Bucket, folder: pathlib.Path, names: Collection[str]):
    """Copies objects into a folder, each atomically. Leaves out those that a run would not have copied there."""
    for name in names:
        if is_inside(name) and not name.startswith("."):
            write_object(store, name, folder / name)


def is_inside(name: str) -> bool:
    """Whether an object's name is the path of a file inside a folder. A name that ends with "/" is no file's."""
    return not {"", ".", ".."} & set(name.split("/"))


def files_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a run folder by name, without checkpoints, hidden files and files that are being written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = inside.parts[0] == FOLDER or inside.parts[0].startswith(".") or path.name.endswith(".partial")
        if not hidden and path.is_file():
            found[inside.as_posix()] = path
    return found
