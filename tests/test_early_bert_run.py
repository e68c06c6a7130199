"""Runs of EarlyBERT: cost, rewinding, resuming, and the use of a checkpoint without its run folder."""

import json
import shutil

import jax
import numpy as np
import pytest

from bert_fast import BadInput, encoder, inference, methods, qkv
from bert_fast.cost.flops import dense_equivalent, step_flops
from bert_fast.train import checkpoint, description, optim
from bert_fast.train.log import read_rows
from bert_fast.train.sharding import make_mesh
from bert_fast.train.state import resumed
from helpers.interruption import interrupted
from helpers.small_runs import make_settings, rows_without_clock, run, small_config

SEARCH = {"search": 10.0, "mask_every": 2, "window": 3, "neuron_penalty": 1e-3}
EARLY = {**SEARCH, "stop": "early_bird", "window": 2, "threshold": 1.0, "min_steps": 5}


def config_of(small_shards, arguments, **changes):
    return small_config(
        small_shards,
        methods="early_bert",
        early_bert=arguments,
        steps=20,
        log_every=5,
        eval__every=0,
        eval__examples=8,
        checkpoint__every=5,
        checkpoint__keep=1,
        **changes,
    )


def two_phases(small_shards):
    return config_of(small_shards, SEARCH, phases="16:0.5,32:0.5")


@pytest.fixture(scope="module")
def finished(small_shards, tmp_path_factory):
    """10 steps of search, then 10 at 16 tokens and 10 at 32, uninterrupted."""
    workdir = tmp_path_factory.mktemp("slim") / "run"
    return workdir, run(two_phases(small_shards), workdir)


@pytest.fixture(scope="module")
def stopped(small_shards, tmp_path_factory):
    """The same run, stopped twice before it finished: at the end of the search, and after one step of the slim model.

    Returns a copy of the folder at the first stop, a copy at the second stop, and the final folder.
    """
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for step in (10, 11):
            interrupted(two_phases(small_shards), workdir, step, patch)
            shutil.copytree(workdir, workdir.parent / f"at-{step}")
    run(two_phases(small_shards), workdir)
    return workdir.parent / "at-10", workdir.parent / "at-11", workdir


def test_damage_in_the_weights_of_step_0_is_reported_before_the_run_continues(small_shards, stopped, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    largest = max((workdir / "checkpoints/0").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(BadInput, match="checkpoints/0 is damaged"):
        run(two_phases(small_shards), workdir)
    assert "search" not in capsys.readouterr().err  # the run's plan was not printed yet


def same_arrays(one, other, step):
    a, b = (checkpoint.restore_params(folder / f"checkpoints/{step}") for folder in (one, other))
    return jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), a, b))


def stages_of(workdir):
    return [description.stage_from_json(s) for s in json.loads((workdir / "stages.json").read_text())["stages"]]


def coefficients_of(params):
    return [params["layers"][name] for name in ("head_scale", "neuron_scale")]


def test_search_counts_in_every_total_and_slim_stages_cost_less(finished):
    workdir, summary = finished
    searching, first, second = stages_of(workdir)
    assert [stage.name for stage in (searching, first, second)] == ["search", "16-tokens", "32-tokens"]
    full = searching.program.model
    assert (full.heads, full.mlp_dim) == (2, 64)
    for stage in (first, second):
        assert stage.program.model.heads == 1
        assert 70 < sum(stage.program.model.mlp_dim_L) <= 128 - 51  # the 0.4 quantile of 128 is at index 50.8
    assert first.program.model == second.program.model
    flops = [10 * step_flops(stage.program).executed for stage in (searching, first, second)]
    assert flops[1] < flops[0]
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "train"]
    assert [(row["step"], row["flops"]) for row in rows if row["step"] % 10 == 0] == [
        (10, flops[0]),
        (20, flops[0] + flops[1]),
        (30, sum(flops)),
    ]
    assert summary["flops"] == sum(flops)
    dense = [10 * dense_equivalent(stage.program, full) for stage in (searching, first, second)]
    assert summary["flops_dense"] == sum(dense)
    assert summary["steps"] == 30
    assert summary["examples"] == 30 * 8
    assert summary["tokens_padded"] == 8 * (10 * 16 + 10 * 16 + 10 * 32)


