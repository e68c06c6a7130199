"""Keeps a work folder (shards, runs) in a place that outlives the runtime: a folder on Google Drive, or the Hub.

Runs write to the runtime's own disk. Drive's mount is a cache that is uploaded later, file by file. A file that is
being appended to may be out of date there for a long time, and a half-uploaded file may remain
(googlecolab/colabtools#287, #2607). So nothing is appended there: each file is copied whole, first under a temporary
name. Each checkpoint is copied as a whole too. Checkpoints contain checksums, so a run can continue from the newest
checkpoint that arrived undamaged.
"""

import contextlib
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from bert_fast import BadInput
from bert_fast.train.report import say

MINUTES = 5.0
DRIVE = pathlib.Path("/content/drive")  # where Colab mounts Google Drive
CHECKPOINTS = "checkpoints"
WHOLE = "checksums.json"  # a checkpoint is complete if it has this file
SKIPPED = (".lock", ".part", ".partial", ".old")  # locks, and files that are being written or deleted
PART = ".part"
MARKER = "kept-by-bert_fast"  # a file that marks a repository of kept work
LINK = ".kept-in"  # a file of a work folder, with the places that have held this work, one a line


class Place(Protocol):
    """Where a work folder is kept."""

    def push(self, work: pathlib.Path) -> None: ...
    def pull(self, work: pathlib.Path) -> None: ...
    def holds_work(self) -> bool: ...


class Folder:
    """A folder that outlives the runtime, such as one on Google Drive."""

    def __init__(self, folder: str | pathlib.Path):
        self.folder = pathlib.Path(folder)
        if self.folder.is_relative_to(DRIVE) and not (DRIVE / "MyDrive").is_dir():
            raise BadInput(
                f"{folder} is on Google Drive, which is not mounted: run the cell that asks where to keep work"
            )

    def push(self, work: pathlib.Path):
        mirror(work, self.folder)

    def pull(self, work: pathlib.Path):
        mirror(self.folder, work)

    def holds_work(self) -> bool:
        return any(files(self.folder))


class Hub:
    """A repository on the Hugging Face Hub. Each push is one commit, so it arrives completely or not at all.

    A push first copies the work folder to a folder next to it, and uploads this copy. The reason is that a run may
    remove a checkpoint from the work folder during the upload.
    """

    def __init__(self, name: str, api: Any = None):
        """name: USER/NAME. If there is no such repository, a push creates a private one. api: an `HfApi`."""
        if api is None:
            import huggingface_hub

            api = huggingface_hub.HfApi()
        self.name, self.api = name, api

    def copy_of(self, work: pathlib.Path) -> pathlib.Path:
        return work.with_name(f".{work.name}.hub")

    def refuse_foreign(self):
        """Raises BadInput for a repository that is public, or that holds files other than kept work."""
        if not self.api.repo_exists(self.name):
            return
        if not self.api.repo_info(self.name).private:
            raise BadInput(f"hub:{self.name} is public, and work in progress would be too: choose another name")
        found = set(self.api.list_repo_files(self.name)) - {".gitattributes"}
        if found and MARKER not in found:
            raise BadInput(
                f"hub:{self.name} holds other files ({', '.join(sorted(found)[:3])}), which a copy would delete: "
                "choose another name"
            )

    def push(self, work: pathlib.Path):
        self.refuse_foreign()
        copy = self.copy_of(work)
        mirror(work, copy)
        (copy / MARKER).touch()
        self.api.create_repo(self.name, private=True, exist_ok=True)
        self.api.upload_folder(repo_id=self.name, folder_path=str(copy), delete_patterns="*")

    def pull(self, work: pathlib.Path):
        try:
            self.api.whoami()
        except Exception as error:  # no token, a wrong one, or no network: report it before hours of training
            raise BadInput(
                f"the Hugging Face Hub refuses hub:{self.name} ({error}): add the secret HF_TOKEN, with a token that "
                "may write, or call huggingface_hub.login()"
            ) from error
        self.refuse_foreign()
        if not self.api.repo_exists(self.name):
            return
        copy = self.copy_of(work)
        self.api.snapshot_download(self.name, local_dir=str(copy))
        shutil.rmtree(copy / ".cache", ignore_errors=True)  # files of the Hub's client
        mirror(copy, work)

    def holds_work(self) -> bool:
        return self.api.repo_exists(self.name) and MARKER in self.api.list_repo_files(self.name)


def place(text: str) -> Place | None:
    """The place that `text` names: a folder, `hub:USER/NAME`, or "" for none. Raises BadInput."""
    if not text:
        return None
    if not text.startswith("hub:"):
        return Folder(text)
    name = text.removeprefix("hub:")
    if name.count("/") != 1 or not all(name.split("/")):
        raise BadInput(f"{text!r} is not a place to keep work in: expected a folder, or hub:USER/NAME")
    return Hub(name)


