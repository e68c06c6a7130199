"""The parts of a run's wall time sum to the whole, even across a kill, a pause and a restart."""

import os
import signal
import time

import pytest

from bert_fast.data import files
from bert_fast.train import goodput, loop, report
from bert_fast.train.counters import Counters, total
from bert_fast.train.log import MetricWriter, read_rows
from helpers.small_runs import run, small_config
from helpers.started_runs import steps_of, until


def test_lost_steps_and_pauses_are_distinguished(tmp_path):
    counters, now = Counters(saved_at=time.time() - 100), time.time()
    os.utime(tmp_path, (now, now - 98))
    goodput.begin(counters, time.monotonic() - 5, tmp_path, sign=now - 70, restored=2.0)
    rounded = {name: round(seconds) for name, seconds in counters.times.items() if round(seconds)}
    # The run saved from 100 to 98 s ago, died 70 s ago, started again 5 s ago, and restored for 2 s.
    assert rounded == {"save_seconds": 2, "wasted_seconds": 28, "idle_seconds": 65 + 3, "restore_seconds": 2}


def test_steps_taken_while_a_checkpoint_was_written_are_lost(tmp_path):
    counters, now = Counters(saved_at=time.time() - 100, waited=False), time.time()
    os.utime(tmp_path, (now, now - 98))
    goodput.begin(counters, time.monotonic() - 5, tmp_path, sign=now - 70, restored=2.0)
    rounded = {name: round(seconds) for name, seconds in counters.times.items() if round(seconds)}
    assert rounded == {"wasted_seconds": 30, "idle_seconds": 65 + 3, "restore_seconds": 2}


@pytest.mark.parametrize(("sign", "idle"), [(0, 95), (70, 65)], ids=["another machine", "copied folder"])
def test_pause_before_a_checkpoint_was_copied_is_idle_time(tmp_path, sign, idle):
    counters, now = Counters(saved_at=time.time() - 100), time.time()
    os.utime(tmp_path, (now, now - 10))  # when it was copied
    goodput.begin(counters, time.monotonic() - 5, tmp_path, sign=sign and now - sign, restored=2.0)
    assert round(counters.times["idle_seconds"]) == idle + 3


def test_failed_start_leaves_the_sign_of_life_of_the_process_before_it(tmp_path):
    lock = tmp_path / ".lock"
    lock.touch()
    os.utime(lock, (1e9, 1e9))
    files.hold(lock, "").close()
    assert goodput.last_sign(lock) == 1e9


@pytest.mark.parametrize("sign", [0.0, 1e12], ids=["none", "from the future"])
def test_clock_that_was_changed_gives_no_negative_times(tmp_path, sign):
    counters = Counters(saved_at=time.time() - 10)
    goodput.begin(counters, time.monotonic(), tmp_path, sign, restored=0.0)
    assert min(counters.times.values()) >= 0
    assert total(counters.times) == pytest.approx(10, abs=1)


def test_times_of_a_run_sum_to_its_wall_time(small_shards, tmp_path, monkeypatch):
    written, write = [], MetricWriter.write
    monkeypatch.setattr(MetricWriter, "write", lambda self, row: (written.append(time.monotonic()), write(self, row)))
    times, pretrain, summarise = [], loop.pretrain, report.summary  # times: when pretrain and summary are called
    monkeypatch.setattr(loop, "pretrain", lambda *given: (times.append(time.monotonic()), pretrain(*given))[1])
    monkeypatch.setattr(report, "summary", lambda *given: (times.append(time.monotonic()), summarise(*given))[1])
    summary = run(small_config(small_shards, steps=30, phases="16:1", checkpoint__every=10), tmp_path)
    began, ended = times
    wall = ended - began
    parts = [
        value
        for name, value in summary.items()
        if name.endswith("seconds") and name not in ("wall_seconds", "input_seconds")
    ]
    assert sum(parts) == pytest.approx(summary["wall_seconds"], abs=0.01)
    assert summary["wall_seconds"] == pytest.approx(wall, rel=0.005)
    assert 0 < summary["input_seconds"] < summary["seconds"]
    assert summary["goodput"] == pytest.approx((summary["seconds"] - summary["input_seconds"]) / wall, rel=0.01)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert len(rows) == len(written) >= 3
    for row, then in zip(rows, written, strict=True):
        assert total({key: row[key] for key in Counters().times}) == pytest.approx(then - began, rel=0.005, abs=0.02)


@pytest.mark.slow
def test_times_of_a_killed_run_sum_to_the_wall_time_of_all_its_processes(small_shards, tmp_path, start_run):
    began, flags = time.monotonic(), ("--config.checkpoint.every=50",)
    process = start_run(small_shards, tmp_path, *flags)
    until(lambda: (tmp_path / "checkpoints/50").exists() and steps_of(tmp_path) % 50 > 30, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(3)
    process = start_run(small_shards, tmp_path, *flags)
    before = steps_of(tmp_path)
    until(lambda: steps_of(tmp_path) > before + 50, process)
    row = read_rows(tmp_path / "metrics.jsonl")[-1]
    wall = time.monotonic() - began
    # The tolerance covers the time that Python takes to start.
    assert total({key: row[key] for key in Counters().times}) == pytest.approx(wall, rel=0.03)
    assert row["wasted_seconds"] > 0
    assert row["idle_seconds"] > 3
