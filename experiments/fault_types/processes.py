"""Faults in dense runs and in runs with each of the four methods.

Each run has its own process, which is killed, told to stop, or kept from writing. Then a second process continues the
run. When the run ends, its last checkpoint and its rows must equal those of a run without a fault, bit for bit. Runs
with a faulty data worker are not continued: they must end with an error.
"""

import contextlib
import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from bert_fast.train import checkpoint
from bert_fast.train.counters import CLOCKS
from bert_fast.train.log import read_rows
from experiments import common
from experiments.fault_types import DETECTED, HUNG, LOST, SILENT, SURVIVED, TRACEBACK, Bench, Outcome, fault

METHODS = {
    "dense": (),
    "layer_drop": ("--config.methods=layer_drop",),
    "token_drop": ("--config.methods=token_drop",),
    "early_bert": ("--config.methods=early_bert", "--config.early_bert.search=0.3"),
    "stacking": ("--config.methods=stacking",),
    "mslt": ("--config.methods=stacking", "--config.stacking.variant=mslt"),
    "combined": ("--config.methods=stacking,early_bert,token_drop,layer_drop", "--config.early_bert.search=0.3"),
}
STEPS = 60
RUN = (
    "--config=bert:size=tiny,objective=mlm,norm=pre,debug",
    *(f"--config.{key}={value}" for key, value in {"steps": STEPS, "model.depth": 4, "batch_size": 64}.items()),
    *(f"--config.{key}={value}" for key, value in {"log_every": 1, "eval.every": 0, "checkpoint.every": 7}.items()),
)
PATIENCE = 900  # seconds for one process


def start(
    bench: Bench, workdir: pathlib.Path, *flags: str, largest: int = 0, errors: Any = subprocess.PIPE
) -> subprocess.Popen:
    """Starts a run of STEPS steps in its own process group.

    largest: the size limit of each file that the run writes, in KiB; 0 means no limit. errors: where the run's standard
    error goes.
    """
    limited = ["bash", "-c", f'ulimit -f {largest} && exec "$@"', "run"] if largest else []
    command = [
        *limited,
        sys.executable,
        "-m",
        "bert_fast",
        "pretrain",
        *RUN,
        f"--config.data.dir={bench.shards}",
        *flags,
    ]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=common.HERE.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> str:
    """What a process wrote to standard error. Raises subprocess.TimeoutExpired if it hangs. Always kills its group."""
    try:
        return process.communicate(timeout=PATIENCE)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def steps_of(workdir: pathlib.Path) -> int:
    """The number of steps that have a row so far. An unterminated last line does not count."""
    with contextlib.suppress(FileNotFoundError):
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def until(happened: Callable[[], bool], process: subprocess.Popen):
    """Waits until `happened()` is true or the process has ended, but at most PATIENCE seconds."""
    limit = time.monotonic() + PATIENCE
    while process.poll() is None and not happened() and time.monotonic() < limit:
        time.sleep(0.002)


class State(NamedTuple):
    """What a run leaves: the bits of every array in its last checkpoint, and its rows without their times."""

    arrays: Mapping[str, bytes]
    rows: Sequence[Mapping]


def state_of(workdir: pathlib.Path) -> State:
    arrays = ocp.PyTreeCheckpointer().restore((checkpoint.find(workdir) / "arrays").absolute())
    named = jax.tree_util.tree_leaves_with_path(arrays)
    rows = [
        {key: value for key, value in row.items() if key not in CLOCKS} for row in read_rows(workdir / "metrics.jsonl")
    ]
    return State({jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in named}, rows)


def whole(bench: Bench, method: str) -> State:
    """What a run with this method leaves if no fault occurs. This run is trained once for each bench."""
    workdir = bench.shards.parent / "whole" / method
    if not (workdir / "summary.json").exists():
        process = start(bench, workdir, *METHODS[method])
        said = end(process)
        if process.returncode:
            sys.exit(f"error: the run without a fault failed: {said}")
    return state_of(workdir)


def continued(bench: Bench, workdir: pathlib.Path, method: str, what: str) -> Outcome:
    """Continues a run after a fault. The run survived if it ends like a run without a fault."""
    process = start(bench, workdir, *METHODS[method])
    try:
        said = end(process)
    except subprocess.TimeoutExpired:
        return Outcome(HUNG, what)
    if process.returncode:
        return Outcome(TRACEBACK if "Traceback" in said else LOST, f"{what}: {said[-500:]}")
    return Outcome(SURVIVED if state_of(workdir) == whole(bench, method) else SILENT, what)


