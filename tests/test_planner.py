"""Plans of runs: what is counted without a compiler, and what is computed from the compiler's figures."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from bert_fast import methods
from bert_fast.configs import bert
from bert_fast.cost.flops import step_flops
from bert_fast.cost.overlap import Communication
from bert_fast.method import Clock
from bert_fast.planner import estimate, programs, tpu
from bert_fast.planner.timing import make_batch, stepper
from bert_fast.train import compile, optim, settings, timeline
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import global_batch, make_mesh
from bert_fast.train.step import make_step
from helpers.command_line import bert_fast
from helpers.estimates import made_plan

SILENT = lambda line: None  # noqa: E731


def settings_of(**changes):
    config = bert.get_config("size=tiny,seq=128,norm=pre")
    config.update_from_flattened_dict(
        {"steps": 1000, "batch_size": 16, "model.depth": 4, "learning_rate.warmup_steps": 10}
        | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return settings.make(config.to_dict(), estimate.BERT, tuple(methods.known()))


def plan(**changes):
    return estimate.plan(settings_of(**changes), estimate.on("cpu"), pathlib.Path("unused"), SILENT)


# --- what is counted without a compiler -------------------------------------------------------------------------------


def test_flops_of_a_dense_run_equal_its_dense_flops():
    dense = plan()
    (stage,) = dense.stages
    assert stage.flops == stage.dense
    assert dense.flops == dense.dense == 1000 * stage.flops
    assert dense.hours() is None


def test_each_stage_of_growth_is_counted():
    grown = plan(methods="stacking", stacking__variant="mslt")
    assert [stage.steps for stage in grown.stages] == [200] * 5
    shares = [stage.flops / stage.dense for stage in grown.stages]
    assert shares[0] < shares[-1] == 1
    assert grown.flops < 0.8 * grown.dense


def test_flops_of_layer_dropping_are_averaged_over_the_whole_schedule_of_theta():
    # Theta decays from 1 to 0.5 at a rate of 100 / steps per step, so it is near 0.5 after a twentieth of the run.
    dropped = plan(methods="layer_drop").stages[0]
    conditional = plan(methods="layer_drop", layer_drop__execution="cond").stages[0]
    assert 0.75 < dropped.flops / dropped.dense < 0.9
    assert conditional.flops == pytest.approx(dropped.flops, rel=0.02)


def test_expected_ticket_has_the_widths_that_its_pruning_ratios_leave():
    made = settings_of(methods="early_bert", early_bert__align=1)
    method = methods.make(made.methods)
    search, slim = timeline.stages(made, method)
    assert search.program.model == made.model
    assert (search.guess, slim.guess) == (False, True)
    # A ratio of a third prunes one of two heads. Two fifths of all neurons are pruned, more in some layers than in
    # others.
    assert slim.program.model.heads == 1
    mlp_dim_L = slim.program.model.mlp_dim_L
    assert sum(mlp_dim_L) == pytest.approx(0.6 * 4 * 512, abs=1)
    assert len(set(mlp_dim_L)) > 1
    aligned = settings_of(methods="early_bert", early_bert__align=128)
    assert set(timeline.stages(aligned, methods.make(aligned.methods))[1].program.model.mlp_dim_L) <= {256, 384}


def test_draws_are_sorted_by_share_and_the_shares_sum_to_one():
    made = settings_of(methods="layer_drop", layer_drop__sampling="independent")
    method = methods.make(made.methods)
    (stage,) = timeline.stages(made, method)
    drawn = timeline.draws(method, stage, [Clock(900, 1000)] * 300)
    shares = [draw.share for draw in drawn]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert len(drawn) > 2
    # All four layers rarely run in the same step, but the program of such a step must fit in memory too.
    chosen = programs.to_compile(drawn, 2)
    assert sum(draw.share for draw in chosen) == pytest.approx(1)
    assert [draw.program for draw in chosen[:2]] == [draw.program for draw in drawn[:2]]
    assert chosen[2].share == 0
    assert len(chosen[2].program.plan) == 1
    assert chosen[2].program.plan[0].run in (None, 4)
    assert len(programs.to_compile(drawn, len(drawn))) == len(drawn)


def test_clocks_restart_after_the_search():
    made = settings_of(methods="early_bert", early_bert__search=100.0)
    stages = timeline.stages(made, methods.make(made.methods))
    assert [clock.step for clock in timeline.clocks(stages, 0, 3)] == [0, 49, 99]
    assert timeline.clocks(stages, 1, 3) == [Clock(0, 1000), Clock(499, 1000), Clock(999, 1000)]


def test_planned_shapes_equal_the_shapes_of_a_real_state_and_batch():
    made = settings_of(methods="early_bert", model__width=32, model__head_size=16)
    method, mesh = methods.make(made.methods), make_mesh(1, 1, 1, jax.devices()[:1])
    optimizer = optim.make(made.optimizer)
    for index, stage in enumerate(timeline.stages(made, method)):
        real = stepper(method, stage, index == 0, optimizer, mesh)
        shapes = programs.state_shapes(method, stage, index == 0, optimizer, mesh)
        planned = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), shapes)
        assert planned == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), real.state)
        batch = jax.tree.map(lambda x: (x.shape, x.dtype), global_batch(make_batch(stage.program), mesh))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), programs.batch_shapes(stage.program, mesh)) == batch


def test_layers_in_conditional_spans_count_as_often_as_they_run():
    made = settings_of(methods="layer_drop", layer_drop__execution="cond", micro_batches=4)
    method = methods.make(made.methods)
    (stage,) = timeline.stages(made, method)
    (draw,) = timeline.draws(method, stage, [Clock(900, 1000)] * 500)
    # Theta is 0.5: layer i of 4 runs with probability 1 - i/4 * 1/2.
    np.testing.assert_allclose(draw.on_L, [0.875, 0.75, 0.625, 0.5], atol=0.04)
    # The draw's route runs 3 layers, the number closest to the mean of 2.75.
    assert abs((draw.route.scale_R != 0).mean(0).sum() - sum(draw.on_L)) < 0.4
    assert step_flops(draw.program, draw.on_L).executed < step_flops(draw.program).executed


# --- what is compiled ------------------------------------------------------------------------------------------------


def test_cycles_are_scaled_to_the_mean_over_all_programs_and_memory_is_the_maximum():
    stage = made_plan(flops=1.1e13).stages[0]

    def compiled(seconds, temporaries, cycles, **rest):
        said = tpu.Said(seconds, "", {}, 5, temporaries, 5 + temporaries)
        lines = {("a", "b"): {"estimate": cycles, "schedule": 2 * cycles}}
        return tpu.Compiled(said, {"estimate": cycles, "schedule": 2 * cycles}, lines=lines, **rest)

    often = compiled(60.0, 10, 100, unscheduled={"gather": 8}, copies=50, communication=Communication(3.0, 1.0))
    largest = compiled(90.0, 30, 900)
    one = estimate.merged(stage, [(1.0, often), (0.0, largest)], 1e13, 0.9)
    assert one.cycles == {"estimate": pytest.approx(110), "schedule": pytest.approx(220)}
    assert one.unscheduled == {"gather": pytest.approx(8.8)}
    assert one.copies == pytest.approx(55)
    assert one.communication == (pytest.approx(3.3), pytest.approx(1.1))
    assert one.lines == (("a", "b", one.cycles),)
    assert (one.temporaries, one.peak, one.compile_seconds) == (30, 35, 150.0)
    no_room = dataclasses.replace(largest, said=tpu.Said(1.0, problem="out of memory"))
    assert estimate.merged(stage, [(1.0, often), (0.0, no_room)], 1e13, 0.9).problem == "out of memory"


def test_mesh_does_not_change_flops():
    assert plan(mesh__fsdp=4).flops == plan().flops


def test_dense_flops_are_the_flops_of_the_unpruned_model():
    pruned = plan(methods="early_bert")
    search, slim = pruned.stages
    assert search.dense == slim.dense == plan().stages[0].dense
    assert search.flops == pytest.approx(search.dense, rel=0.01)
    assert slim.flops < 0.9 * slim.dense


def test_command_compares_two_plans():
    config = "configs/token_drop.py:size=tiny"
    done = bert_fast("plan", f"--config={config}", "--compare=configs/bert.py:size=tiny", "--compare.steps=1000")
    assert done.returncode == 0, done.stderr
    assert "the whole run:" in done.stdout
    assert "relative to the compared config: FLOPs" in done.stdout
    assert "the compared config gets the same length" not in done.stderr
    assert bert_fast("plan", f"--config={config}", "--compare.stepz=1").returncode == 2
    asked = bert_fast("plan", f"--config={config}", "--search")
    assert asked.returncode == 2
    assert "--search needs the TPU compiler" in asked.stderr


@pytest.mark.parametrize("length", ["steps=2000", "budget=tokens:1e8"])
def test_compared_config_gets_the_same_length_unless_its_own_is_given(length):
    config = "bert:size=tiny,seq=128"
    done = bert_fast("plan", f"--config={config}", f"--config.{length}", f"--compare={config}")
    assert done.returncode == 0, done.stderr
    assert f"the compared config gets the same length: --compare.{length}" in done.stderr
    assert "relative to the compared config: FLOPs 1.000" in done.stdout
    done = bert_fast("plan", f"--config={config}", "--config.steps=200", f"--compare={config}", "--compare.steps=400")
    assert "relative to the compared config: FLOPs 0.500" in done.stdout


@pytest.mark.slow
def test_tpu_compiler_plans_a_run_of_two_stages(tmp_path):
    pytest.importorskip("libtpu", reason="libtpu is not installed: make slow installs it")
    made = settings_of(
        methods="stacking", stacking__variant="mslt", stacking__depths="1,2", stacking__shares="0.5,0.5,0",
        model__depth=2, model__dtype="bfloat16", batch_size=64, eval__batch_size=32, model__dropout=0.0,
        model__attention_dropout=0.0,
    )  # fmt: skip
    where = estimate.on("v5e:2x4")
    assert len(where.devices) == 8
    planned = estimate.plan(made, where, tmp_path, SILENT)
    low, high = planned.stages
    assert planned.fits
    for name, cycles in low.cycles.items():
        assert 0 < low.layers[name] < cycles
    # Most operations with an estimate also have a schedule, either their own or an equal operation's.
    assert sum(low.unscheduled.values()) < 0.4 * low.cycles["schedule"]
    assert 0 < low.communication.exposed < low.communication.seconds * 1.001
    assert planned.hours() > 0
    assert 0 < planned.utilisation() < 1
    assert low.collectives["all-reduce"] > high.collectives["all-reduce"] > 0  # the embeddings are frozen in `high`
    assert {line.split(":")[0] for line, _, _ in low.lines} >= {"layers.py", "train/step.py"}
    assert len(list(tmp_path.iterdir())) == 2
    again = estimate.plan(made, where, tmp_path, SILENT)
    assert again == planned
    # Four micro-batches use the chip less well than one batch. The compiler does not report how often the loop over
    # them runs, so the planner reads this number from the compiled program.
    looped = estimate.plan(dataclasses.replace(made, micro_batches=4), where, tmp_path, SILENT)
    assert looped.stages[0].cycles["estimate"] > 1.2 * low.cycles["estimate"]


def test_planned_step_equals_the_step_of_a_real_run():
    made = settings_of()
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    method, optimizer = methods.make(made.methods), optim.make(made.optimizer)
    (stage,) = timeline.stages(made, method)
    (draw,) = timeline.draws(method, stage, [Clock(0, 1)])
    steps = compile.Programs(make_step(method, optimizer, PRETRAINING), mesh)
    state = programs.state_shapes(method, stage, True, optimizer, mesh)
    planned = steps.lower(
        draw.program, state, programs.batch_shapes(draw.program, mesh), *programs.other_shapes(draw.route, mesh)
    )
    real = stepper(method, stage, True, optimizer, mesh)
    batch = global_batch(make_batch(stage.program), mesh)
    run = steps.lower(draw.program, *steps.placed(real.state, batch, draw.route, 1e-4, 0))
    assert planned.as_text() == run.as_text()
