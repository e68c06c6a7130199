"""The guard: the train step discards bad updates. After several of them, the run goes back to a checkpoint or stops."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import bert
from bert_fast.plan import Route
from bert_fast.train import checkpoint, guard, inputs, rollback
from bert_fast.train.counters import Counters
from bert_fast.train.guard import BadSteps, Diverged, Guard
from bert_fast.train.log import MetricWriter, read_rows
from bert_fast.train.step import LARGEST
from helpers.interruption import interrupted
from helpers.small_runs import run, small_config
from helpers.steps import CONFIG, PROGRAM, batch_of, step_and_state
from helpers.tiers import tiers

SMALL = {"steps": 12, "phases": "16:1", "eval__every": 0, "checkpoint__every": 4, "log_every": 1}
SMALL |= {"learning_rate__peak": 1e-3}
SEED = np.uint32(0)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- in the step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("bad", ["loss", "gradient", "limit"])
def test_bad_step_changes_only_the_step_number(bad, micro_batches):
    step, state = step_and_state(
        dataclasses.replace(PROGRAM, micro_batches=micro_batches), bert.init(CONFIG, jax.random.key(0))
    )
    batch, limit = batch_of(), LARGEST
    if bad == "loss":
        batch["weights"][0, 0] = np.nan
    elif bad == "gradient":
        batch["weights"][0] = 1e30, -1e30  # their squares overflow
    else:
        limit = 1e-3
    route = Route()
    after, metrics = jax.jit(step)(state, batch, route, 0.1, SEED, limit=np.float32(limit))
    assert not metrics["kept"]
    assert after.step == state.step + 1
    equal(after._replace(step=0), state._replace(step=0))
    good, metrics = jax.jit(step)(state, batch_of(), route, 0.1, SEED, limit=np.float32(LARGEST))
    assert metrics["kept"]
    assert not np.array_equal(good.params["mlm"]["bias"], state.params["mlm"]["bias"])


def test_norm_of_the_new_parameters_is_reported():
    step, state = step_and_state(PROGRAM, bert.init(CONFIG, jax.random.key(0)))
    state, metrics = jax.jit(step)(state, batch_of(), Route(), 0.1, SEED)
    expected = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(state.params)))
    assert float(metrics["parameter_norm"]) == pytest.approx(expected, rel=1e-5)
    _, metrics = jax.jit(step)(state, batch_of(), Route(), jnp.float32(np.inf), SEED)
    assert not np.isfinite(metrics["parameter_norm"])


# --- the policy -------------------------------------------------------------------------------------------------------


def test_limit_is_a_multiple_of_the_median_of_the_recent_norms():
    policy = Guard(factor=3.0, recent=3)
    assert guard.limit(policy, [1.0, 2.0]) == LARGEST
    assert guard.limit(policy, [9.0, 1.0, 2.0, 7.0]) == 6.0
    assert guard.limit(dataclasses.replace(policy, factor=0.0), [1.0, 2.0, 7.0]) == LARGEST
    assert guard.limit(policy, [3e38] * 3) == LARGEST


def test_limit_of_a_step_does_not_depend_on_the_norm_of_the_step_before():
    # The step before may still be in progress. If its norm counted only sometimes, a resumed run would keep different
    # steps.
    counters = Counters()
    for norm in (1.0, 2.0, 3.0):
        counters.add({}, norm)
        counters.set_limit(Guard(factor=10.0, recent=1))
    assert counters.limits == [20.0, 30.0]
    assert Counters.from_json(json.loads(json.dumps(counters.to_json()))).limits == [20.0, 30.0]
    counters.end_stage(3, restart=False)
    assert (counters.norms, counters.limits) == ([], [LARGEST] * 2)


def test_position_in_the_data_passes_over_the_avoided_parts():
    parts = [["a", 8, 16], ["a", 16, 24], ["b", 0, 99]]
    assert [guard.past(parts, "a", index) for index in (0, 8, 12, 24)] == [0, 24, 24, 24]


# --- in a run ---------------------------------------------------------------------------------------------------------


def poison(monkeypatch, bad):
    """Makes the loss NaN for each batch for which `bad(after)` is true. after: the data's index after the batch."""
    batches_of = inputs.batches_of

    def poisoned(*arguments):
        for after, batch in batches_of(*arguments):
            yield after, batch | {"weights": batch["weights"] * np.float32(np.nan if bad(after) else 1)}

    monkeypatch.setattr(inputs, "batches_of", poisoned)


def test_bad_batch_is_skipped_and_counted(small_shards, tmp_path, monkeypatch):
    poison(monkeypatch, lambda after: after == 8 * 6)
    summary = run(small_config(small_shards, **SMALL), tmp_path)
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "train"]
    assert [row["step"] for row in rows] == [*range(1, 6), *range(7, 13)]
    assert [row["skipped_steps"] for row in rows] == [0] * 5 + [1] * 6
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert (summary["skipped_steps"], summary["rollbacks"], summary["examples"]) == (1, 0, 12 * 8)


