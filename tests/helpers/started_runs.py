"""Long runs in separate processes, for tests that interrupt them."""

import os
import pathlib
import subprocess
import sys
import time

from bert_fast.train.log import read_rows
from helpers.small_runs import small_config

ROOT = pathlib.Path(__file__).parents[2]


def start(shards, workdir, *flags, **variables):
    """Starts a run of many steps in a separate process."""
    config = small_config(shards)
    given = [f"--config.{key}={config[key]}" for key in ("phases",)]
    given += [f"--config.data.dir={shards}", "--config.steps=1000000", "--config.log_every=1", "--config.eval.every=0"]
    given += ["--config.checkpoint.every=0", "--config.eval.seq_len=16"]
    command = [sys.executable, "-m", "bert_fast", "pretrain", "--config=bert:size=tiny,debug", f"--workdir={workdir}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **variables}
    return subprocess.Popen(
        [*command, *given, *flags], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def until(condition, process, seconds=120.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def steps_of(workdir):
    path = workdir / "metrics.jsonl"
    return len(read_rows(path)) if path.is_file() else 0
