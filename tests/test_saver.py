"""Background saves: a thread writes a copy of the state while the run continues. A kill damages no checkpoint."""

import contextlib
import os
import shutil
import signal
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.train import checkpoint
from bert_fast.train.counters import Counters
from bert_fast.train.engine import Engine
from bert_fast.train.log import MetricWriter, read_rows
from bert_fast.train.saver import Saver, on_host
from bert_fast.train.settings import Checkpoints
from helpers.interruption import interrupted
from helpers.made_checkpoints import described, state_of
from helpers.small_runs import rows_without_clock, run, small_config
from helpers.started_runs import until

PATIENCE = 60.0  # seconds


# --- the copy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_copy_survives_donation_and_does_not_prevent_reuse_of_the_memory(dtype):
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(add(jnp.zeros((256, 256), dtype)))
    place = x.unsafe_buffer_pointer()
    (copied,) = buffers = on_host([x], [])
    assert not np.shares_memory(copied, np.zeros(1))
    x = jax.block_until_ready(add(x))
    assert x.unsafe_buffer_pointer() == place  # the step reused the memory; a NumPy view of x would have prevented that
    np.testing.assert_array_equal(copied, np.full((256, 256), 1, dtype))
    (again,) = on_host([x], buffers)
    assert again is copied  # the memory of the first copy is reused
    np.testing.assert_array_equal(again, np.full((256, 256), 2, dtype))
    (other,) = on_host([jnp.zeros(3)], buffers)
    assert other.shape == (3,)


# --- one saver --------------------------------------------------------------------------------------------------------


def saver_in(root, say=print, **settings) -> Saver:
    return Saver(root, Checkpoints(**{"every": 1, "keep": 2, **settings}), False, no_watchdog, say)


def no_watchdog(kind):
    return contextlib.nullcontext()


def engine_at(step: int):
    return types.SimpleNamespace(step=step, state=state_of(step), counters=Counters())


def save(saver, at, rows=None, wait=False):
    saver.save(at, lambda: described(at.step, counters=at.counters), rows, wait)


@pytest.fixture
def gate(monkeypatch):
    """Saves wait at this gate before they write."""
    opened, original = threading.Event(), checkpoint.save

    def waiting(*arguments):
        assert opened.wait(PATIENCE)
        return original(*arguments)

    monkeypatch.setattr(checkpoint, "save", waiting)
    yield opened
    opened.set()


def test_checkpoint_leaves_out_changes_made_while_it_is_written(tmp_path, gate):
    at = engine_at(1)
    at.counters.norms, at.counters.data = [1.0], {"mlm": 8}
    expected = np.array(at.state.params["layers"]["kernel"])
    with saver_in(tmp_path) as saver:
        save(saver, at)
        assert checkpoint.steps(tmp_path) == []
        at.counters.norms.append(2.0)
        at.counters.data["mlm"] = 16
        at.state = jax.jit(lambda state: jax.tree.map(lambda x: x * 2, state), donate_argnums=0)(at.state)
        gate.set()
    folder = checkpoint.newest(tmp_path)
    assert (checkpoint.about(folder).counters.norms, checkpoint.about(folder).counters.data) == ([1.0], {"mlm": 8})
    restored = checkpoint.restore(folder, state_of(0))
    np.testing.assert_array_equal(restored.params["layers"]["kernel"], expected)
    np.testing.assert_array_equal(restored.opt_state["mu"]["layers"]["kernel"], expected)
    assert int(restored.step) == int(restored.opt_state["count"]) == 1


def test_next_save_waits_for_the_save_in_flight_and_old_checkpoints_are_deleted(tmp_path, gate):
    with saver_in(tmp_path) as saver:
        save(saver, engine_at(1))
        threading.Timer(0.3, gate.set).start()
        save(saver, engine_at(2))
        assert checkpoint.steps(tmp_path) == [1]
        save(saver, engine_at(3), wait=True)
        assert checkpoint.steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("asked", [Saver.check, Saver.wait, lambda saver: save(saver, engine_at(2))])
def test_error_of_a_save_is_raised_once_by_the_next_call(tmp_path, monkeypatch, asked):
    saver = saver_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_arrays", lambda _: {"a": object()})
        save(saver, engine_at(1))
        saver.thread.join()
    with pytest.raises(BadInput, match=r"the checkpoint of step 1 could not be written to .*then run the same"):
        asked(saver)
    saver.check()
    save(saver, engine_at(1), wait=True)  # step 1 does not count as saved, so it is written now
    assert checkpoint.steps(tmp_path) == [1]


def test_state_that_is_not_finite_is_not_saved(tmp_path):
    at = engine_at(1)
    at.state.params["embed"]["word"] = jnp.full((4, 2), jnp.nan)
    with pytest.raises(BadInput, match=r"^params/embed/word is not finite .*so step 1 is not saved"):
        save(saver_in(tmp_path), at, wait=True)
    assert checkpoint.steps(tmp_path) == []


