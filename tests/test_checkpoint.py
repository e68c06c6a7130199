"""Checkpoints: any damage is detected, and unfinished ones are ignored."""

import errno
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_fast import BadInput
from bert_fast.data import files
from bert_fast.train import checkpoint, checksums
from helpers.made_checkpoints import described, state_of


def save(root: pathlib.Path, step: int, keep=frozenset()):
    checkpoint.save(root, state_of(step), described(step), set(keep))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    root = tmp_path_factory.mktemp("two")
    save(root, 1)
    save(root, 2, keep={1})
    return root


def test_what_was_saved_is_restored(two):
    folder = checkpoint.newest(two)
    assert folder.name == "2"
    restored = checkpoint.restore(folder, state_of(0))
    assert int(restored.step) == int(restored.opt_state["count"]) == 2
    np.testing.assert_array_equal(restored.params["layers"]["kernel"], state_of(2).params["layers"]["kernel"])
    np.testing.assert_array_equal(restored.opt_state["mu"]["embed"]["word"], np.ones((4, 2)))
    np.testing.assert_array_equal(
        checkpoint.restore_params(folder)["layers"]["kernel"], state_of(2).params["layers"]["kernel"]
    )
    assert checkpoint.about(folder) == described(2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_detected(two, data):
    files = sorted(path for path in (two / "2").rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) * 8 - 1))
    broken = bytearray(content)
    broken[at // 8] ^= 1 << at % 8
    try:
        path.write_bytes(broken)
        warnings = []
        assert checkpoint.newest(two, warnings.append).name == "1"
        assert "damaged" in warnings[0]
    finally:
        path.write_bytes(content)


def test_truncated_emptied_and_missing_files_are_detected(two, tmp_path):
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:-1]), lambda p: p.write_bytes(b""), lambda p: p.unlink()):
        for name in ("about.json", "vocab.txt", "arrays/_METADATA"):
            root = shutil.copytree(two, tmp_path / "copy")
            damage(root / "2" / name)
            warnings = []
            assert checkpoint.newest(root, warnings.append).name == "1"
            assert name in warnings[0]
            shutil.rmtree(root)


def test_unfinished_empty_and_foreign_folders_are_ignored(two, tmp_path):
    root = shutil.copytree(two, tmp_path / "copy")
    (root / "9").mkdir()
    (root / "8.part").mkdir()
    (root / "notes").mkdir()
    (root / "10.txt").write_text("")
    assert checkpoint.steps(root) == [1, 2]
    assert checkpoint.newest(root).name == "2"