def test_rows_show_masks_penalties_and_widths(finished):
    rows = [row for row in read_rows(finished[0] / "metrics.jsonl") if row["split"] == "train"]
    at_5, at_10, *slim = rows
    for row in (at_5, at_10):
        assert row["penalty"] == pytest.approx(1e-4 * 4 + 1e-3 * 128, rel=0.05)
        assert row["loss"] == pytest.approx(row["mlm_loss"] + row["nsp_loss"] + row["penalty"], rel=1e-3)
        assert row["early_bert/neuron_penalty"] > 100 * row["early_bert/head_penalty"]
        assert 0 < row["early_bert/neuron_distance"] <= row["early_bert/neuron_distance_max"] < 1
        assert 0 <= row["early_bert/head_distance"] <= row["early_bert/head_distance_max"] <= 1
        assert row["early_bert/heads"] == [1, 1]
        assert 70 < sum(row["early_bert/neurons"]) <= 77  # fewer if some coefficients equal the threshold
    for row in slim:
        assert "penalty" not in row
        assert "early_bert/neuron_distance" not in row
        # The ticket and the last mask are drawn from the same coefficients, after step 10.
        assert row["early_bert/neurons"] == at_10["early_bert/neurons"]
        assert row["early_bert/heads"] == [1, 1]


def test_slim_model_starts_with_the_initial_weights_and_a_fresh_optimizer(small_shards, stopped):
    at_10, at_11, _ = stopped
    assert checkpoint.steps(at_11 / "checkpoints") == [0, 11]
    initial = checkpoint.restore_params(at_11 / "checkpoints/0")
    searched = checkpoint.restore_params(at_10 / "checkpoints/10")
    slim = checkpoint.restore_params(at_11 / "checkpoints/11")  # after one step at a learning rate of 0
    assert all((c_LU == 1).all() for c_LU in coefficients_of(initial))
    assert all((c_LU != 1).all() for c_LU in coefficients_of(searched))
    assert (searched["embed"]["position"] != initial["embed"]["position"]).any()
    c_LH, c_LF = coefficients_of(searched)
    heads_LH = c_LH > np.quantile(c_LH.astype(float), 0.333333, axis=1, keepdims=True)
    neurons_LF = c_LF > np.quantile(c_LF.astype(float), 0.4)
    for layer in range(2):
        trees = [jax.tree.map(lambda leaf: leaf[layer], tree["layers"]) for tree in (initial, slim)]  # noqa: B023
        of, got = map(qkv.separate, trees)
        heads, neurons = heads_LH[layer], neurons_LF[layer]
        count = neurons.sum()
        for name in qkv.NAMES:
            np.testing.assert_array_equal(got[name]["kernel"], of[name]["kernel"][:, heads])
        np.testing.assert_array_equal(got["attention_output"]["kernel"], of["attention_output"]["kernel"][heads])
        np.testing.assert_array_equal(got["mlp_hidden"]["kernel"][:, :count], of["mlp_hidden"]["kernel"][:, neurons])
        np.testing.assert_array_equal(got["mlp_output"]["kernel"][:count], of["mlp_output"]["kernel"][neurons])
        assert not got["mlp_output"]["kernel"][count:].any()
    for name in ("embed", "mlm", "next"):
        jax.tree.map(np.testing.assert_array_equal, slim[name], initial[name])
    settings = make_settings(two_phases(small_shards))
    mesh, optimizer = make_mesh(-1, 1, 1), optim.make(settings.optimizer)
    method = methods.make(settings.methods)
    state = resumed(at_11 / "checkpoints/11", method, optimizer, mesh)
    (moments,) = [part for part in state.opt_state if isinstance(part, optim.Moments)]
    assert int(moments.count) == 1
    assert jax.tree.structure(moments.mu) == jax.tree.structure(slim)


def test_guessed_widths_of_later_stages_are_never_written(stopped):
    at_10, at_11, end = stopped
    for folder, settled in ((at_10, 1), (at_11, 2), (end, 3)):
        stages = json.loads((folder / "stages.json").read_text())["stages"]
        assert [stage["name"] for stage in stages] == ["search", "16-tokens", "32-tokens"]
        assert [stage["program"] is None for stage in stages] == [False] * settled + [True] * (3 - settled)
        assert [stage["guess"] for stage in stages] == [False] * settled + [True] * (3 - settled)
    # A checkpoint records only the stages up to its own.
    for folder, names in (
        (at_10 / "checkpoints/0", ["search"]),
        (at_10 / "checkpoints/10", ["search"]),
        (at_11 / "checkpoints/11", ["search", "16-tokens"]),
        (end / "checkpoints/30", ["search", "16-tokens", "32-tokens"]),
    ):
        about = checkpoint.about(folder)
        known = [*about.earlier_stages, about.stage]
        assert [stage.name for stage in known] == names
        assert not any(stage.guess for stage in known)
        for name in {"search", "16-tokens", "32-tokens"} - {*names}:
            assert name not in (folder / "about.json").read_text()
    widths = checkpoint.about(at_11 / "checkpoints/11").model.mlp_dim_L
    assert widths == tuple(stage_widths(at_11, 1)) == tuple(stage_widths(end, 2))


