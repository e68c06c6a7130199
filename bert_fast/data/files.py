"""Writes files and folders atomically, locks them, and reports a full disk clearly."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import IO

from bert_fast import BadInput


def atomic_write(path: pathlib.Path, content: bytes) -> None:
    """Writes `content` to `path` atomically, even if the process is killed while it writes."""
    # Processes of two machines may have the same number.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk and would survive a power failure."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def rename_synced(folder: pathlib.Path, name: pathlib.Path, aside: pathlib.Path | None = None) -> None:
    """Renames a folder once all its content is on the disk, so that a folder called `name` is never half written.

    aside: if there is a folder called `name` already, it is renamed to `aside` first.
    """
    for path in (*folder.rglob("*"), folder):
        sync(path)
    if aside is not None and name.exists():
        name.rename(aside)
    folder.rename(name)
    sync(name.parent)


def atomic_json(path: pathlib.Path, value: dict) -> None:
    """Writes `value` to `path` as indented JSON, atomically."""
    atomic_write(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder to fill. It becomes `out` at the end of the block, and is deleted if the block fails.

    Raises BadInput if `out` is a file or a folder with content, or cannot be written.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} already exists: give a new or empty folder, or delete it")
    part = out.with_name(f".{out.name}.unfinished")
    try:
        shutil.rmtree(part, ignore_errors=True)  # left by a killed run
        part.mkdir(parents=True)
        yield part
        rename_synced(part, out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BadInput(
            f"{out} cannot be written ({error.strerror or error}): the partial output was removed"
        ) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def hold(path: pathlib.Path, otherwise: str) -> IO:
    """A lock file that only this process holds, until the file is closed or the process ends in any way.

    Raises BadInput with the text `otherwise` if another process holds it. On a file system without locks,
    nothing is locked.
    """
    lock = path.open("a")  # without changing its time, which is a run's last sign of life
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise BadInput(otherwise) from None
    except OSError:
        pass
    return lock


@contextlib.contextmanager
def full_disk_reported(folder: pathlib.Path) -> Iterator[None]:
    """Raises BadInput in place of the OSError of a full disk or an exhausted quota."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(
            f"no space left for {folder} ({error.strerror}): finished work is kept; free some space "
            "and run the same command again to continue"
        ) from error


def check_output(folder: pathlib.Path, flag: str):
    """Raises BadInput if `folder` is a file or cannot be written. If it does not exist, its nearest existing parent is
    checked instead.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    what = f"{flag}={folder}" if place == folder.absolute() else f"{flag}={folder}: {place}"
    if not place.is_dir():
        raise BadInput(f"{what} is a file: expected a folder, or a path that does not exist yet")
    if not os.access(place, os.W_OK | os.X_OK):
        raise BadInput(f"{what} cannot be written: get permission to write there, or choose another folder")
