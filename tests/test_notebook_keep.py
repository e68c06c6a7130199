"""A work folder is kept in a place that outlives the runtime, and a run continues from the copy."""

import pathlib
import shutil
import time
import types

import pytest

from bert_fast import BadInput
from bert_fast.notebook import keep
from bert_fast.train import checkpoint
from helpers import interruption, small_runs


def make_checkpoint(run: pathlib.Path, step: int, content: str = "arrays"):
    folder = run / "checkpoints" / str(step)
    (folder / "arrays").mkdir(parents=True, exist_ok=True)
    (folder / "arrays/data").write_text(content)
    (folder / keep.WHOLE).write_text(content)


def steps(work: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in keep.checkpoints(work))


@pytest.fixture
def work(tmp_path) -> pathlib.Path:
    """A work folder with shards and a run. The run has a finished checkpoint, a half-written checkpoint, and a lock."""
    work = tmp_path / "work"
    (work / "shards").mkdir(parents=True)
    (work / "shards/manifest.json").write_text("{}")
    make_checkpoint(work / "run", 10)
    (work / "run/metrics.jsonl").write_text("row\n")
    (work / "run/checkpoints/20.part").mkdir()
    (work / "run/checkpoints/20.part/data").write_text("half")
    (work / "run/.lock").write_text("")
    return work


