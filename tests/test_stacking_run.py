"""Stacking and MSLT through the loop: checkpoints of every stage, exact resume, and traffic between 8 devices."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from bert_fast import BadInput, encoder, inference, methods
from bert_fast.train import checkpoint, optim, settings
from bert_fast.train.log import read_rows
from bert_fast.train.sharding import make_mesh
from bert_fast.train.state import resumed
from bert_fast.train.timeline import stages
from helpers.config_files import CONFIGS, VOCAB, get_config
from helpers.interruption import interrupted
from helpers.small_runs import make_settings, rows_without_clock, run, small_config


def grown_config(small_shards, **arguments):
    """A config for 30 steps of a 2-layer model. It has no dropout, because compiling dropout would take most of the
    time of such a short run.
    """
    return small_config(
        small_shards, methods="stacking", phases="16:1", steps=30, log_every=5, data__objective="mlm",
        model__norm="pre", model__pooler=False, model__dropout=0.0, model__attention_dropout=0.0, eval__every=0,
        checkpoint__every=5, checkpoint__keep=100, **{f"stacking__{key}": value for key, value in arguments.items()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def mslt(small_shards, tmp_path_factory):
    """An MSLT run. It trains one layer for 15 steps. For 9 steps, it then trains only a second layer and the head, with
    an untied table. Finally it trains everything for 6 steps.
    """
    config = grown_config(
        small_shards, variant="mslt", depths="1,2", shares="0.5,0.3,0.2", embedding="C", warm_again=0.1
    )
    workdir = tmp_path_factory.mktemp("mslt") / "run"
    return config, workdir, run(config, workdir)


def params_at(workdir, step):
    return checkpoint.restore_params(workdir / f"checkpoints/{step}")


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), a, b))


def lowest(params):
    return jax.tree.map(lambda leaf: leaf[0], params["layers"])


def test_rows_report_depth_and_number_of_learning_layers(mslt):
    _, workdir, summary = mslt
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "train"]
    seen = [tuple(row[f"stacking/{key}"] for key in ("depth", "learning_layers")) for row in rows]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 24, 25, 30]
    assert [row["stage"] for row in rows] == ["1-layers"] * 3 + ["2-layers"] * 2 + ["joint"] * 2
    assert seen == [(1, 1)] * 3 + [(2, 1)] * 2 + [(2, 2)] * 2
    assert summary["flops"] < 0.75 * summary["flops_dense"]
    # In the second and the third stage, the rate climbs again from 0 over 3 steps. Step 25 is the first step of the
    # joint stage, so the rate of this step is 0.
    rates = [1e-2 * (1 - (row["step"] - 1) / 30) for row in rows]
    assert [row["learning_rate"] for row in rows] == pytest.approx([*rates[:5], 0, rates[6]])


def test_frozen_parameters_are_byte_identical_until_the_joint_stage(mslt):
    _, workdir, _ = mslt
    before, inside, later, end = (params_at(workdir, step) for step in (15, 20, 25, 30))
    assert same(lowest(before), lowest(inside))
    assert same(before["embed"], inside["embed"])
    assert not same(before["embed"]["word"], inside["mlm"]["word"])
    assert "word" not in later["mlm"]
    # In the joint stage every parameter changes.
    assert not any(jax.tree.leaves(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), later, end)))
    kept = checkpoint.shapes(workdir / "checkpoints/20")
    learns, frozen = kept["params"], kept["frozen"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(frozen["layers"])} == {1}
    assert {leaf.shape[0] for leaf in jax.tree.leaves(learns["layers"])} == {1}
    assert set(learns) == {"layers", "mlm", "final_norm"}


# The run is interrupted inside the stage with a frozen layer (18), and where that stage begins (15) and ends (24).
@pytest.mark.parametrize("at_step", [18, 15, pytest.param(24, marks=pytest.mark.slow)])
def test_interrupted_run_ends_like_an_uninterrupted_one(mslt, tmp_path, monkeypatch, at_step):
    config, whole, _ = mslt
    interrupted(config, tmp_path, at_step, monkeypatch)
    run(config, tmp_path)
    assert rows_without_clock(tmp_path) == rows_without_clock(whole)
    assert same(params_at(tmp_path, 30), params_at(whole, 30))


def test_half_grown_checkpoint_restores_without_its_config(mslt, small_shards, tmp_path):
    _, whole, _ = mslt
    shallow, untied = (shutil.copytree(whole / f"checkpoints/{step}", tmp_path / str(step)) for step in (5, 20))
    trained = encoder.load(shallow)
    assert (trained.program.model.depth, trained.program.model.tied) == (1, True)
    assert len(inference.fill_mask(trained, ["w1 [MASK] w2"])[0][0]) == 5
    trained = encoder.load(untied)
    assert (trained.program.model.depth, trained.program.model.tied) == (2, False)
    assert inference.evaluate(str(untied), str(small_shards))["mlm_loss"] < np.log(83)


@pytest.mark.slow
def test_stacking_with_carried_moments_resumes_at_its_boundary(small_shards, tmp_path, monkeypatch):
    config = grown_config(small_shards, optimizer="carry", learning_rate="run")
    run(config, tmp_path / "whole")
    assert [jax.tree.leaves(params_at(tmp_path / "whole", step)["layers"])[0].shape[0] for step in (5, 10)] == [1, 2]
    interrupted(config, tmp_path / "stopped", 9, monkeypatch)
    run(config, tmp_path / "stopped")
    assert rows_without_clock(tmp_path / "stopped") == rows_without_clock(tmp_path / "whole")
    assert same(params_at(tmp_path / "stopped", 30), params_at(tmp_path / "whole", 30))


# In these cases, moments are carried over for a table that is frozen for one stage, for a copied table, and for layers
# that are trained again later.
@pytest.mark.slow
@pytest.mark.parametrize("embedding", ["A", "B", "C"])
def test_mslt_with_carried_moments_runs_to_its_end(small_shards, tmp_path, embedding):
    arguments = {"variant": "mslt", "depths": "1,2", "shares": "0.5,0.3,0.2", "warm_again": 0.1}
    config = grown_config(small_shards, embedding=embedding, optimizer="carry", **arguments)
    summary = run(config, tmp_path)
    assert summary["steps"] == 30
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "train"]
    assert [row["stage"] for row in rows] == ["1-layers"] * 3 + ["2-layers"] * 2 + ["joint"] * 2
    assert rows[-1]["mlm_loss"] < rows[0]["mlm_loss"]
    counts = [counted(tmp_path / f"checkpoints/{step}", config) for step in (10, 15, 20, 30)]
    assert counts == [10, 15, 20, 30]


def counted(folder, config):
    """The step count in a checkpoint's moments."""
    made = make_settings(config)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    state = resumed(folder, methods.make(made.methods), optim.make(made.optimizer), mesh)
    (moments,) = [part for part in state.opt_state if isinstance(part, optim.Moments)]
    return int(moments.count)


