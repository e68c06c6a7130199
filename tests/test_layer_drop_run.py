"""Progressive layer dropping in the train loop: two runs skip the same layers, one with gather and one with cond."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_fast.cost.flops import step_flops
from bert_fast.method import Clock, chain
from bert_fast.methods.layer_drop import make, theta_at
from bert_fast.plan import Span, whole
from bert_fast.train import checkpoint, compile, timeline
from bert_fast.train.evaluate import Evaluator, eval_batches
from bert_fast.train.log import read_rows
from bert_fast.train.objective import make_eval_step
from bert_fast.train.sharding import make_mesh
from bert_fast.train.timeline import DRAW
from helpers.interruption import interrupted
from helpers.small_runs import make_settings, rows_without_clock, run, small_config

STEPS, EVERY, DEPTH = 20, 5, 2
EXECUTIONS = ("gather", "cond")
SAME = ("layers_run", "flops", "flops_dense", "tokens_real", "layer_drop/theta")
both_executions = pytest.mark.parametrize("execution", EXECUTIONS)


def config_of(small_shards, execution):
    return small_config(
        small_shards,
        "size=tiny,debug,objective=mlm,norm=pre",
        steps=STEPS,
        log_every=EVERY,
        micro_batches=2,
        phases="16:1",
        methods="layer_drop",
        layer_drop={"execution": execution},
        eval__every=0,
        checkpoint__every=0,
    )


@pytest.fixture(scope="module")
def runs(small_shards, tmp_path_factory):
    """For each execution, (config, folder, compiled programs) of one run."""
    finished, add = {}, compile.Programs.add
    for execution in EXECUTIONS:
        config, workdir = config_of(small_shards, execution), tmp_path_factory.mktemp(execution) / "run"
        programs = []
        with pytest.MonkeyPatch.context() as patch:
            listing = lambda self, program, *a: programs.append(program) or add(self, program, *a)  # noqa: B023, E731
            patch.setattr(compile.Programs, "add", listing)
            run(config, workdir)
        finished[execution] = config, workdir, programs
    return finished


@pytest.fixture(scope="module")
def layers_run(small_shards):
    """Number of layers that run in each step, drawn independently of the runs."""
    settings = make_settings(config_of(small_shards, "gather"))
    (stage,) = timeline.stages(settings, chain())
    method = chain(make())
    draws = [method.draw(stage, Clock(t, STEPS), np.random.default_rng((0, DRAW, t))) for t in range(STEPS)]
    return [int((scale_ML != 0).sum(1)[0]) for scale_ML in draws]


def train_rows(workdir):
    return [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "train"]


@both_executions
def test_rows_report_theta_and_the_layers_that_ran(runs, execution, layers_run):
    rows = train_rows(runs[execution][1])
    assert set(layers_run) == set(range(DEPTH + 1))  # every number of layers, including 0
    for row, begins in zip(rows, range(0, STEPS, EVERY), strict=True):
        assert row["layer_drop/theta"] == theta_at(row["step"] - 1, STEPS, 0.5, 100 / STEPS, "paper")
        assert row["layers_run"] == np.mean(layers_run[begins : begins + EVERY])
        assert np.isfinite(row["loss"])


@both_executions
def test_logged_flops_count_only_the_layers_that_ran(runs, execution, layers_run):
    config, workdir, _ = runs[execution]
    (stage,) = timeline.stages(make_settings(config), chain())

    def flops(depth):
        model = dataclasses.replace(stage.program.model, depth=depth)
        return step_flops(dataclasses.replace(stage.program, model=model, plan=whole(depth))).executed

    rows = train_rows(workdir)
    for row in rows:
        assert row["flops"] == sum(flops(depth) for depth in layers_run[: row["step"]])
        assert row["flops_dense"] == row["step"] * flops(DEPTH)
    assert rows[-1]["flops"] < rows[-1]["flops_dense"]


def test_gather_compiles_one_program_per_number_of_layers_and_cond_compiles_one(runs, layers_run):
    gathered, conditional = ([program.plan for program in programs] for _, _, programs in runs.values())
    assert sorted(span.run for (span,) in gathered) == sorted(set(layers_run))
    assert conditional == [(Span(0, DEPTH, cond=True),)]


@both_executions
def test_evaluation_drops_and_scales_nothing(runs, execution):
    config, workdir, _ = runs[execution]
    settings = make_settings(config)
    (stage,) = timeline.stages(settings, chain())
    params = checkpoint.restore_params(workdir / f"checkpoints/{STEPS}")
    plain = Evaluator(make_eval_step(chain()), eval_batches(settings.data, settings.eval), make_mesh(-1, 1, 1))
    means = plain.full(params, {}, (), stage.program)
    (row,) = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "valid"]
    assert {key: row[key] for key in means} == means


@both_executions
def test_interrupted_run_ends_like_an_uninterrupted_one(runs, execution, tmp_path, monkeypatch):
    config, workdir, _ = runs[execution]
    interrupted(config, tmp_path, 8, monkeypatch)
    run(config, tmp_path)
    assert rows_without_clock(tmp_path) == rows_without_clock(workdir)
    a, b = (checkpoint.restore_params(folder / f"checkpoints/{STEPS}") for folder in (tmp_path, workdir))
    assert jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), a, b))


def test_both_executions_train_alike(runs):
    rows = {execution: train_rows(workdir) for execution, (_, workdir, _) in runs.items()}
    for gathered, conditional in zip(*rows.values(), strict=True):
        assert conditional["loss"] == pytest.approx(gathered["loss"], rel=1e-5)
        assert {key: conditional[key] for key in SAME} == {key: gathered[key] for key in SAME}
