"""Local copies of shards folders that are in a bucket. A copy is made once, and used by all runs on this machine.

A copy is in the cache's folder shards/FINGERPRINT: the first 32 characters of the fingerprint in its manifest.
"""

import contextlib
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import filelock

from bert_fast import BadInput, cached, storage
from bert_fast.data.files import atomic_write, full_disk_reported

PATIENCE = 3600.0  # seconds to wait while another process is making the same copy, but writes nothing
POLL = 1.0  # seconds between looks at that process's progress
SPEAK = 10.0  # seconds between lines that show progress
_manifests: dict[
    str, pathlib.Path
] = {}  # URL -> the copy of its manifest, which this process has compared with the bucket's
_complete: set[pathlib.Path] = set()  # copies that this process has found or made complete


def folder(place: str | pathlib.Path) -> pathlib.Path:
    """The shards folder at a place: the place itself, or its local copy if it is a URL. Makes or completes the copy.

    Raises BadInput if there are no shards at the URL, if they are damaged there, or if the bucket cannot be used.
    """
    if not storage.is_url(place):
        return pathlib.Path(place)
    copy = manifest(place).parent
    if copy not in _complete:
        _complete_copy(str(place), copy, check=False)
    return copy


def manifest(place: str | pathlib.Path) -> pathlib.Path:
    """The manifest.json of the shards folder at a place. If the place is a URL, copies only this file.

    Raises BadInput as `folder` does.
    """
    if not storage.is_url(place):
        return pathlib.Path(place) / "manifest.json"
    url = str(place)
    if url not in _manifests or not _manifests[url].is_file():
        _manifests[url] = _copied_manifest(url)
        _complete.discard(_manifests[url].parent)  # if the manifest was deleted, other files may be too
    return _manifests[url]


def repaired(place: str | pathlib.Path) -> bool:
    """Replaces the damaged files in the local copy of a URL. Returns False, and does nothing, for a folder."""
    if not storage.is_url(place):
        return False
    copy = manifest(place).parent
    print(f"{copy}, the copy of {place}, is damaged: getting the damaged files again", file=sys.stderr, flush=True)
    _complete_copy(str(place), copy, check=True)
    return True


def listed(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of a manifest's files: name, sha256 and size. The vocabulary is not among them."""
    for split in manifest["splits"].values():
        yield from (*split["shards"], split["lengths"])
    if "tokenizer" in manifest:  # format 1 did not list it
        yield manifest["tokenizer"]


def _copied_manifest(url: str) -> pathlib.Path:
    store = storage.open(url)
    content = store.read("manifest.json")
    if content is None:
        store.check()
        raise BadInput(f"no manifest.json in {url}: expected a shards folder made by `prepare`, copied there as it is")
    try:
        name = str(json.loads(content)["fingerprint"])[:32]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{url}/manifest.json is damaged ({error!r}): copy it there again") from None
    if not name.isalnum():
        raise BadInput(f"{url}/manifest.json is damaged: its fingerprint is {name!r}: copy it there again")
    path = cached.folder("shards") / name / "manifest.json"
    with full_disk_reported(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:
            atomic_write(path, content)
    return path


def _complete_copy(url: str, copy: pathlib.Path, check: bool):
    """Gets the files that a copy lacks. check: whether to compare the checksums of files of the right size too."""
    about = json.loads((copy / "manifest.json").read_bytes())
    try:
        wanted = {entry["file"]: (entry["sha256"], entry["bytes"]) for entry in listed(about)}
        wanted["vocab.txt"] = about["vocab"]["sha256"], None
        if any(pathlib.PurePath(file).name != file for file in wanted):
            raise ValueError("a file outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{url}/manifest.json is damaged ({error!r}): copy it there again") from None
    with full_disk_reported(copy), alone(copy):
        lacking = {file: facts for file, facts in wanted.items() if not _there(copy / file, *facts, check)}
        _fetch(storage.open(url), lacking, copy)
    _complete.add(copy)


def alone(copy: pathlib.Path) -> filelock.AcquireReturnProxy:
    """Holds the lock of a copy until the end of a `with` block.

    Waits while another process holds the lock. Raises BadInput if that process writes nothing for PATIENCE seconds.
    """
    copy.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(copy.with_name(f"{copy.name}.lock"))
    seen, since, waits = 0.0, time.monotonic(), False
    while time.monotonic() - since < PATIENCE:
        with contextlib.suppress(filelock.Timeout):
            return lock.acquire(timeout=POLL)
        if not waits:
            print(f"waiting for another process, which makes {copy}", file=sys.stderr, flush=True)
        waits = True
        if (changed := _changed(copy)) > seen:
            seen, since = changed, time.monotonic()
    raise BadInput(
        f"another process holds {lock.lock_file}, and has written nothing for {PATIENCE:.0f} s: end it, then run the "
        "same command again"
    )


def _changed(folder: pathlib.Path) -> float:
    """When any file in a folder was last written, in seconds since 1970."""
    newest = 0.0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a partial file that was renamed in the meantime
            newest = max(newest, path.stat().st_mtime)
    return newest


def _there(path: pathlib.Path, sha256: str, size: int | None, check: bool) -> bool:
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    return not (check or size is None) or _digest(path.read_bytes()) == sha256


def _fetch(store: storage.Bucket, lacking: dict[str, tuple[str, int | None]], copy: pathlib.Path):
    """Gets the files `lacking` from the bucket. Raises BadInput if one is missing or damaged there."""
    total, done, said = sum(size or 0 for _, size in lacking.values()), 0, 0.0
    for number, (file, (sha256, size)) in enumerate(lacking.items(), 1):
        if time.monotonic() - said > SPEAK or number == len(lacking):
            said = time.monotonic()
            line = f"{store}: getting file {number} of {len(lacking)} ({done / 1e6:,.0f} of {total / 1e6:,.0f} MB done)"
            print(line, file=sys.stderr, flush=True)
        content = store.read(file)
        if content is None:
            raise BadInput(f"{store}/{file} is missing, but the manifest lists it: copy the shards there again")
        if (digest := _digest(content)) != sha256:
            raise BadInput(
                f"{store}/{file} is damaged: it has sha256 {digest[:12]}..., expected {sha256[:12]}...: copy the "
                "shards there again"
            )
        atomic_write(copy / file, content)
        done += size or 0


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