def test_rows_are_on_the_disk_before_the_checkpoint_that_counts_them(tmp_path, monkeypatch):
    done, to_disk, rename = [], MetricWriter.to_disk, checkpoint.rename_synced
    monkeypatch.setattr(MetricWriter, "to_disk", lambda self: (done.append("rows"), to_disk(self)))
    monkeypatch.setattr(checkpoint, "rename_synced", lambda *paths: (done.append("checkpoint"), rename(*paths)))
    rows = MetricWriter(tmp_path, 0)
    save(saver_in(tmp_path / "checkpoints"), engine_at(1), rows, wait=True)
    rows.close()
    assert done == ["rows", "checkpoint"]


def test_step_that_is_saved_is_not_written_again_unless_the_run_went_back(tmp_path, monkeypatch):
    written, original = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: (written.append(1), original(*arguments)))
    with saver_in(tmp_path) as saver:
        save(saver, engine_at(1))
        save(saver, engine_at(1), wait=True)
        assert checkpoint.steps(tmp_path) == [1]
        assert len(written) == 1
        saver.forget()
        save(saver, engine_at(1))
    assert len(written) == 2


def test_exit_waits_for_the_save_in_flight_and_prints_its_error_if_another_error_is_raised(tmp_path, gate, monkeypatch):
    with saver_in(tmp_path) as saver:
        save(saver, engine_at(1))
        threading.Timer(0.3, gate.set).start()
    assert checkpoint.steps(tmp_path) == [1]
    monkeypatch.setattr(checkpoint, "_arrays", lambda _: {"a": object()})
    with pytest.raises(BadInput, match="step 2 could not be written"), saver_in(tmp_path) as saver:
        save(saver, engine_at(2))
    said = []
    saver = saver_in(tmp_path, said.append)
    save(saver, engine_at(3))
    with pytest.raises(ZeroDivisionError), saver:
        _ = 1 / 0
    assert "step 3 could not be written" in said[0]


def test_second_signal_does_not_wait_for_the_save_in_flight(tmp_path, gate):
    saver = saver_in(tmp_path)
    save(saver, engine_at(1))
    with pytest.raises(KeyboardInterrupt), saver:
        raise KeyboardInterrupt
    assert checkpoint.steps(tmp_path) == []
    gate.set()
    saver.wait()


def test_save_seconds_count_only_the_time_that_the_run_waits(tmp_path, gate):
    at = engine_at(1)
    at.counters.start_clock()
    with saver_in(tmp_path) as saver:
        save(saver, at)
        time.sleep(0.5)
        assert at.counters.times["save_seconds"] < 0.4
        assert at.counters.lap("seconds") >= 0.5
        threading.Timer(0.5, gate.set).start()
        save(saver, at, wait=True)
        assert at.counters.times["save_seconds"] >= 0.4
    assert not checkpoint.about(checkpoint.newest(tmp_path)).counters.waited
    save(saver, engine_at(2), wait=True)
    assert checkpoint.about(checkpoint.newest(tmp_path)).counters.waited


