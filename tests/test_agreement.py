"""Several processes compare their settings before they start. Each quickly reports that another has failed or is
lost.
"""

import os
import signal
import time
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast import BadInput
from bert_fast.train import agreement
from bert_fast.train.agreement import Board
from helpers.processes import with_port
from helpers.started_runs import steps_of, until


class Store:
    """A stand-in for the client of JAX's coordination service. `values` is shared by all clients."""

    def __init__(self, values: dict):
        self.values = values

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]


def boards(count=2):
    values = {}
    return [Board(Store(values), index, count) for index in range(count)]


def test_problem_names_the_other_process_that_failed(monkeypatch):
    monkeypatch.setattr(agreement, "TICK", 0.0)
    here, there = boards()
    there.post("alive", '[1, "the-host"]')
    assert here.problem(30.0) == ""
    there.fail(f"{there.name(1)}: its disk is full")
    assert here.problem(30.0) == f"{there.name(1)}: its disk is full"
    assert there.problem(30.0) == ""


def test_process_without_a_sign_of_life_is_lost_unless_it_is_done():
    here, there = boards()
    for count in range(3):
        there.post("alive", f'[{count}, "the-host"]')
        assert here.problem(2.0) == ""
        here.ticks += 2
    assert here.problem(2.0) == ""
    here.ticks += 1
    assert "process 1 of 2 (the-host) is lost: no sign of life for 3 s" in here.problem(2.0)
    there.end()
    assert here.problem(2.0) == ""


def test_cause_of_a_lost_connection_is_the_process_that_is_lost():
    here, _ = boards()
    here.ticks = 6  # the counting thread does not run
    assert here.cause(BadInput("a wrong flag")) == ""
    lost = BadInput("the checkpoint could not be written")
    lost.__cause__ = jax.errors.JaxRuntimeError("connection closed by peer")
    assert "process 1 of 2 is lost" in here.cause(lost)


def test_error_about_different_settings_says_which_process_has_which(monkeypatch):
    zero, one, two = boards(3)
    one.post("config 1", '{"steps": 5, "of one": 1}')
    two.post("config 1", '{"steps": 7, "of two": 1}')
    monkeypatch.setattr(agreement, "board", zero)
    with pytest.raises(
        BadInput, match=r"differ in their config:\n  steps: 5 on process 0 of 3 .*, 7 on process 2 of 3\n"
    ):
        agreement.agree("config", lambda: {"steps": 5})
    for other in (one, two):
        other.post("config 2", '{"steps": 6}')
    agreement.agree("config", lambda: {"steps": 6})  # the earlier answers do not count


def test_paths_may_differ_between_processes():
    config = {"steps": 3, "init": "a", "data": {"dir": "b", "workers": 1}}
    assert agreement.settings_of(config) == {"--config.steps": 3, "--config.data.workers": 1}


def test_checksums_cover_every_part_that_this_process_holds():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    x = jax.device_put(np.arange(4.0, dtype=np.float32), NamedSharding(mesh, P("data")))
    (name,) = found = agreement.checksums({"a": x})
    assert name == "a[0:]" or name == "a[0:4]"
    assert agreement.checksums({"a": x.at[3].set(9.0)}) != found


# --- real processes ---------------------------------------------------------------------------------------------------


def pair(start_run, shards, workdir, *flags, one=()):
    """Two processes of one run. `one`: extra flags of process 1."""
    flags = [*with_port(), "--config.mesh.data=2", *flags]
    more = ([], one)
    return [start_run(shards, workdir, *flags, f"--process_index={index}", *more[index]) for index in range(2)]


def ends(processes, seconds):
    """What each process printed. All must end within `seconds`."""
    end, said = time.monotonic() + seconds, []
    for process in processes:
        said.append(process.communicate(timeout=max(end - time.monotonic(), 0.1))[1])
    return said


def test_another_learning_rate_on_one_process_stops_both_before_they_train(small_shards, tmp_path, start_run):
    processes = pair(start_run, small_shards, tmp_path, one=["--config.learning_rate.peak=0.5"])
    for said in ends(processes, 60):
        assert "learning_rate.peak: 0.0001 on process 0 of 2" in said
        assert "0.5 on process 1 of 2" in said
        assert "Traceback" not in said
        assert "stack trace" not in said
    assert {process.returncode for process in processes} <= {2, 6}
    assert not (tmp_path / "metrics.jsonl").exists()


def test_start_that_fails_on_one_process_is_shown_on_the_other(small_shards, tmp_path, start_run):
    processes = pair(start_run, small_shards, tmp_path, one=[f"--config.data.dir={tmp_path}/missing"])
    zero, one = ends(processes, 60)
    assert [process.returncode for process in processes] == [6, 2]
    assert "error: process 1 of 2 (" in zero
    assert "/missing" in zero
    assert "/missing" in one
    for said in (zero, one):
        assert "Traceback" not in said
        assert "stack trace" not in said


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_lost_process_is_reported_as_lost(small_shards, tmp_path, start_run, lost):
    processes = pair(start_run, small_shards, tmp_path)
    until(lambda: steps_of(tmp_path) >= 3, processes[0])
    os.kill(processes[lost].pid, signal.SIGKILL)
    said = ends(processes, 60)[1 - lost]
    assert processes[1 - lost].returncode == 6, said
    assert f"error: process {lost} of 2 (" in said
    assert "is lost" in said


@pytest.mark.slow
def test_process_with_another_checkpoint_is_refused(small_shards, tmp_path, start_run):
    processes = pair(start_run, small_shards, tmp_path / "zero")
    until(lambda: steps_of(tmp_path / "zero") >= 3, processes[0])
    for process in processes:
        process.send_signal(signal.SIGTERM)
    ends(processes, 60)
    assert [process.returncode for process in processes] == [143, 143]
    again = pair(start_run, small_shards, tmp_path / "zero", one=[f"--workdir={tmp_path / 'one'}"])
    for said in ends(again, 60):
        assert "the processes differ in their newest checkpoint" in said


def test_ctrl_c_before_the_run_can_save_is_told_to_the_other_processes(monkeypatch, capsys):
    told = []
    monkeypatch.setattr(agreement, "board", None)  # the process would have ended
    state = types.SimpleNamespace(client=Store({}), num_processes=2, process_id=0, coordinator_address="here:1")
    monkeypatch.setattr("jax._src.distributed.global_state", state)
    monkeypatch.setattr(agreement, "on_abort", lambda *_: None)
    monkeypatch.setattr(Board, "fail", lambda self, reason: told.append((self.code, reason)))
    monkeypatch.setattr(agreement, "leave", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit, match="130"), agreement.together():
        raise KeyboardInterrupt
    assert agreement.board is not None
    agreement.board.done.set()  # ends its thread
    ((code, reason),) = told
    assert code == 130
    assert "stopped by Ctrl-C, without saving" in reason
    assert reason in capsys.readouterr().err