def test_finished_files_are_copied_and_unfinished_ones_are_not(work, tmp_path):
    keep.mirror(work, tmp_path / "kept")
    found = {str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    whole = {f"run/checkpoints/10/{name}" for name in (keep.WHOLE, "arrays/data")}
    assert found == {"shards/manifest.json", "run/metrics.jsonl"} | whole


def test_changed_file_is_copied_again_and_an_equal_one_is_not(work, tmp_path):
    keep.mirror(work, tmp_path / "kept")
    shards, rows = tmp_path / "kept/shards/manifest.json", tmp_path / "kept/run/metrics.jsonl"
    before = shards.stat().st_mtime_ns
    (work / "run/metrics.jsonl").write_text("row\nrow\n")
    keep.mirror(work, tmp_path / "kept")
    assert rows.read_text() == "row\nrow\n"
    assert shards.stat().st_mtime_ns == before


def test_checkpoint_that_the_run_removed_is_removed_once_a_newer_one_exists(work, tmp_path):
    keep.mirror(work, tmp_path / "kept")
    make_checkpoint(work / "run", 20)
    shutil.rmtree(work / "run/checkpoints/10")
    keep.mirror(work, tmp_path / "kept")
    assert steps(tmp_path / "kept") == [20]


def test_checkpoint_that_a_run_saved_again_after_a_rollback_is_copied_again(work, tmp_path):
    keep.mirror(work, tmp_path / "kept")
    make_checkpoint(work / "run", 10, "other arrays")
    keep.mirror(work, tmp_path / "kept")
    assert (tmp_path / "kept/run/checkpoints/10/arrays/data").read_text() == "other arrays"


def test_checkpoints_of_a_run_that_has_none_here_are_not_removed(work, tmp_path):
    make_checkpoint(tmp_path / "kept/other", 500)
    keep.mirror(work, tmp_path / "kept")
    assert (tmp_path / "kept/other/checkpoints/500").is_dir()


def test_fetch_that_was_interrupted_is_completed_before_anything_is_copied_back(work, tmp_path, monkeypatch):
    make_checkpoint(work / "run", 20)
    kept, new, copy_whole = str(tmp_path / "kept"), tmp_path / "new", keep.copy_whole
    keep.mirror(work, tmp_path / "kept")

    def stopped(source, target):
        if source.name == "20":
            raise KeyboardInterrupt
        copy_whole(source, target)

    monkeypatch.setattr(keep, "copy_whole", stopped)
    with pytest.raises(KeyboardInterrupt):
        keep.resume(new, kept)
    assert steps(new) == [10]
    monkeypatch.setattr(keep, "copy_whole", copy_whole)
    with keep.kept(new, kept):
        assert steps(new) == [10, 20]
    assert steps(tmp_path / "kept") == [10, 20]


def test_place_that_holds_other_work_is_refused(work, tmp_path):
    make_checkpoint(tmp_path / "kept/run", 9000)
    for use in (lambda: keep.resume(work, str(tmp_path / "kept")), keep.kept(work, str(tmp_path / "kept")).__enter__):
        with pytest.raises(BadInput, match="holds other work, which would be replaced"):
            use()
    assert steps(tmp_path / "kept") == [9000]


def test_work_may_be_kept_in_one_place_and_then_in_another_and_then_in_the_first_again(work, tmp_path):
    for place in ("first", "second", "first"):
        with keep.kept(work, str(tmp_path / place)):
            make_checkpoint(work / "run", 10, place)
    assert (tmp_path / "first/run/checkpoints/10/arrays/data").read_text() == "first"
    assert (tmp_path / "second/run/checkpoints/10/arrays/data").read_text() == "second"


def test_copy_that_fails_half_way_leaves_the_older_checkpoint_and_no_partial_one(work, tmp_path, monkeypatch):
    keep.mirror(work, tmp_path / "kept")
    make_checkpoint(work / "run", 20)
    shutil.rmtree(work / "run/checkpoints/10")

    def full(source, target):
        target.mkdir()
        (target / "half").write_text("")
        raise OSError("No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left"):
        keep.mirror(work, tmp_path / "kept")
    assert steps(tmp_path / "kept") == [10]
    assert not list((tmp_path / "kept").rglob("half"))


def test_checkpoint_that_the_run_removes_during_the_copy_is_left_out(work, tmp_path, monkeypatch):
    make_checkpoint(work / "run", 20)
    copytree = shutil.copytree

    def remove_first(source, target, *more):  # copytree calls itself, with more arguments
        if pathlib.Path(source).name == "10":
            shutil.rmtree(source)
        return copytree(source, target, *more)

    monkeypatch.setattr(shutil, "copytree", remove_first)
    keep.mirror(work, tmp_path / "kept")
    assert steps(tmp_path / "kept") == [20]


def test_work_is_copied_while_the_block_runs(work, tmp_path):
    with keep.kept(work, str(tmp_path / "kept"), minutes=0.0005):
        end = time.monotonic() + 10
        while steps(tmp_path / "kept") != [10]:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_work_is_copied_at_the_end_even_after_an_interruption(work, tmp_path):
    with pytest.raises(KeyboardInterrupt), keep.kept(work, str(tmp_path / "kept")):
        raise KeyboardInterrupt
    assert steps(tmp_path / "kept") == [10]


def test_copy_that_fails_during_the_run_is_reported_and_the_run_continues(work, tmp_path, monkeypatch, capsys):
    failed = []

    def fail(self, work):
        if len(failed) < 2:
            failed.append(work)
            raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(keep.Folder, "push", fail)
    with keep.kept(work, str(tmp_path / "kept"), minutes=0.0005):
        end = time.monotonic() + 10
        while len(failed) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert "Transport endpoint is not connected; trying again later" in capsys.readouterr().err


def test_nothing_is_copied_without_a_place(work, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with keep.kept(work, ""):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_resume_fetches_what_was_kept_unless_the_work_folder_exists(work, tmp_path, capsys):
    keep.mirror(work, tmp_path / "kept")
    keep.resume(tmp_path / "new", str(tmp_path / "kept"))
    assert steps(tmp_path / "new") == [10]
    assert "continuing, newest checkpoint: step 10" in capsys.readouterr().err
    make_checkpoint(tmp_path / "kept/run", 30)
    keep.resume(tmp_path / "new", str(tmp_path / "kept"))
    assert steps(tmp_path / "new") == [10]
    keep.resume(tmp_path / "other", str(tmp_path / "nowhere"))
    assert "nothing is kept yet" in capsys.readouterr().err


@pytest.mark.slow
def test_run_continues_from_the_kept_copy_with_the_same_rows(small_shards, tmp_path, monkeypatch):
    """The newest kept checkpoint is damaged, as if the runtime had ended during its upload."""
    config = small_runs.small_config(small_shards, checkpoint__keep=3)
    small_runs.run(config, tmp_path / "whole")
    work, kept = tmp_path / "work", str(tmp_path / "kept")
    with keep.kept(work, kept):
        interruption.interrupted(config, work / "run", 45, monkeypatch)
    newest = max(keep.checkpoints(tmp_path / "kept"), key=lambda path: int(path.name))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    shutil.rmtree(work)
    keep.resume(work, kept)
    said = []
    assert checkpoint.newest(work / "run/checkpoints", said.append) == work / "run/checkpoints/40"
    assert "is damaged" in said[0]
    small_runs.run(config, work / "run")
    assert small_runs.rows_without_clock(work / "run") == small_runs.rows_without_clock(tmp_path / "whole")


class FakeHub:
    """A stand-in for `HfApi`, with the files of one repository."""

    def __init__(self, user: str = "me"):
        self.user, self.repos, self.files = user, {}, {}

    def whoami(self):
        if not self.user:
            raise ValueError("Token is required")
        return {"name": self.user}

    def repo_exists(self, name):
        return name in self.repos

    def repo_info(self, name):
        return types.SimpleNamespace(**self.repos[name])

    def list_repo_files(self, name):
        return [".gitattributes", *self.files]

    def create_repo(self, name, private, exist_ok):
        assert exist_ok
        self.repos.setdefault(name, {"private": private})

    def upload_folder(self, repo_id, folder_path, delete_patterns):
        assert repo_id in self.repos
        assert delete_patterns == "*"
        folder = pathlib.Path(folder_path)
        self.files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def snapshot_download(self, name, local_dir):
        assert name in self.repos
        for path, content in {**self.files, ".cache/huggingface/lock": b""}.items():
            file = pathlib.Path(local_dir, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def test_work_goes_to_a_private_repository_of_the_hub_and_back(work, tmp_path, monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    with keep.kept(work, "hub:me/bert"):
        make_checkpoint(work / "run", 20)
        shutil.rmtree(work / "run/checkpoints/10")
    assert hub.repos == {"me/bert": {"private": True}}
    assert not any(name.startswith("run/checkpoints/10/") for name in hub.files)
    keep.resume(tmp_path / "new", "hub:me/bert")
    assert steps(tmp_path / "new") == [20]
    assert not (tmp_path / "new/.cache").exists()


def test_repository_that_is_public_or_holds_other_files_is_left_alone(work, tmp_path, monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    hub.repos["me/bert"] = {"private": False}
    with pytest.raises(BadInput, match="hub:me/bert is public"):
        keep.resume(tmp_path / "new", "hub:me/bert")
    hub.repos["me/bert"] = {"private": True}
    hub.files = {"thesis.tex": b"x"}
    for use in (lambda: keep.resume(tmp_path / "new", "hub:me/bert"), lambda: keep.place("hub:me/bert").push(work)):
        with pytest.raises(BadInput, match=r"holds other files \(thesis\.tex\)"):
            use()
    assert hub.files == {"thesis.tex": b"x"}


def test_checkpoint_that_is_being_deleted_is_not_copied(work, tmp_path):
    (work / "run/checkpoints/5.old/arrays").mkdir(parents=True)
    (work / "run/checkpoints/5.old/arrays/d").write_bytes(b"x")
    keep.mirror(work, tmp_path / "kept")
    assert not (tmp_path / "kept/run/checkpoints/5.old").exists()


def test_missing_token_is_reported_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: FakeHub(user=""))
    with pytest.raises(BadInput, match=r"refuses hub:me/bert \(Token is required\): add the secret HF_TOKEN"):
        keep.resume(tmp_path / "work", "hub:me/bert")


@pytest.mark.parametrize("text", ["hub:", "hub:me", "hub:/bert", "hub:me/bert/x"])
def test_place_that_names_no_repository_is_refused(text):
    with pytest.raises(BadInput, match="expected a folder, or hub:USER/NAME"):
        keep.place(text)


def test_drive_that_is_not_mounted_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "DRIVE", tmp_path / "drive")
    with pytest.raises(BadInput, match="Google Drive, which is not mounted"):
        keep.place(str(tmp_path / "drive/MyDrive/bert"))
    (tmp_path / "drive/MyDrive").mkdir(parents=True)
    assert keep.place(str(tmp_path / "drive/MyDrive/bert")) is not None
