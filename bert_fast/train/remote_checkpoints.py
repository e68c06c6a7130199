"""The checkpoints and other files of a run in a bucket.

    URL/checkpoints/STEP/...              the files of a checkpoint, as in a run folder
    URL/checkpoints/STEP/checksums.json   written last and deleted first: without it, there is no checkpoint
    URL/metrics.jsonl, ...                the other files of a run folder

On a disk, the name of a checkpoint's folder shows that the checkpoint is complete. But a bucket cannot rename a folder.
There, the presence of checksums.json (the commit marker) shows that a checkpoint is complete.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Iterator

from bert_fast import BadInput, cached, storage
from bert_fast.data import fetched
from bert_fast.data.files import atomic_write, full_disk_reported, rename_synced
from bert_fast.storage import Bucket
from bert_fast.train import checksums

FOLDER = "checkpoints"
COMMIT = checksums.FILE
LINKED = ".uploading"  # a folder in a run folder, with the checkpoint that is being uploaded
READ = ("config.json", "stages.json", "metrics.jsonl", "summary.json", "costs.json", "results.json")
TRIES = 5  # attempts to read a run that changes meanwhile


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
    """Writes a checkpoint to the bucket, its commit marker last. Calls `before_commit` just before the marker.

    names: the objects that are in the bucket. Raises BucketError.
    """
    step, commit = int(folder.name), (folder / COMMIT).read_bytes()
    if key(step, COMMIT) in names:  # an older checkpoint of this step, which the run has replaced
        store.delete(key(step, COMMIT))
    sums: dict[str, str] = json.loads(commit)
    for name in sums:
        store.write(key(step, name), (folder / name).read_bytes())
    for name in set(begun(names).get(step, ())) - {key(step, name) for name in (*sums, COMMIT)}:
        store.delete(name)
    before_commit()
    store.write(key(step, COMMIT), commit)


@contextlib.contextmanager
def linked(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A second folder with the files of a checkpoint, which stay there if the run deletes the checkpoint meanwhile.

    Raises FileNotFoundError if the run has deleted it already.
    """
    place = folder.parents[1] / LINKED
    shutil.rmtree(place, ignore_errors=True)  # left by a killed process
    try:
        yield shutil.copytree(folder, place / folder.name, copy_function=_link)
    except shutil.Error as error:
        if (folder / COMMIT).is_file():
            raise  # a full disk, for example
        raise FileNotFoundError(f"{folder} was deleted while it was read") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _link(path: str, new: str):
    try:
        os.link(path, new)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copy2(path, new)


def delete(store: Bucket, step: int, names: Collection[str]):
    """Deletes a checkpoint, its commit marker first. names: the objects in the bucket."""
    own = begun(names).get(step, [])
    for name in sorted(own, key=lambda name: name != key(step, COMMIT)):
        store.delete(name)


def fetch(store: Bucket, step: int, root: pathlib.Path) -> str:
    """Copies a checkpoint into `root`, where it replaces a checkpoint of the same step.

    A checkpoint that is damaged in the bucket is not copied. Returns what is wrong with it; "" if nothing is.
    """
    part, old = root / f"{step}.part", root / f"{step}.old"
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    with full_disk_reported(root):
        part.mkdir(parents=True)
        commit = store.read(key(step, COMMIT)) or b""
        (part / COMMIT).write_bytes(commit)
        names = _names_in(commit)
        outside = [name for name in names if not is_inside(name)]
        for name in () if outside else names:
            _copy_object(store, key(step, name), part / name)
        problem = f"{COMMIT} names {outside[0]}, which is outside the checkpoint" if outside else checksums.damage(part)
        if problem is None:
            rename_synced(part, root / str(step), old)
            shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(part, ignore_errors=True)
    return problem or ""


def _names_in(commit: bytes) -> list[str]:
    """The files that a commit marker names; none if it is damaged."""
    try:
        return list(json.loads(commit).keys())
    except (ValueError, AttributeError):
        return []


def _copy_object(store: Bucket, name: str, path: pathlib.Path):
    """Writes an object to a file, atomically. Does nothing if there is no such object."""
    content = store.read(name)
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_reported(path.parent):
            atomic_write(path, content)


