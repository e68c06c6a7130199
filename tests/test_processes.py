"""With every method, several processes write the same rows as one process that has as many devices as all of them."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest
from absl import flags

from bert_fast import BadInput, commands
from bert_fast.train import checkpoint
from helpers import xla_flags
from helpers.processes import with_port
from helpers.small_runs import rows_without_clock, small_config

ROOT = pathlib.Path(__file__).parents[1]
# All four methods together, and MSLT, whose frozen layers send no gradients.
METHODS = {
    "all four": (
        "methods=stacking,early_bert,token_drop,layer_drop",
        "model.norm=pre",
        "early_bert.search=0.3",
    ),
    "MSLT": ("methods=stacking", "stacking.variant=mslt"),
}


def start(small_shards, workdir, devices, *more):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags.devices(devices),
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
    compare(small_shards, tmp_path, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_four_processes_write_the_same_rows_as_one(small_shards, tmp_path, name):
    compare(small_shards, tmp_path, 4, *(f"--config.{flag}" for flag in METHODS[name]))


def compare(small_shards, tmp_path, count, *more):
    """Compares a run of `count` processes with a run of a single process. Each run has four devices in total."""
    finish(start(small_shards, tmp_path / "one", 4, *more))
    flags = [*with_port(count), *more]
    finish(*(start(small_shards, tmp_path / "many", 4 // count, *flags, f"--process_index={i}") for i in range(count)))
    one, many = rows_without_clock(tmp_path / "one"), rows_without_clock(tmp_path / "many")
    assert len(one) == len(many) >= 6
    for a, b in zip(one, many, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), key
    assert checkpoint.steps(tmp_path / "one/checkpoints") == checkpoint.steps(tmp_path / "many/checkpoints")
    # One process can read a checkpoint that several processes wrote.
    checkpoint.restore_params(checkpoint.find(tmp_path / "many"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("localhost:1", 2, 2), "--process_index=2: expected 0 to 1, because --process_count=2"),
        (("localhost", 2, 0), "--coordinator=localhost: expected HOST:PORT"),
        (("localhost:1", 2, None), "go together"),
        ((None, None, None), "--distributed: JAX finds no cluster here"),
    ],
)
def test_processes_that_cannot_join_are_refused(given, said, monkeypatch):
    def none(*_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", none)
    args = flags.FlagValues()
    commands.process_flags(args)
    args([""])
    args.distributed = given == (None, None, None)
    for name, value in zip(("coordinator", "process_count", "process_index"), given, strict=True):
        args[name].value = value
    with pytest.raises(BadInput, match=re.escape(said)):
        commands.join_processes(args)
