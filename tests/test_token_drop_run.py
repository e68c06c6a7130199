"""Token dropping through the train loop: rows, evaluations, checkpoints, resuming, and several devices."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from bert_fast import BadInput, bert, inference, methods
from bert_fast.methods import token_drop
from bert_fast.plan import whole
from bert_fast.train import checkpoint, compile, optim, sharding, state
from bert_fast.train.log import read_rows
from helpers import xla_flags
from helpers.interruption import interrupted
from helpers.small_runs import make_settings, rows_without_clock, run, small_config

TAIL = 12  # steps before the tail, out of 20


def dropping_config(small_shards, **changes):
    """The config of a run of 20 steps, the last 8 without dropping. It has three layers and examples of 16 tokens."""
    return small_config(
        small_shards,
        **{
            "methods": "token_drop",
            "token_drop__full_tail": 0.4,
            "steps": 20,
            "phases": "16:1",
            "model__depth": 3,
            "log_every": 4,
            "eval__every": 6,
            "checkpoint__every": 6,
            "checkpoint__keep": 100,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def finished(small_shards, tmp_path_factory):
    """(workdir, compiled programs) of an uninterrupted run."""
    workdir, compiled, add = tmp_path_factory.mktemp("token_drop") / "run", [], compile.Programs.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            compile.Programs, "add", lambda self, program, *a: compiled.append(program) or add(self, program, *a)
        )
        run(dropping_config(small_shards), workdir)
    return workdir, compiled


def state_of(folder, config):
    """The whole state of a checkpoint."""
    settings = make_settings(config)
    method, mesh = methods.make(settings.methods), sharding.make_mesh(1, 1, 1)
    return state.resumed(folder, method, optim.make(settings.optimizer), mesh)


def test_rows_report_the_kept_share_and_the_most_and_least_important_words(finished):
    train = [row for row in read_rows(finished[0] / "metrics.jsonl") if row["split"] == "train"]
    assert [(row["step"], row["token_drop/kept"]) for row in train] == [
        (4, 0.5), (8, 0.5), (12, 0.5), (16, 1.0), (20, 1.0)
    ]  # fmt: skip
    pieces = (finished[0] / "checkpoints/20/vocab.txt").read_text().splitlines()
    for row in train:
        most, least = row["token_drop/most_important"], row["token_drop/least_important"]
        assert len(most) == len(least) == 10
        assert {*most, *least} <= {*pieces} - {*pieces[:5]}
    # The most frequent words have the lowest ids and are learned first.
    assert {"##c0", "w1"} <= {*train[-1]["token_drop/least_important"]}
    assert train[2]["flops"] / train[2]["flops_dense"] < 0.9
    saved_at, saved_in_all = (row["flops_dense"] - row["flops"] for row in (train[2], train[4]))
    assert saved_at == saved_in_all > 0


def test_evaluation_drops_nothing_and_also_reports_the_loss_with_dropping(finished, small_shards):
    valid = {row["step"]: row for row in read_rows(finished[0] / "metrics.jsonl") if row["split"] == "valid"}
    assert [step for step, row in valid.items() if "mlm_loss_dropping" in row] == [6, 12]
    assert list(valid) == [6, 12, 18, 20]
    for step in (6, 12):
        plain = inference.evaluate(str(finished[0] / f"checkpoints/{step}"))
        assert valid[step]["mlm_loss"] == pytest.approx(plain["mlm_loss"], abs=1e-6)
        assert abs(valid[step]["mlm_loss_dropping"] - plain["mlm_loss"]) > 1e-4


def test_one_program_with_dropping_and_one_without_are_compiled(finished):
    with_dropping, without = finished[1]
    assert without.plan == whole(3) != with_dropping.plan


# The run is interrupted inside the stage with dropping, exactly at the end of that stage, and in the tail.
@pytest.mark.parametrize(
    "at_step", [pytest.param(7, marks=pytest.mark.slow), TAIL, pytest.param(15, marks=pytest.mark.slow)]
)
def test_interrupted_run_ends_like_an_uninterrupted_one(finished, small_shards, tmp_path, monkeypatch, at_step):
    config = dropping_config(small_shards)
    interrupted(config, tmp_path, at_step, monkeypatch)
    run(config, tmp_path)
    assert rows_without_clock(tmp_path) == rows_without_clock(finished[0])
    ours, theirs = (state_of(folder / "checkpoints/20", config) for folder in (tmp_path, finished[0]))
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), ours, theirs)
    assert jax.tree.all(same)


def test_scores_are_in_the_checkpoint_but_are_not_parameters(finished, small_shards):
    config = dropping_config(small_shards)
    kept = checkpoint.shapes(finished[0] / "checkpoints/6")
    learns = kept["params"]
    assert kept.keys() == {"step", "params", "optimizer", "method"}  # nothing is frozen
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(kept["method"])] == [((128,), np.float32)]
    plain = jax.eval_shape(lambda: bert.init(make_settings(config).model, jax.random.key(0)))
    assert jax.tree.structure(learns) == jax.tree.structure(plain)
    state = state_of(finished[0] / "checkpoints/6", config)
    assert len(jax.tree.leaves(state.opt_state)) == 2 * len(jax.tree.leaves(learns)) + 1
    (score_V,) = state.method
    assert np.asarray(score_V[:5]).tolist() == [-1e4, 1e4, 1e4, 1e4, 1e4]
    assert set(np.asarray(score_V[83:]).tolist()) == {10.0}  # rows past the vocabulary
    learned = np.asarray(score_V[5:83]) != 10
    assert 10 < learned.sum() < 78
    assert (np.asarray(score_V[5:83])[learned] < 10).all()


def test_keep_that_is_too_small_is_refused_before_anything_is_written(small_shards, tmp_path):
    with pytest.raises(BadInput, match=r"keeps 5 of 16 tokens.*token_drop\.keep=0\.375,"):
        run(dropping_config(small_shards, token_drop__keep=0.3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_eight_devices_order_a_batch_and_learn_from_it_like_one_device():
    root = pathlib.Path(__file__).parents[1]
    environment = {"PYTHONPATH": f"{root}:{root / 'tests'}", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = xla_flags.devices(8)
    done = subprocess.run([sys.executable, __file__], capture_output=True, cwd=root, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert said.keys() == {"mean", "last_write", "frequency"}
    assert all(all(case.values()) for case in said.values()), said


def eight_devices():
    """Prints, as JSON, whether eight devices order a batch and learn from it like one device."""
    from bert_fast import bert
    from bert_fast.method import Program
    from helpers.token_drop_cases import POST, SCORE_V, planned

    rng, B, S, P = np.random.default_rng(0), 16, 12, 3
    batch = {name: rng.integers(0, 2, (B, S)) for name in ("types", "positions", "segments")}
    batch |= {"ids": rng.integers(0, 150, (B, S)), "slots": rng.integers(0, S, (B, P)), "cls": rng.integers(0, S, B)}
    batch |= {"labels": rng.integers(0, 20, (B, P))}
    batch = {name: x.astype(np.int32) for name, x in batch.items()} | {"weights": rng.random((B, P), np.float32)}
    losses_BP = rng.uniform(0, 12, (B, P)).astype(np.float32)
    program, result = Program(POST, planned(), B, 1, S, P, "mlm"), {}
    for name, arguments in {
        "mean": {}, "last_write": {"repeats": "last_write"}, "frequency": {"scores": "frequency"}
    }.items():  # fmt: skip
        method = token_drop.make(**arguments)

        def step(score_V, batch, losses_BP, method=method):
            ordered = method.order(score_V, batch, program, jax.random.key(0))
            return ordered, method.update(score_V, {}, ordered, bert.Losses(losses_BP, None, None, None))

        on = []
        for mesh in (sharding.make_mesh(1, 1, 1, jax.devices()[:1]), sharding.make_mesh(8, 1, 1)):
            rows = jax.sharding.NamedSharding(mesh, sharding.BATCH)
            everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            inputs = (jax.device_put(SCORE_V, everywhere), *jax.device_put((batch, losses_BP), rows))
            on.append(jax.jit(step, out_shardings=(rows, everywhere))(*inputs))
        (one, score_V), (eight, other_V) = on
        replicas = [np.asarray(shard.data) for shard in other_V.addressable_shards]
        result[name] = {
            "ordered": all(np.array_equal(one[key], eight[key]) for key in one),
            "replicas": all(np.array_equal(replicas[0], replica) for replica in replicas),
            "learned": np.allclose(score_V, other_V, rtol=1e-6, atol=0),
        }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    eight_devices()
