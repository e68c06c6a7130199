"""Sinks get every row, never end or stall a run, and continue the same remote run after an interruption."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from bert_fast import BadInput
from bert_fast.train import resume, sinks
from bert_fast.train.log import MetricWriter, read_rows
from helpers.command_line import ROOT
from helpers.small_runs import make_settings, run, small_config

ROWS = [{"step": step, "split": "train", "loss": 1 / step, "stage": "16-tokens"} for step in (1, 2, 3)]


def made(workdir, names, said) -> list[sinks.Sink]:
    return [sinks.Sink(name, sinks.Tracked(workdir, {"steps": 3}, 0), said.append) for name in names]


def recorded(got):
    return lambda run: (lambda numbers, step: got.append((step, numbers)), lambda: got.append("closed"))


def written(workdir, to):
    writer = MetricWriter(workdir, 0, to)
    for row in ROWS:
        writer.write(row)
    writer.close()


def test_a_sink_gets_the_numbers_of_every_row_and_is_closed(tmp_path, monkeypatch):
    got = []
    monkeypatch.setitem(sinks.SINKS, "wandb", recorded(got))
    written(tmp_path, made(tmp_path, ["wandb"], []))
    assert got == [(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5}), (3, {"train/loss": 1 / 3}), "closed"]


def test_a_sink_that_fails_warns_once_and_the_others_continue(tmp_path, monkeypatch):
    got, said = [], []

    def send(numbers, step):
        raise OSError("no route to host")

    monkeypatch.setitem(sinks.SINKS, "wandb", lambda run: (send, None))
    monkeypatch.setitem(sinks.SINKS, "trackio", recorded(got))
    written(tmp_path, made(tmp_path, ["wandb", "trackio"], said))
    assert said == ["warning: wandb gets no more rows (no route to host): see metrics.jsonl"]
    assert [step for step, _ in got[:-1]] == [1, 2, 3]
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS


def test_a_sink_that_hangs_does_not_delay_rows_and_delays_the_end_only_briefly(tmp_path, monkeypatch):
    said, released = [], threading.Event()
    monkeypatch.setattr(sinks, "PATIENCE", 0.1)
    monkeypatch.setitem(sinks.SINKS, "wandb", lambda run: (lambda numbers, step: released.wait(20), lambda: None))
    began = time.monotonic()
    written(tmp_path, made(tmp_path, ["wandb"], said))
    assert time.monotonic() - began < 5
    assert said == ["warning: wandb did not accept all rows within 0 s: see metrics.jsonl"]
    released.set()


def test_the_id_of_a_run_is_kept_and_has_only_plain_characters(tmp_path):
    (folder := tmp_path / "größe:base #1").mkdir()
    first = sinks.Tracked(folder, {}, 0).id()
    assert first.startswith("gr--e-base--1-")
    assert sinks.Tracked(folder, {}, 20).id() == first


def test_sinks_are_checked_before_anything_runs(small_shards, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"config\.sinks='wandbb' is unknown: did you mean wandb"):
        make_settings(small_config(small_shards, sinks="tensorboard,wandbb"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else True)
    with pytest.raises(BadInput, match=r"trackio is not installed: pip install 'bert_fast\[trackio\]', or leave it"):
        run(small_config(small_shards, sinks="tensorboard,trackio"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sinks_may_change_when_a_run_continues(small_shards, tmp_path):
    config = small_config(small_shards)
    (tmp_path / "config.json").write_text(json.dumps(config))
    resume.refuse_other(tmp_path, {**config, "sinks": ""})
    with pytest.raises(BadInput, match="log_every: 15 there, 5 now"):
        resume.refuse_other(tmp_path, {**config, "sinks": "", "log_every": 5})
    del config["sinks"]  # as in older runs
    assert make_settings(config).sinks == ("tensorboard",)


SCRIPT = """
import json, pathlib, sys
from bert_fast.train import sinks
from bert_fast.train.log import MetricWriter
workdir, after, rows, names = pathlib.Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:]
to = [sinks.Sink(name, sinks.Tracked(workdir, {"steps": 3}, after), print) for name in names]
writer = MetricWriter(workdir, after, to)
for row in rows:
    writer.write(row)
writer.close()
"""


def in_a_process(workdir, after, rows, *names):
    """Runs SCRIPT in a separate process, because wandb and trackio read their settings when they are imported."""
    environment = os.environ | {"WANDB_MODE": "offline", "TRACKIO_DIR": str(workdir / "trackio"), "PYTHONPATH": "."}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(workdir), str(after), json.dumps(rows), *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout, done.stdout


def test_wandb_gets_the_rows_offline_and_continues_its_run(tmp_path):
    pytest.importorskip("wandb", reason="install bert_fast[wandb]")
    in_a_process(tmp_path, 0, ROWS[:2], "wandb")
    in_a_process(tmp_path, 1, ROWS[1:], "wandb")
    name = (tmp_path / sinks.ID).read_text()
    folders = sorted((tmp_path / "wandb").glob(f"offline-run-*-{name}"))
    assert len(folders) == 2  # two parts of one run, which `wandb sync` uploads under the same id
    for folder, values in zip(folders, (b"1.0 0.5", b"0.5 0.3333333333333333"), strict=True):
        (log,) = folder.glob(f"run-{name}.wandb")
        assert all(value in log.read_bytes() for value in (b"train/loss", *values.split()))


def test_trackio_gets_the_rows_and_continues_its_run(tmp_path):
    pytest.importorskip("trackio", reason="install bert_fast[trackio]")
    in_a_process(tmp_path, 0, ROWS[:1], "trackio")
    in_a_process(tmp_path, 1, ROWS[1:], "trackio")
    read = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as S; "
        "print(json.dumps({run: S.get_logs('bert_fast', run) for run in S.get_runs('bert_fast')}))"
    )
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    out = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)
    runs = json.loads(out.stdout)
    assert list(runs) == [(tmp_path / sinks.ID).read_text()]
    ((_, logs),) = runs.items()
    assert [(row["step"], row["train/loss"]) for row in logs] == [(row["step"], row["loss"]) for row in ROWS]