def test_gradient_far_above_the_recent_ones_is_skipped(small_shards, tmp_path, capsys):
    policy = {"guard__factor": 0.99, "guard__recent": 4, "guard__in_a_row": 9}  # about half of the norms are too large
    summary = run(small_config(small_shards, **SMALL, **policy), tmp_path)
    assert summary["skipped_steps"] > 0
    assert "far above the recent ones: the step is skipped" in capsys.readouterr().err


BACK = {"guard__in_a_row": 2, "guard__rollbacks": 1}


def test_after_several_bad_steps_the_run_goes_back_and_skips_their_data(small_shards, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, lambda after: after in (8 * 6, 8 * 7))
    summary = run(small_config(small_shards, **SMALL, **BACK), tmp_path)
    assert (summary["skipped_steps"], summary["rollbacks"], summary["wasted_steps"]) == (2, 1, 3)
    assert "the last of 2 such steps in a row: back to step 4" in capsys.readouterr().err
    about = checkpoint.about(checkpoint.find(tmp_path))
    assert about.counters.avoided == [["mlm+nsp/16", 8 * 4, 8 * 7]]
    assert about.counters.data == {"mlm+nsp/16": 8 * (12 + 3)}
    assert about.counters.counts["examples"] == 12 * 8
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["rollbacks"] for row in rows] == [0] * 4 + [1] * 8


def state_of(workdir):
    return checkpoint.restore_params(checkpoint.find(workdir))


def untimed(counters):
    return {key: value for key, value in counters.to_json().items() if key not in ("times", "saved_at", "end_seconds")}


@pytest.mark.parametrize("at_step", tiers([6, 7, 9], slow=[6]))
def test_run_resumed_between_bad_steps_equals_an_uninterrupted_run(small_shards, tmp_path, monkeypatch, at_step):
    poison(monkeypatch, lambda after: after in (8 * 6, 8 * 7))
    policy = {"guard__factor": 1.05, "guard__recent": 2, "guard__in_a_row": 2, "guard__rollbacks": 9}
    config = small_config(small_shards, **SMALL, **policy | {"guard__most": 99, "methods": "token_drop"})
    run(config, tmp_path / "once")
    interrupted(config, tmp_path / "twice", at_step, monkeypatch)
    run(config, tmp_path / "twice")
    once, twice = (checkpoint.about(checkpoint.find(tmp_path / name)).counters for name in ("once", "twice"))
    assert untimed(once) == untimed(twice)
    assert once.counts["rollbacks"] >= 1
    equal(state_of(tmp_path / "once"), state_of(tmp_path / "twice"))


def test_run_stops_with_exit_code_3_after_going_back_as_often_as_allowed(small_shards, tmp_path, monkeypatch):
    poison(monkeypatch, lambda after: after > 8 * 5)
    with pytest.raises(Diverged, match=r"gone back 1 times: --config\.guard\.rollbacks=1") as stopped:
        run(small_config(small_shards, **SMALL, **BACK), tmp_path)
    assert stopped.value.exit_code == 3
    assert checkpoint.steps(tmp_path / "checkpoints") == [4]


def test_run_without_a_checkpoint_goes_back_to_its_first_step(small_shards, tmp_path, monkeypatch):
    poison(monkeypatch, lambda after: after in (8, 16))
    summary = run(small_config(small_shards, **SMALL, **BACK), tmp_path)
    assert (summary["steps"], summary["rollbacks"], summary["examples"]) == (12, 1, 96)


def test_run_does_not_go_back_to_a_checkpoint_saved_among_bad_steps(small_shards, tmp_path, monkeypatch):
    poison(monkeypatch, lambda after: after > 8 * 7)
    policy = {"guard__in_a_row": 3, "guard__rollbacks": 0}  # the run stops, and keeps the checkpoint
    with pytest.raises(Diverged):
        run(small_config(small_shards, **SMALL, **policy), tmp_path)
    assert checkpoint.about(tmp_path / "checkpoints/8").counters.streak == 1
    counters = Counters(streak=3)
    found = rollback.target(tmp_path / "checkpoints", Guard(), counters, BadSteps("x"), print)
    assert found == tmp_path / "checkpoints/4"


def test_run_killed_after_going_back_continues_from_the_same_checkpoint(small_shards, tmp_path, monkeypatch):
    poison(monkeypatch, lambda after: after in (8 * 8, 8 * 9))  # a checkpoint is saved after the first of them
    config = small_config(small_shards, **SMALL, **BACK)
    run(config, tmp_path / "once")
    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "go_back", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(config, tmp_path / "twice")
    assert checkpoint.steps(tmp_path / "twice/checkpoints") == [4]
    run(config, tmp_path / "twice")
    equal(state_of(tmp_path / "once"), state_of(tmp_path / "twice"))
    steps = [[row["step"] for row in read_rows(tmp_path / name / "metrics.jsonl")] for name in ("once", "twice")]
    assert steps[0] == steps[1]


def killed(writer, step, go_back=MetricWriter.go_back):
    go_back(writer, step)
    raise RuntimeError("killed")


def test_run_stops_once_it_has_skipped_more_steps_than_it_may(small_shards, tmp_path, monkeypatch):
    poison(monkeypatch, lambda after: after // 8 % 2)
    with pytest.raises(Diverged, match=r"--config\.guard\.most=2"):
        run(small_config(small_shards, **SMALL, guard__most=2), tmp_path)
