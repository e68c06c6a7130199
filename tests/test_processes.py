"""Two processes with two devices each write the same rows as one process with four devices."""

import os
import pathlib
import subprocess
import sys

import pytest

from bert_fast.train import checkpoint
from helpers.processes import with_port
from helpers.small_runs import rows_without_clock, small_config

ROOT = pathlib.Path(__file__).parents[1]


def start(small_shards, workdir, devices, *more):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    config = small_config(small_shards)
    flags = [
        f"--config.{key}={config[key]}" for key in ("steps", "log_every", "phases")
    ] + [
        f"--config.{name}.{key}={config[name][key]}"
        for name, key in (
            ("model", "depth"), ("model", "dropout"), ("eval", "every"), ("eval", "seq_len"), ("checkpoint", "every"),
            ("optimizer", "bias_correction"), ("learning_rate", "peak"), ("data", "dir"),
        )
    ]  # fmt: skip
    command = [sys.executable, "-m", "bert_fast", "pretrain", "--config=configs/bert.py:size=tiny,debug"]
    command += [f"--workdir={workdir}", "--config.mesh.fsdp=2", *flags, *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


@pytest.mark.slow
def test_two_processes_with_one_device_each_save_the_initial_state(small_shards, tmp_path):
    flags = [*with_port(), "--config.methods=early_bert", "--config.early_bert.search=2", "--config.steps=4"]
    finish(*(start(small_shards, tmp_path, 1, *flags, f"--process_index={i}") for i in range(2)))
    assert 6 in checkpoint.steps(tmp_path / "checkpoints")


@pytest.mark.slow
def test_two_processes_write_the_same_rows_as_one(small_shards, tmp_path):
    finish(start(small_shards, tmp_path / "one", 4))
    flags = with_port()
    finish(*(start(small_shards, tmp_path / "two", 2, *flags, f"--process_index={i}") for i in range(2)))
    one, two = rows_without_clock(tmp_path / "one"), rows_without_clock(tmp_path / "two")
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), key
    assert checkpoint.steps(tmp_path / "one/checkpoints") == checkpoint.steps(tmp_path / "two/checkpoints")
    # One process can read a checkpoint that two processes wrote.
    checkpoint.restore_params(checkpoint.find(tmp_path / "two"))
