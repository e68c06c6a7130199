"""Continuing a run with another config: what may change, how steps are added, and what is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.data import sealed
from bert_fast.reporting.read import read_run
from bert_fast.train import checkpoint, loop, resume, settings
from bert_fast.train.log import read_rows
from helpers import xla_flags
from helpers.command_line import ROOT
from helpers.interruption import interrupted
from helpers.small_runs import make_settings, run, small_config

STEPS = 24


def config_of(data, **changes):
    small = {"steps": STEPS, "model__depth": 1, "checkpoint__every": 8, "log_every": 4, "eval__every": 12}
    return small_config(data, **{**small, "phases": "16:0.5,32:0.5", **changes})


@pytest.fixture(scope="module")
def whole(small_shards, tmp_path_factory):
    """A finished run, and one that was stopped at step 18, in its second stage."""
    folder = tmp_path_factory.mktemp("runs")
    run(config_of(small_shards), folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupted(config_of(small_shards), folder / "stopped", 18, patch)
    return folder


@pytest.fixture
def stopped(whole, tmp_path):
    return shutil.copytree(whole / "stopped", tmp_path / "run")


def weights(workdir):
    return checkpoint.restore_params(checkpoint.find(workdir))["layers"]


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_settings_that_do_not_affect_the_weights_may_change(whole, stopped, small_shards, tmp_path, capsys):
    shards = shutil.copytree(small_shards, tmp_path / "elsewhere")
    changes = {"log_every": 3, "checkpoint__every": 5, "checkpoint__keep": 1, "eval__every": 7, "data__workers": 1}
    run(config_of(shards, **changes), stopped)
    assert_equal(weights(stopped), weights(whole / "whole"))
    said = capsys.readouterr().err
    assert "changed since this run was last started: checkpoint.every: 8 before, 5 now, " in said
    assert f"data.dir: '{small_shards}' before, '{shards}' now" in said
    assert [row["step"] for row in read_rows(stopped / "metrics.jsonl")][-3:] == [21, 24, 24]


def test_attention_and_recomputation_change_within_a_stage(stopped, small_shards):
    before = checkpoint.about(checkpoint.find(stopped)).stage.program.model
    assert (before.attention, before.recompute) == ("auto", "none")
    run(config_of(small_shards, model__attention="plain", model__recompute="block"), stopped)
    now = checkpoint.about(checkpoint.find(stopped)).stage.program.model
    assert (now.attention, now.recompute) == ("plain", "block")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"learning_rate__peak": 1.0}, r"learning_rate\.peak"),
        ({"steps": 30}, r"steps: 24 there, 30 now\n.*--extend=stretch or --extend=constant"),
        ({"steps": 20}, r"steps: 24 there, 20 now\n.*started with$"),
    ],
)
def test_settings_that_affect_the_weights_may_not_change(stopped, small_shards, changes, said):
    with pytest.raises(BadInput, match=rf"(?s)holds a run with another config:\n  {said}"):
        run(config_of(small_shards, **changes), stopped)


def extend(config, workdir, how):
    return loop.pretrain(dataclasses.replace(make_settings(config), extend=how), config, workdir)


def rates(workdir):
    return {
        row["step"]: row["learning_rate"] for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "train"
    }


@pytest.mark.parametrize("name", ["whole", "stopped"])
def test_extended_run_takes_more_steps_at_the_rate_of_a_longer_run(whole, small_shards, tmp_path, name):
    workdir = shutil.copytree(whole / name, tmp_path / "run")
    config = config_of(small_shards, steps=STEPS + 8)
    before = rates(workdir)
    assert extend(config, workdir, "stretch")["steps"] == STEPS + 8
    longer = make_settings(config).schedule
    found = rates(workdir)
    first = 24 if name == "whole" else 18
    for step, rate in found.items():
        assert rate == (before[step] if step <= first else pytest.approx(longer(step - 1)))
    assert found[28] > 0 == pytest.approx(found[32], abs=1e-3)
    about = checkpoint.about(checkpoint.find(workdir))
    assert (about.planned, about.stage.steps) == (STEPS + 8, STEPS // 2 + 8)
    assert sealed.read(workdir / "summary.json", "")["steps"] == STEPS + 8
    extend(config, workdir, "stretch")  # a second call adds no steps
    assert checkpoint.steps(workdir / "checkpoints")[-1] == STEPS + 8


def test_schedule_that_counts_a_stage_is_stretched_with_the_stage(whole):
    about = checkpoint.about(checkpoint.find(whole / "whole"))
    schedule = dataclasses.replace(about.stage.schedule, steps=36)  # a rate that is not 0 at the end of the stage
    stage = dataclasses.replace(about.stage, schedule=schedule, schedule_from="stage")
    *_, longer = resume.extended([*about.earlier_stages, stage], about, STEPS + 6, "stretch")
    assert (stage.steps, longer.steps, longer.schedule.steps) == (12, 18, 54)


def test_run_with_a_budget_cannot_be_extended(small_shards, tmp_path):
    config = config_of(small_shards, budget="tokens:4000")
    run(config, tmp_path / "run")
    with pytest.raises(
        BadInput, match=r"--extend=stretch: a run with a budget \(tokens:4000\) ends when its budget is spent"
    ):
        extend({**config, "steps": 5000}, tmp_path / "run", "stretch")


@pytest.mark.slow
def test_extended_run_can_keep_its_rate_and_is_resumed_exactly(whole, stopped, small_shards, tmp_path, monkeypatch):
    other = shutil.copytree(stopped, tmp_path / "other")
    config = config_of(small_shards, steps=STEPS + 8)
    extend(config, stopped, "constant")
    found = rates(stopped)
    rate = make_settings(config_of(small_shards)).schedule(17)
    assert [found[step] for step in (20, 24, 28, 32)] == [pytest.approx(rate)] * 4
    with monkeypatch.context() as patch:  # stopped before the first checkpoint after the extension, and again later
        patch.setattr("helpers.interruption.run", lambda config, workdir: extend(config, workdir, "constant"))
        interrupted(config, other, 22, patch)
        interrupted(config, other, 29, patch)
    run(config, other)
    assert_equal(weights(other), weights(stopped))


def test_extension_is_refused_before_the_last_stage_and_for_fewer_steps(small_shards, tmp_path, monkeypatch):
    interrupted(config_of(small_shards), tmp_path / "run", 6, monkeypatch)
    with pytest.raises(BadInput, match=r"last stage, 32-tokens, but step 6 is in stage 16-tokens: .*steps=24 until"):
        extend(config_of(small_shards, steps=30), tmp_path / "run", "stretch")
    with pytest.raises(BadInput, match=r"planned for 24 steps, and --config.steps=20: expected at least 24"):
        extend(config_of(small_shards, steps=20), tmp_path / "run", "stretch")


@pytest.mark.slow
def test_another_mesh_is_accepted_with_a_warning_that_states_the_tolerance(small_shards, tmp_path, monkeypatch):
    interrupted(config_of(small_shards), tmp_path / "run", 18, monkeypatch)
    config = config_of(small_shards)
    code = (
        "import json, pathlib, sys; from helpers.small_runs import run;"
        "run(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags.devices(2),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    arguments = [sys.executable, "-c", code, json.dumps(config), str(tmp_path / "run")]
    done = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING: step 18 was computed on 1 device(s), and the run continues on 2 device(s), data=2" in done.stderr
    assert "1e-5" in done.stderr
    assert checkpoint.about(checkpoint.find(tmp_path / "run")).mesh["data"] == 2


# --- a sealed folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "stages.json", "summary.json"])
def test_a_changed_digit_in_a_file_of_the_run_is_found(whole, tmp_path, small_shards, name):
    workdir = shutil.copytree(whole / "whole", tmp_path / "run")
    content = (workdir / name).read_text()
    at = next(i for i, character in enumerate(content) if character.isdigit())
    (workdir / name).write_text(content[:at] + str((int(content[at]) + 1) % 10) + content[at + 1 :])
    with pytest.raises(BadInput, match=rf"{name} is damaged: its content does not match"):
        read_run(workdir, "run")
    if name == "config.json":
        with pytest.raises(BadInput, match=r"config\.json is damaged"):
            run(config_of(small_shards), workdir)


def test_a_removed_row_is_found_and_a_removed_file_is_reported(stopped, small_shards, capsys):
    path = stopped / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))
    with pytest.raises(
        BadInput, match=rf"has {len(lines) - 1} rows up to step 18, but the checkpoint .* {len(lines)}: "
    ):
        run(config_of(small_shards), stopped)
    path.unlink()
    run(config_of(small_shards), stopped)
    assert f"{path} is missing, with its {len(lines)} rows up to step 18: starting a new one" in capsys.readouterr().err
    assert [row["step"] for row in read_rows(path)] == [20, 24, 24]


def test_every_setting_that_may_change_is_a_key_of_the_config(small_shards):
    known = settings.flat(config_of(small_shards))
    assert set(resume.MAY_CHANGE) | set(resume.MESH) <= known.keys()