def test_run_with_only_damaged_checkpoints_is_an_error_and_not_a_fresh_start(two, tmp_path):
    root = shutil.copytree(two, tmp_path / "copy")
    for step in (1, 2):
        (root / str(step) / "about.json").unlink()
    with pytest.raises(BadInput, match="every checkpoint"):
        checkpoint.newest(root, lambda line: None)
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_find_accepts_a_run_folder_or_the_folder_of_one_step(two, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(two, run / "checkpoints")
    assert checkpoint.find(run).name == "2"
    assert checkpoint.find(run / "checkpoints/1").name == "1"
    (run / "checkpoints/1/vocab.txt").write_text("other")
    with pytest.raises(BadInput, match=r"vocab\.txt has changed"):
        checkpoint.find(run / "checkpoints/1")
    with pytest.raises(BadInput, match="no checkpoint in"):
        checkpoint.find(tmp_path / "nowhere")


def test_save_deletes_the_older_steps_that_are_not_kept(tmp_path):
    for step, keep in ((0, set()), (5, {0}), (10, {0, 5}), (15, {0, 10})):
        save(tmp_path, step, keep)
    assert checkpoint.steps(tmp_path) == [0, 10, 15]


def test_old_step_that_cannot_be_deleted_does_not_end_the_run(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def refused(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint.shutil, "rmtree", refused)
    said = []
    checkpoint.save(tmp_path, state_of(2), described(2), set(), said.append)
    assert checkpoint.steps(tmp_path) == [2]
    assert "checkpoint 1 in" in said[0]
    assert "Permission denied" in said[0]


def test_kill_while_an_old_step_is_deleted_leaves_no_damaged_step(tmp_path, monkeypatch):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:

        def killed(path, ignore_errors=False):
            if not ignore_errors:
                (pathlib.Path(path) / "about.json").unlink()
                raise KeyboardInterrupt

        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [2]
    save(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_everything_is_on_the_disk_before_a_step_gets_its_name(tmp_path, monkeypatch):
    done, rename, sync = [], pathlib.Path.rename, files.sync
    monkeypatch.setattr(pathlib.Path, "rename", lambda self, to: (done.append(("rename", to)), rename(self, to)))
    monkeypatch.setattr(files, "sync", lambda path: (done.append(("sync", path)), sync(path)))
    save(tmp_path, 1)
    before = done[: done.index(("rename", tmp_path / "1"))]
    synced = {path.relative_to(tmp_path / "1.part") for what, path in before if what == "sync"}
    inside = {path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*")}
    assert synced == inside | {pathlib.Path(".")}
    assert done[-1] == ("sync", tmp_path)


def test_save_that_fails_on_a_bad_array_does_not_blame_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_arrays", lambda _: {"a": object()})
    with pytest.raises(BadInput, match=r"could not be written.*fix the cause, then run the same"):
        save(tmp_path, 3, set())


def test_a_step_that_is_saved_again_stays_intact_until_the_new_copy_is_on_the_disk(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 1)
    assert checkpoint.damage(tmp_path / "1") is None
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_leftovers_of_a_killed_save_are_removed_by_the_next_save(tmp_path):
    (tmp_path / "2.part").mkdir()
    save(tmp_path, 3, set())
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_full_disk_during_a_save_is_reported_and_older_checkpoints_stay(two, tmp_path, monkeypatch):
    root = shutil.copytree(two, tmp_path / "copy")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("write_text", "write_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, name, full)
            with pytest.raises(BadInput, match=r"No space left.*1, 2.*free some disk space"):
                save(root, 3, {1, 2})
    assert checkpoint.newest(root).name == "2"
    assert not list(root.glob("*.part"))
    save(root, 3, {1, 2})
    assert checkpoint.newest(root).name == "3"


@pytest.fixture
def running(tmp_path):
    """A run folder with checkpoints 1 and 2, and a function that saves the next checkpoint and deletes the others."""
    root = tmp_path / "run/checkpoints"
    save(root, 1)
    save(root, 2, keep={1})
    return root.parent, lambda: save(root, max(checkpoint.steps(root)) + 1)


def read_while(running, monkeypatch, path, times=1):
    """A command reads `path` while a run saves `times` checkpoints and deletes the older ones. Returns (the step that
    the command has read, its warnings).
    """
    _, go_on = running
    original, done, said = checkpoint.restore_params, [], []

    def restore(folder):
        if len(done) < times:
            done.append(go_on())
        return original(folder)

    monkeypatch.setattr(checkpoint, "restore_params", restore)
    use = lambda folder: (checkpoint.restore_params(folder), checkpoint.about(folder).step)  # noqa: E731
    return checkpoint.read(path, use, said.append)[1], said


def test_a_checkpoint_that_a_run_deletes_during_reading_is_replaced_by_a_newer_one(running, monkeypatch):
    step, said = read_while(running, monkeypatch, running[0], times=2)
    assert step == 4
    assert [line.split(" was ")[0].rpartition("/")[2] for line in said] == ["2", "3"]


def test_a_step_that_is_deleted_during_reading_is_an_error_that_names_the_remedy(running, monkeypatch):
    with pytest.raises(BadInput, match=r"checkpoints/2 was deleted while it was read.*run folder.*checkpoint\.keep"):
        read_while(running, monkeypatch, running[0] / "checkpoints/2")


def test_another_error_of_a_reader_is_not_hidden(running):
    with pytest.raises(ZeroDivisionError):
        checkpoint.read(running[0], lambda folder: 1 / 0)


@pytest.mark.parametrize("name", ["checkpoints/2", ""])
def test_a_checkpoint_that_is_deleted_while_its_files_are_checked_is_not_called_damaged(running, monkeypatch, name):
    folder, go_on = running
    sha256, said = checksums.sha256, []

    def then_go_on(path):
        monkeypatch.setattr(checksums, "sha256", sha256)
        go_on()
        return sha256(path)

    monkeypatch.setattr(checksums, "sha256", then_go_on)
    if name:
        with pytest.raises(BadInput, match="was deleted while it was read"):
            checkpoint.find(folder / name, said.append)
    else:
        assert checkpoint.find(folder, said.append).name == "3"
    assert not said