def stage_widths(workdir, index):
    """Neurons of each layer, from stages.json."""
    stage = json.loads((workdir / "stages.json").read_text())["stages"][index]
    return description.stage_from_json(stage).program.model.mlp_dim_L


def test_data_and_schedule_restart_after_the_ticket(finished, stopped):
    _, at_11, _ = stopped
    assert checkpoint.about(at_11 / "checkpoints/11").counters.data == {"mlm+nsp/16": 8}
    rates = [row["learning_rate"] for row in read_rows(finished[0] / "metrics.jsonl") if row["split"] == "train"]
    # Search and training both start the schedule of 20 steps at step 0, so their rates at steps 4 and 9 are equal.
    np.testing.assert_allclose(rates, [8e-3, 5.5e-3, 8e-3, 5.5e-3, 3e-3, 5e-4])


def test_run_that_is_stopped_twice_ends_like_an_uninterrupted_one(finished, stopped):
    assert rows_without_clock(stopped[2]) == rows_without_clock(finished[0])
    assert same_arrays(stopped[2], finished[0], 30)
    assert stages_of(stopped[2]) == stages_of(finished[0])


def test_run_stopped_in_the_search_ends_like_an_uninterrupted_one(finished, small_shards, tmp_path, monkeypatch):
    interrupted(two_phases(small_shards), tmp_path, 7, monkeypatch)
    run(two_phases(small_shards), tmp_path)
    assert rows_without_clock(tmp_path) == rows_without_clock(finished[0])
    assert same_arrays(tmp_path, finished[0], 30)


@pytest.mark.slow
def test_search_that_ends_early_resumes_exactly(small_shards, tmp_path, monkeypatch):
    config = config_of(small_shards, EARLY, phases="16:1")
    summary = run(config, tmp_path / "whole")
    assert summary["steps"] == 26  # 6 + 20: the search takes at least 5 steps and is observed every second step
    rows = [row for row in read_rows(tmp_path / "whole/metrics.jsonl") if row["split"] == "train"]
    assert [(row["step"], row["stage"]) for row in rows][:3] == [(5, "search"), (6, "search"), (10, "16-tokens")]
    searching, first = stages_of(tmp_path / "whole")
    assert summary["flops"] == 6 * step_flops(searching.program).executed + 20 * step_flops(first.program).executed
    for at_step in (4, 6):
        interrupted(config, tmp_path / "stopped", at_step, monkeypatch)
    run(config, tmp_path / "stopped")
    assert rows_without_clock(tmp_path / "stopped") == rows_without_clock(tmp_path / "whole")
    assert same_arrays(tmp_path / "stopped", tmp_path / "whole", 26)


def test_slim_checkpoint_can_be_used_without_its_run_folder(finished, tmp_path):
    workdir, summary = finished
    shutil.copytree(workdir / "checkpoints/30", tmp_path / "alone")
    trained = encoder.load(tmp_path / "alone")
    model = trained.program.model
    assert len(set(model.mlp_dim_L)) == 2
    assert trained.params["layers"]["mlp_hidden"]["kernel"].shape == (2, 32, max(model.mlp_dim_L))
    assert trained.params["layers"]["qkv"]["kernel"].shape == (2, 32, 3 * 16)
    result = inference.evaluate(str(tmp_path / "alone"))
    assert result["mlm_loss"] == pytest.approx(summary["valid"]["mlm_loss"], abs=1e-6)
    (((_, probability), *_),) = inference.fill_mask(trained, ["w1 w2 [MASK] w3"])[0]
    assert 0 < probability < 1


def test_checkpoint_of_the_search_is_loaded_with_its_coefficients_applied(stopped):
    folder = stopped[0] / "checkpoints/10"
    raw = checkpoint.restore_params(folder)
    trained = encoder.load(folder)
    assert set(raw["layers"]) - set(trained.params["layers"]) == {"head_scale", "neuron_scale"}
    c_LF = raw["layers"]["neuron_scale"]
    expected = raw["layers"]["mlp_output"]["kernel"] * c_LF[:, :, None]
    np.testing.assert_array_equal(trained.params["layers"]["mlp_output"]["kernel"], expected)
