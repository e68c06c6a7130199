"""Fine-tuning in two processes gives the same results as in one process."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from helpers import xla_flags
from helpers.made_tasks import write_checkpoint, write_glue
from helpers.processes import with_port

ROOT = pathlib.Path(__file__).parents[1]


def start(folder: pathlib.Path, workdir: pathlib.Path, devices: int, *more: str) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags.devices(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    values = {"data.dir": folder, "data.seq_len": 48, "seeds": "0,1", "epochs": 2, "batch_size": 8, "micro_batches": 2}
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "bert_fast", "finetune", "--config=configs/glue.py:task=mrpc,debug"]
    command += [f"--checkpoint={folder / 'encoder'}", f"--workdir={workdir}", *flags, *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


def runs_of(workdir: pathlib.Path) -> list[dict]:
    return json.loads((workdir / "results.json").read_text())["tasks"]["mrpc"]["runs"]


@pytest.mark.slow
def test_two_processes_score_the_same_as_one(tmp_path):
    write_glue(tmp_path, ("mrpc",), train=60, dev=20, test=6)
    (tmp_path / "encoder").mkdir()
    write_checkpoint(tmp_path / "encoder")
    finish(start(tmp_path, tmp_path / "one", 4))
    flags = with_port()
    finish(*(start(tmp_path, tmp_path / "two", 2, *flags, f"--process_index={i}") for i in range(2)))
    one, two = runs_of(tmp_path / "one"), runs_of(tmp_path / "two")
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert [row["step"] for row in a["curve"]] == [row["step"] for row in b["curve"]]
        for row, other in zip(a["curve"], b["curve"], strict=True):
            assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-5)
            assert other["score"] == pytest.approx(row["score"], abs=1e-5)
        assert (a["flops"], a["tokens_real"], a["examples"]) == (b["flops"], b["tokens_real"], b["examples"])
        name = f"mrpc/lr={a['learning_rate']:g},seed={a['seed']}"
        for place in ("dev", "test"):
            files = [tmp_path / folder / name / place / "MRPC.tsv" for folder in ("one", "two")]
            assert files[0].read_text() == files[1].read_text()