def test_bad_stages_are_refused_before_anything_is_written(small_shards, tmp_path):
    config = grown_config(small_shards, depths="1,3")
    with pytest.raises(BadInput, match="end with the model's 2 layers"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# 8 devices


def measured(*names):
    script = pathlib.Path(__file__).parent / "helpers" / "growth_devices.py"
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, script, *names], capture_output=True, cwd=root, env={"PYTHONPATH": f"{root}:{root / 'tests'}"}
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=1))
    for result in found.values():
        assert result["other"] == 0
        assert result["moments"] == 2 * result["learns"]
    return found


@pytest.mark.slow
def test_only_gradients_of_trainable_parameters_are_all_reduced():
    found = measured("dense", "B")
    dense, grown = found["dense"], found["B"]
    # In addition to the gradients, a step all-reduces sums for the losses and the metrics.
    assert 0 < grown["all-reduce"] - grown["learns"] < 100
    # A dense step may send the gradient of its tied table twice, once for each use of the table.
    assert 0 < dense["all-reduce"] - dense["learns"] < dense["table"] + 100
    assert dense["learns"] - grown["learns"] == dense["embeddings"] + dense["layer"]


@pytest.mark.slow
@pytest.mark.parametrize("embedding", ["A", "C"])
def test_trainable_table_is_all_reduced_once(embedding):
    found = measured("B", embedding)
    assert 0 < found[embedding]["all-reduce"] - found[embedding]["learns"] < 100
    assert found[embedding]["learns"] - found["B"]["learns"] == found["B"]["table"]


# Configs


def config_of(name, text=None):
    return get_config(next(path for path in CONFIGS if path.stem == name))(text)


def test_config_of_stacking_is_the_released_recipe():
    config = config_of("stacking")
    assert config.methods == "stacking"
    assert (config.steps, config.batch_size, config.phases) == (400_000, 312, "384:1")
    # --max-tokens x --update-freq of each stage of reproduce_bert.sh on 4 GPUs, averaged over the updates.
    tokens = 4 * np.average([25_600, 2 * 14_336, 3 * 10_240], weights=[50, 70, 280])
    assert config.batch_size * 384 == pytest.approx(tokens, rel=0.01)
    assert (config.learning_rate.peak, config.learning_rate.warmup_steps, config.learning_rate.start) == (
        8e-4,
        0.025,
        1e-7,
    )
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.eps) == ("adamw", 0.9, 0.999, 1e-6)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.bias_correction) == (0.01, 0, True)
    assert optimizer.eps_before_correction
    assert config.model.norm_eps == 1e-5
    assert (config.model.norm, config.model.embed_norm, config.model.dropout) == ("pre", False, 0.1)
    assert config.data.objective == "mlm+nsp"
    assert timeline(config) == [("3-layers", 50_000), ("6-layers", 70_000), ("12-layers", 280_000)]


def timeline(config):
    made = settings.make(config.to_dict(), VOCAB, tuple(methods.known()))
    return [(stage.name, stage.steps) for stage in stages(made, methods.make(made.methods))]


def test_config_of_mslt_is_berts_recipe_in_five_stages():
    config, bert = config_of("mslt").to_dict(), config_of("bert").to_dict()
    assert config["stacking"].pop("variant") == "mslt"
    assert bert["stacking"].pop("variant") == "stacking"
    assert config | {"methods": ""} == bert
    assert timeline(config_of("mslt")) == [
        ("3-layers/128-tokens", 200_000), ("6-layers/128-tokens", 200_000), ("9-layers/128-tokens", 200_000),
        ("12-layers/128-tokens", 200_000), ("joint/128-tokens", 100_000), ("joint/512-tokens", 100_000),
    ]  # fmt: skip
    assert config_of("mslt", "embedding=A").stacking.embedding == "A"
    assert config_of("mslt", "size=large,seq=128,norm=pre,objective=mlm").model.norm == "pre"
    assert timeline(config_of("mslt", "size=large,seq=128"))[-2:] == [("24-layers", 200_000), ("joint", 200_000)]


@pytest.mark.parametrize("name", ["stacking", "mslt"])
@pytest.mark.parametrize("size", ["tiny", "mini", "large", "large,debug", "tiny,debug"])
def test_configs_grow_at_every_size(name, size):
    config = config_of(name, f"size={size}")
    assert sum(steps for _, steps in timeline(config)) == config.steps