def signalled(bench: Bench, rng: random.Random, method: str, sent: signal.Signals, code: int) -> Outcome:
    """Sends a signal in a random step, then continues the run.

    If the run changes its stage, half of the signals are sent next to such a change.
    """
    rows = whole(bench, method).rows
    begins = [n for n, (one, two) in enumerate(itertools.pairwise(rows), 1) if one["stage"] != two["stage"]]
    near = [min(max(step + shift, 0), STEPS - 1) for step in begins for shift in (-1, 0, 1)]
    step = rng.choice(near) if near and rng.random() < 0.5 else rng.randrange(STEPS)
    workdir, wait = bench.scratch / "run", rng.random() * 0.05
    what = f"{sent.name} {wait:.3f} s after step {step}"
    process = start(bench, workdir, *METHODS[method])
    until(lambda: steps_of(workdir) >= step if step else (workdir / "config.json").exists(), process)
    time.sleep(wait)
    if process.poll() is None:
        os.killpg(process.pid, sent)
    try:
        said = end(process)
    except subprocess.TimeoutExpired:
        return Outcome(HUNG, what)
    if process.returncode not in (0, code) or "Traceback" in said:
        return Outcome(TRACEBACK, f"{what}: exit code {process.returncode}, {said[-500:]}")
    return continued(bench, workdir, method, what)


def add(method: str):
    """Lists two fault types for a method: SIGKILL and SIGTERM."""

    @fault(times=10, name=f"sigkill_{method}")
    def sigkill(bench: Bench, rng: random.Random) -> Outcome:
        return signalled(bench, rng, method, signal.SIGKILL, -signal.SIGKILL)

    @fault(times=5, name=f"sigterm_{method}")
    def sigterm(bench: Bench, rng: random.Random) -> Outcome:
        return signalled(bench, rng, method, signal.SIGTERM, 128 + signal.SIGTERM)


for method in METHODS:
    add(method)


def workers_of(pid: int) -> list[int]:
    """The ids of a process's spawned workers, whichever of its threads started them."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended since
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def with_worker(bench: Bench, rng: random.Random, sent: signal.Signals, code: int, words: str) -> Outcome:
    """Sends a signal to the data worker. The run must end with the exit code `code`, and print `words` as its error."""
    workdir, step = bench.scratch / "run", rng.randrange(1, STEPS // 2)
    what = f"{sent.name} to the data worker after step {step}"
    process = start(bench, workdir, "--config.data.workers=1", "--config.watchdog.input=10", "--config.steps=100000")
    until(lambda: steps_of(workdir) >= step, process)
    for worker in workers_of(process.pid):
        os.kill(worker, sent)
    try:
        said = end(process)
    except subprocess.TimeoutExpired:
        return Outcome(HUNG, what)
    if process.returncode != code or words not in said:
        return Outcome(TRACEBACK, f"{what}: exit code {process.returncode}, {said[-500:]}")
    return Outcome(DETECTED, what)


@fault(times=5)
def stopped_worker(bench: Bench, rng: random.Random) -> Outcome:
    """The watchdog must end a run that waits for a stopped data worker."""
    return with_worker(bench, rng, signal.SIGSTOP, 4, "is stopped")


@fault(times=5)
def dead_worker(bench: Bench, rng: random.Random) -> Outcome:
    return with_worker(bench, rng, signal.SIGKILL, 2, "a data worker died")


@fault(times=5)
def full_disk(bench: Bench, rng: random.Random) -> Outcome:
    """No file may grow beyond a limit, so most saves fail. The run is then continued without the limit."""
    workdir, largest = bench.scratch / "run", rng.randrange(2, 200)
    what = f"files of at most {largest} KiB"
    process = start(bench, workdir, largest=largest)
    try:
        said = end(process)
    except subprocess.TimeoutExpired:
        return Outcome(HUNG, what)
    if process.returncode and ("error: " not in said or "Traceback" in said):
        return Outcome(TRACEBACK, f"{what}: exit code {process.returncode}, {said[-500:]}")
    return continued(bench, workdir, "dense", what)