def test_save_is_due_a_set_number_of_minutes_after_the_last_save(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    never, saver = saver_in(tmp_path), saver_in(tmp_path, minutes=2.0)
    for now[0], due in ((119.0, False), (120.0, True)):
        assert (saver.due(), never.due()) == (due, False)
    save(saver, engine_at(1), wait=True)
    for now[0], due in ((239.0, False), (240.0, True)):
        assert (saver.due(), never.due()) == (due, False)


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small_shards, tmp_path_factory):
    """A run of 60 steps in two phases, with a checkpoint every 20."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run(small_config(small_shards), workdir)
    return workdir


def assert_same_end(one, other):
    a, b = (checkpoint.find(folder / "checkpoints/60") for folder in (one, other))
    jax.tree.map(np.testing.assert_array_equal, checkpoint.restore_params(a), checkpoint.restore_params(b))
    assert rows_without_clock(one) == rows_without_clock(other)


MOMENTS = {
    "the folder is made": ("_checkpointer", "before"),
    "the arrays are written": ("sha256", "before"),
    "everything is written": ("rename_synced", "before"),
    "it has its name": ("rename_synced", "after"),
    "an old one is being deleted": ("discard", "half"),
}


@pytest.mark.long
def test_run_killed_at_any_moment_of_a_save_continues_to_the_same_end(finished, small_shards, tmp_path, monkeypatch):
    seen = {}

    def snapshot(moment):
        """Keeps what a kill would leave at this moment, while step 40 is saved and the run continues."""
        if threading.current_thread().name == "save 40" and moment not in seen:
            seen[moment] = shutil.copytree(workdir, tmp_path / f"killed {len(seen)}")

    def watched(original, moment, when):
        def call(*arguments):
            if when == "before":
                snapshot(moment)
            if when == "half":
                (arguments[0] / "about.json").unlink()
                arguments[0].rename(arguments[0].with_suffix(".old"))
                snapshot(moment)
                return shutil.rmtree(arguments[0].with_suffix(".old"))
            result = original(*arguments)
            if when == "after":
                snapshot(moment)
            return result

        return call

    workdir, config = tmp_path / "run", small_config(small_shards, checkpoint__keep=1)
    with monkeypatch.context() as patch:
        for moment, (name, when) in MOMENTS.items():
            patch.setattr(checkpoint, name, watched(getattr(checkpoint, name), moment, when))
        run(config, workdir)
    assert_same_end(workdir, finished)
    assert seen.keys() == MOMENTS.keys()
    for moment, killed in seen.items():
        steps = [40] if moment in list(MOMENTS)[4:] else [20, 40] if moment == "it has its name" else [20]
        assert checkpoint.steps(killed / "checkpoints") == steps, moment
        run(config, killed)
        assert_same_end(killed, finished)


def test_run_goes_on_while_it_saves_and_waits_before_the_next_save(finished, small_shards, tmp_path, monkeypatch):
    steps, train_step, original, late = [], Engine.train_step, checkpoint.save, threading.Event()

    def stepped(self):
        train_step(self)
        steps.append(self.step)
        if self.step == 35:
            late.set()

    def slow(root, state, about, keep, say):
        assert about.step != 20 or late.wait(PATIENCE)  # step 35 is taken while step 20 is saved
        return original(root, state, about, keep, say)

    monkeypatch.setattr(Engine, "train_step", stepped)
    monkeypatch.setattr(checkpoint, "save", slow)
    run(small_config(small_shards), tmp_path)
    assert steps == list(range(1, 61))
    assert checkpoint.steps(tmp_path / "checkpoints") == [40, 60]
    assert_same_end(tmp_path, finished)


def test_failed_save_ends_the_run_at_the_next_step(small_shards, tmp_path, monkeypatch):
    steps, train_step = [], Engine.train_step

    def stepped(self):
        train_step(self)
        steps.append(self.step)
        if self.step == 21:
            for thread in threading.enumerate():
                if thread.name == "save 20":
                    thread.join()

    monkeypatch.setattr(Engine, "train_step", stepped)
    monkeypatch.setattr(checkpoint, "_arrays", lambda *_: {"a": object()})
    with pytest.raises(BadInput, match="the checkpoint of step 20 could not be written"):
        run(small_config(small_shards), tmp_path)
    assert steps[-1] == 21


def test_signal_during_a_save_saves_the_current_step_once_that_save_is_done(
    finished, small_shards, tmp_path, monkeypatch
):
    original = checkpoint.save
    slow = lambda *arguments: (time.sleep(1.0), original(*arguments))  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", slow)
        interrupted(small_config(small_shards), tmp_path, 22, patch)
    assert checkpoint.steps(tmp_path / "checkpoints") == [20, 22]
    assert checkpoint.about(tmp_path / "checkpoints/22").counters.waited
    run(small_config(small_shards), tmp_path)
    assert_same_end(tmp_path, finished)


def test_saves_at_intervals_of_time_change_nothing_else(finished, small_shards, tmp_path, monkeypatch):
    config = small_config(small_shards, checkpoint__every=0, checkpoint__minutes=1.0, checkpoint__keep=100)
    asked = []
    monkeypatch.setattr(Saver, "due", lambda self: (asked.append(self.settings.minutes), len(asked) % 13 == 0)[1])
    interrupted(config, tmp_path, 33, monkeypatch)
    run(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == [13, 26, 33, 39, 52, 60]
    assert set(asked) == {1.0}
    assert_same_end(tmp_path, finished)


@pytest.mark.slow
def test_runs_that_are_killed_again_and_again_while_they_save_lose_at_most_one_save(small_shards, tmp_path, start_run):
    root, saved, enough = tmp_path / "checkpoints", 0, 0
    for delay in range(6):
        process = start_run(small_shards, tmp_path, "--config.checkpoint.every=1", "--config.checkpoint.keep=1")
        enough = saved + 4
        until(lambda: max(checkpoint.steps(root), default=0) >= enough, process)  # noqa: B023
        until(lambda: list(root.glob("*.part")), process)
        time.sleep(0.01 * delay)
        saved = max(checkpoint.steps(root), default=enough)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        warnings = []
        newest = checkpoint.newest(root, warnings.append)
        assert int(newest.name) >= saved
        assert not warnings
        assert checkpoint.about(newest).rows <= len(read_rows(tmp_path / "metrics.jsonl"))