def local(place: str | pathlib.Path, warn: Callable[[str], object] = print) -> pathlib.Path:
    """The run folder or checkpoint at a place: the place itself, or a local copy if it is a URL.

    A copy of a run has its newest undamaged checkpoint, and the files that describe the run. `warn` gets a line for
    each damaged checkpoint. Raises BadInput if there is no checkpoint at the URL, or if every one is damaged.
    """
    if not storage.is_url(place):
        return pathlib.Path(place)
    url = str(place).rstrip("/")
    match = re.fullmatch(rf"(.+)/{FOLDER}/(\d+)", url)
    store = storage.open(match[1] if match else url)
    for _ in range(TRIES):
        names = store.names()
        found = steps(names)
        asked = [int(match[2])] if match else found
        if not set(asked) & set(found):
            there = f"it has the steps {', '.join(map(str, found))}" if found else "it has none"
            raise BadInput(f"no checkpoint in {url}: expected the --workdir of a run, or its {FOLDER}/STEP; {there}")
        with _copy_of(store) as folder:
            _copy_facts(store, folder, names)
            step = _copied(store, asked, folder / FOLDER, warn)
            if step is None:
                continue
            if match:
                return folder / FOLDER / str(step)
            for other in (folder / FOLDER).iterdir():
                if other.name != str(step):
                    shutil.rmtree(other, ignore_errors=True)
            return folder
    raise BadInput(f"{url} has changed {TRIES} times while it was read: wait until the run saves less often")


def described(place: str | pathlib.Path) -> pathlib.Path:
    """The run folder at a place: the place itself, or a local copy if it is a URL.

    Copies only the files that describe the run. Checkpoints in the copy, if any, are from earlier calls of `local`.
    Raises BadInput if the URL has none of these files.
    """
    if not storage.is_url(place):
        return pathlib.Path(place)
    store = storage.open(str(place))
    names = [name for name in store.names() if name in READ]
    if not names:
        raise BadInput(f"no run in {place}: expected the --workdir of a run that has written a row")
    with _copy_of(store) as folder:
        _copy_facts(store, folder, names)
    return folder


@contextlib.contextmanager
def _copy_of(store: Bucket) -> Iterator[pathlib.Path]:
    """The folder for a local copy of a run, which no other process changes inside the block."""
    whole = cached.folder("read") / cached.digest(store.url)
    folder = whole / storage.name_of(store.url)
    with full_disk_reported(folder), fetched.alone(whole):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _copy_facts(store: Bucket, folder: pathlib.Path, names: Collection[str]):
    """Copies the files that describe a run, and deletes copies of files that are no longer in the bucket.

    names: the objects in the bucket.
    """
    copy_files(store, folder, [name for name in READ if name in names])
    for name in READ:
        if name not in names:
            (folder / name).unlink(missing_ok=True)


def _copied(store: Bucket, asked: Collection[int], root: pathlib.Path, warn: Callable[[str], object]) -> int | None:
    """Copies the newest undamaged checkpoint of the steps `asked` to `root`, and returns its step.

    Returns None if a run has changed one of these checkpoints meanwhile. Raises BadInput if all are damaged.
    """
    for step in sorted(asked, reverse=True):
        commit, folder = store.read(key(step, COMMIT)), root / str(step)
        have = (folder / COMMIT).read_bytes() if (folder / COMMIT).is_file() else None
        intact = have == commit and not checksums.damage(folder)
        problem = "" if intact else fetch(store, step, root)
        if not problem:
            return step
        if commit is None or store.read(key(step, COMMIT)) != commit:
            return None
        warn(f"checkpoint {store}/{FOLDER}/{step} is damaged: {problem}")
    raise BadInput(f"every checkpoint in {store} that was asked for is damaged: give another one, or train again")


def copy_files(store: Bucket, folder: pathlib.Path, names: Collection[str]):
    """Copies objects into a folder, each atomically. Leaves out hidden files, and names that lead out of the folder."""
    for name in names:
        if is_inside(name) and not name.startswith("."):
            _copy_object(store, name, folder / name)


def is_inside(name: str) -> bool:
    """Whether an object's name is the path of a file inside a folder. A name that ends with "/" is not."""
    return not {"", ".", ".."} & set(name.split("/"))


def files_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a run folder by name, without checkpoints, hidden files and files that are being written."""
    found = {}
    for top in sorted(folder.iterdir()):
        if top.name == FOLDER or top.name.startswith("."):
            continue
        for path in (top, *sorted(top.rglob("*"))):
            if path.is_file() and not path.name.endswith(".partial"):
                found[path.relative_to(folder).as_posix()] = path
    return found
