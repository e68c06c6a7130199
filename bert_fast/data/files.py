"""Files that are whole or absent: writing by renaming, and a full disk told as what it is."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO

from bert_fast import BadInput


def atomic_write(path: pathlib.Path, content: bytes) -> None:
    """Puts `content` at `path` so that a reader, or a run killed meanwhile, never sees a part of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_json(path: pathlib.Path, value: dict) -> None:
    """Puts `value` at `path` as indented JSON, whole or not at all."""
    atomic_write(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to be filled, which becomes `out` at the end of the block, and is gone where the block fails.

    Raises BadInput where there is something at `out`, or it cannot be written.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there already: give a folder that is new or empty, or delete it")
    part = out.with_name(f".{out.name}.unfinished")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BadInput(f"{out} cannot be written ({error.strerror or error}): nothing is left of it") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def hold(path: pathlib.Path, otherwise: str) -> IO:
    """A lock file that this process alone holds, until it is closed or the process ends, however it does.

    Raises BadInput with the text `otherwise` where another process holds it. Where a file system knows no locks it
    holds nothing.
    """
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise BadInput(otherwise) from None
    except OSError:
        pass
    return lock


@contextlib.contextmanager
def full_disk_told(folder: pathlib.Path) -> Iterator[None]:
    """Raises BadInput in place of the error of a disk, or quota, that is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(
            f"no space left for {folder} ({error.strerror}): what is finished is kept; free some space "
            "and run the same command again, it continues from there"
        ) from error