def resume(work: str | pathlib.Path, where: str) -> None:
    """Fetches the kept copy of a work folder, unless the folder already has it. Prints what it found.

    where: as in `place`. Raises BadInput if the folder has files of its own and the place holds other work.
    """
    work, kept_at = pathlib.Path(work), place(where)
    if kept_at:
        fetch(work, where, kept_at)
    found = any(files(work))
    steps = [int(path.name) for path in checkpoints(work)]
    newest = f", newest checkpoint: step {max(steps):,}" if steps else ""
    say(f"{work}: continuing{newest}" if found else f"{work}: nothing is kept yet, starting from the beginning")


def fetch(work: pathlib.Path, where: str, kept_at: Place):
    """Makes a work folder a copy of a place, once. A fetch that was interrupted is done again."""
    link, begun = work / LINK, f"fetching {where}"
    places = link.read_text().splitlines() if link.is_file() else []
    if where in places:
        return
    if begun not in places and any(files(work)) and kept_at.holds_work():
        raise BadInput(
            f"{work} has files of its own, and {where} holds other work, which would be replaced: choose another "
            f"place, or move {work} away to continue the work in {where}"
        )
    work.mkdir(parents=True, exist_ok=True)
    others = [place for place in places if place != begun]
    link.write_text("\n".join([*others, begun]))
    kept_at.pull(work)
    link.write_text("\n".join([*others, where]))


@contextlib.contextmanager
def kept(work: str | pathlib.Path, where: str, minutes: float = MINUTES) -> Iterator[None]:
    """Copies a work folder to the place `where`: every few minutes, and at the end of the block, even after an error.

    First fetches what is kept there, as `resume` does. While the block runs, a failed copy is reported and retried. If
    the copy at the end fails, its error is raised. where: as in `place`.
    """
    work, kept_at = pathlib.Path(work), place(where)
    if kept_at is None:
        yield
        return
    fetch(work, where, kept_at)
    over = threading.Event()

    def copy():
        try:
            kept_at.push(work)
        except Exception as error:  # a full Drive or a network failure must not end hours of training
            say(f"{work} was not copied to {where}: {error}; trying again later")

    def repeat():
        while not over.wait(60 * minutes):
            copy()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        kept_at.push(work)
        say(f"{work} is kept in {where}")


def mirror(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the complete checkpoints and the other `files` of `source` to `target`.

    New checkpoints come first, then other files that changed: a log must not be older than a checkpoint next to it.
    Checkpoints that a run in `source` has replaced are removed last, so `target` never loses a run's only complete one.
    """
    have = {path.relative_to(source) for path in checkpoints(source)}
    for path in sorted(have, key=lambda path: (str(path.parent), int(path.name))):
        if not same_checkpoint(source / path, target / path):
            try:
                copy_whole(source / path, target / path)
            except (FileNotFoundError, shutil.Error):
                if (source / path / WHOLE).is_file():
                    raise  # otherwise the run has removed it in the meantime, and has a newer one
    for file in files(source):
        path = file.relative_to(source)
        if CHECKPOINTS not in path.parts and changed(file, target / path):
            copy_file(file, target / path)
    if all((target / path / WHOLE).is_file() for path in have):
        runs = {path.parent for path in have}
        for path in checkpoints(target):
            name = path.relative_to(target)
            if name not in have and name.parent in runs:
                shutil.rmtree(path)


def checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """The complete checkpoints below a folder."""
    found = folder.rglob(f"{CHECKPOINTS}/*/{WHOLE}") if folder.is_dir() else ()
    return [path.parent for path in found if path.parent.name.isdigit()]


def same_checkpoint(folder: pathlib.Path, copy: pathlib.Path) -> bool:
    """Whether two complete checkpoints are equal. After a rollback, a run may save a step again with other content."""
    try:
        return (folder / WHOLE).read_bytes() == (copy / WHOLE).read_bytes()
    except FileNotFoundError:
        return False


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files below a folder, without LINK, locks, and files that are being written or deleted."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        parts = path.relative_to(folder).parts
        if path.is_file() and path.name != LINK and not any(part.endswith(SKIPPED) for part in parts):
            yield path


def changed(file: pathlib.Path, copy: pathlib.Path) -> bool:
    """Whether a copy is missing, older than the file, or of a different size."""
    if not copy.is_file():
        return True
    ours, theirs = file.stat(), copy.stat()
    return ours.st_size != theirs.st_size or ours.st_mtime > theirs.st_mtime


def copy_whole(folder: pathlib.Path, copy: pathlib.Path):
    """Copies a folder under a temporary name, then renames it."""
    part = copy.with_name(copy.name + PART)
    shutil.rmtree(part, ignore_errors=True)  # left by a runtime that ended
    try:
        shutil.copytree(folder, part)
        shutil.rmtree(copy, ignore_errors=True)
        part.rename(copy)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def copy_file(file: pathlib.Path, copy: pathlib.Path):
    """Copies a file under a temporary name, then renames it."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(copy.name + PART)
    shutil.copyfile(file, part)
    part.replace(copy)
