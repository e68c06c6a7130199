"""The watchdog and stop signals: a process that waits too long ends with a message, and a signal can end a wait."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bert_fast.train import checkpoint, watchdog
from experiments.fault_types.processes import workers_of
from helpers.started_runs import steps_of, until

ROOT = pathlib.Path(__file__).parents[1]

# Waits for `seconds`, with a limit of one second.
WAITS = """
import time
from bert_fast.train.watchdog import Limits, Watchdog
dog = Watchdog(Limits(input=1.0), "process 1 of 2 (host)", tick=0.05)
with dog, dog.waiting("input", "the input of step 7"):
    print("waiting", flush=True)
    time.sleep({seconds})
print("done", flush=True)
"""


def script(seconds: float):
    command = [sys.executable, "-c", WAITS.format(seconds=seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_wait_above_the_limit_ends_the_process_and_shows_its_stacks():
    process = script(30)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "process 1 of 2 (host) has waited 1 s for the input of step 7" in said
    assert "--config.watchdog.input=1 seconds" in said
    assert 'File "<string>", line 7 in <module>' in said  # where the main thread waited


def test_wait_below_the_limit_ends_nothing():
    process = script(0.5)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "waiting\ndone\n")


def test_time_in_which_the_whole_process_is_suspended_does_not_count_as_waiting():
    process = script(0.7)
    assert process.stdout
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_hanging_save_ends_a_run_that_still_takes_steps():
    code = """
import threading, time
from bert_fast.train.watchdog import Limits, Watchdog
dog = Watchdog(Limits(step=1.0, save=1.0), "this process", tick=0.05)
def save():
    with dog.waiting("save", "the checkpoint to be written before step 7"):
        time.sleep(30)
with dog:
    threading.Thread(target=save, daemon=True).start()
    for _ in range(300):
        with dog.waiting("step", "the devices"):
            time.sleep(0.1)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert "has waited 1 s for the checkpoint to be written before step 7" in done.stderr
    assert "line 7 in save" in done.stderr


# --- in a run ---------------------------------------------------------------------------------------------------------


def running(start_run, shards, workdir, *flags):
    """(process, id of the worker's process) of a run that has one data worker and has taken a few steps."""
    process = start_run(shards, workdir, "--config.data.workers=1", *flags)
    until(lambda: steps_of(workdir) >= 3, process)
    (worker,) = workers_of(process.pid)
    return process, worker


@pytest.mark.slow
def test_stopped_data_worker_ends_the_run_and_is_named(small_shards, tmp_path, start_run):
    process, worker = running(start_run, small_shards, tmp_path, "--config.watchdog.input=15")
    os.kill(worker, signal.SIGSTOP)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert f"data worker {worker} is stopped" in said
    assert "in next" in said or "in __next__" in said
    assert watchdog.state(worker) in ("dead", "running or gone")


def test_signal_saves_and_ends_a_run_that_waits_for_a_stopped_worker(small_shards, tmp_path, start_run):
    process, worker = running(start_run, small_shards, tmp_path)
    os.kill(worker, signal.SIGSTOP)
    until(lambda: steps_of(tmp_path) == (time.sleep(1), steps_of(tmp_path))[1], process)  # the input is used up
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert time.monotonic() - began < 15
    (saved,) = checkpoint.steps(tmp_path / "checkpoints")
    assert saved == steps_of(tmp_path)


def test_dead_data_worker_ends_the_run_with_advice(small_shards, tmp_path, start_run):
    process, worker = running(start_run, small_shards, tmp_path)
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "a data worker died (exit code -9" in said
    assert "Traceback" not in said


def test_signal_ends_a_run_that_is_compiling(small_shards, tmp_path, start_run):
    flags = ["--config.model.depth=48", "--config.phases=64:1"]  # compiles for a minute or so
    process = start_run(small_shards, tmp_path, *flags, BERT_FAST_CACHE="off")
    until(lambda: (tmp_path / "stages.json").is_file(), process)
    time.sleep(8)
    assert steps_of(tmp_path) == 0
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert time.monotonic() - began < 8
    assert checkpoint.steps(tmp_path / "checkpoints") == [0]
