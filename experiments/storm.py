"""Kills a run of all four methods again and again, and compares its result with an undisturbed run's.

    python -m experiments.storm [--kills=200] [--mean=15] [--workdir=runs/storm]

Each process of the run gets SIGKILL after a random time, drawn from an exponential distribution with a mean of --mean
seconds. A new process then continues the run. After the last kill, the run may finish. Use a machine with two idle
cores: the undisturbed run trains on the second one. If you stop the script with Ctrl-C, the same command continues with
the next kill. The script writes experiments/storm.json, and `python -m experiments.faults` shows it on its page.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from bert_fast.data.files import atomic_json
from bert_fast.train import checkpoint
from experiments import common, faults
from experiments.fault_types import Bench, processes

STEPS_PER_SECOND = 40  # roughly, on one core; with it, the script makes the run long enough for all kills
FLAGS = (
    *processes.METHODS["combined"],
    *(f"--config.{key}={value}" for key, value in {"log_every": 50, "checkpoint.every": 100}.items()),
)


def start(bench: Bench, workdir: pathlib.Path, steps: int) -> subprocess.Popen:
    with log_of(workdir).open("a") as errors:
        return processes.start(bench, workdir, *FLAGS, f"--config.steps={steps}", errors=errors)


def log_of(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_suffix(".log")


def finish(process: subprocess.Popen, workdir: pathlib.Path):
    """Waits for a process that must finish."""
    if code := process.wait():
        sys.exit(f"error: the run ended with exit code {code}: {log_of(workdir).read_text()[-1000:]}")


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mean", type=float, default=15.0, help="seconds that a process lives, on average")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/storm"))
    args = parser.parse_args()
    folder = args.workdir.resolve()
    bench = faults.make_bench(folder / "bench")
    steps = int(args.kills * args.mean * STEPS_PER_SECOND)
    log = folder / "kills.jsonl"
    killed = len(log.read_text().splitlines()) if log.exists() else 0
    whole = start(bench, folder / "whole", steps) if not (folder / "whole/summary.json").exists() else None
    try:
        while killed < args.kills and not (folder / "run/summary.json").exists():
            lives = random.Random(f"kill {killed}").expovariate(1 / args.mean)
            process = start(bench, folder / "run", steps)
            try:
                process.wait(lives)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
                newest = max(checkpoint.steps(folder / "run/checkpoints"), default=0)
                with log.open("a") as file:
                    file.write(json.dumps({"lived": round(lives, 2), "newest": newest, "time": time.time()}) + "\n")
                print(f"kill {killed} of {args.kills}, after {lives:.1f} s: newest checkpoint {newest:,}", flush=True)
            else:
                finish(process, folder / "run")
        if not (folder / "run/summary.json").exists():
            finish(start(bench, folder / "run", steps), folder / "run")
        if whole is not None:
            finish(whole, folder / "whole")
    finally:
        if whole is not None and whole.poll() is None:
            os.killpg(whole.pid, signal.SIGTERM)
            whole.wait()
    summary = json.loads((folder / "run/summary.json").read_text())
    same = processes.state_of(folder / "run") == processes.state_of(folder / "whole")
    found = {"kills": killed, "mean": args.mean, "steps": steps, "same": same, "goodput": round(summary["goodput"], 3)}
    atomic_json(common.HERE / "storm.json", found)
    print(json.dumps(found))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
