"""Plans of runs: what is counted without a compiler, how the compiler's figures become hours, and bad input."""

import dataclasses
import importlib.metadata
import pathlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import bert_fast

from bert_fast import BadInput, methods, settings
from bert_fast.cost.accelerators import TPUS
from bert_fast.cost.flops import step_flops
from bert_fast.forecast import bill, planner, programs, tpu
from bert_fast.method import Clock
from bert_fast.train import compile, optim
from bert_fast.train.sharding import global_batch, make_mesh
from bert_fast.train.step import make_step
from configs import bert
from experiments.timing import make_batch, stepper

SILENT = lambda line: None  # noqa: E731


def settings_of(**changes):
    config = bert.get_config("size=tiny,seq=128,norm=pre")
    config.update_from_flattened_dict(
        {"steps": 1000, "batch_size": 16, "model.depth": 4, "learning_rate.warmup_steps": 10}
        | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return settings.make(config.to_dict(), planner.BERT, tuple(methods.known()))


def plan(**changes):
    return planner.plan(settings_of(**changes), planner.on("cpu"), pathlib.Path("unused"), SILENT)


# --- what is counted without a compiler -------------------------------------------------------------------------------


def test_dense_run_costs_what_it_costs():
    dense = plan()
    (stage,) = dense.stages
    assert stage.flops == stage.dense
    assert dense.flops == dense.dense == 1000 * stage.flops
    assert dense.hours() is None


def test_stages_of_growth_are_counted_each():
    grown = plan(methods="stacking", stacking__variant="mslt")
    assert [stage.steps for stage in grown.stages] == [200] * 5
    shares = [stage.flops / stage.dense for stage in grown.stages]
    assert shares[0] < shares[-1] == 1
    assert grown.flops < 0.8 * grown.dense


def test_layers_that_are_dropped_are_counted_over_the_whole_ramp():
    # Theta falls from 1 to a half: 100 / steps a step, so that all but the first twentieth is at the half.
    dropped = plan(methods="layer_drop").stages[0]
    alone = plan(methods="layer_drop", layer_drop__execution="cond").stages[0]
    assert 0.75 < dropped.flops / dropped.dense < 0.9
    assert alone.flops == pytest.approx(dropped.flops, rel=0.02)


def test_expected_ticket_has_the_widths_that_its_ratios_leave():
    made = settings_of(methods="early_bert", early_bert__align=1)
    method = methods.make(made.methods)
    search, slim = programs.timeline(made, method)
    assert search.program.model == made.model
    # A third of two heads is one, and two fifths of all neurons fall, here more and there fewer of them.
    assert slim.program.model.heads == 1
    hidden_L = slim.program.model.hidden_L
    assert sum(hidden_L) == pytest.approx(0.6 * 4 * 512, abs=1)
    assert len(set(hidden_L)) > 1
    aligned = settings_of(methods="early_bert", early_bert__align=128)
    assert set(programs.timeline(aligned, methods.make(aligned.methods))[1].program.model.hidden_L) <= {256, 384}


def test_shares_of_draws_sum_to_one_and_the_most_frequent_come_first():
    made = settings_of(methods="layer_drop", layer_drop__sampling="independent")
    method = methods.make(made.methods)
    (stage,) = programs.timeline(made, method)
    drawn = programs.draws(method, stage, [Clock(900, 1000)] * 300)
    shares = [draw.share for draw in drawn]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert len(drawn) > 2
    # All four layers run rarely, but they have to fit too.
    chosen = programs.to_compile(drawn, 2)
    assert sum(draw.share for draw in chosen) == pytest.approx(1)
    assert [draw.program for draw in chosen[:2]] == [draw.program for draw in drawn[:2]]
    assert chosen[2].share == 0
    assert len(chosen[2].program.plan) == 1
    assert chosen[2].program.plan[0].run in (None, 4)
    assert len(programs.to_compile(drawn, len(drawn))) == len(drawn)


def test_clocks_begin_anew_where_the_training_does():
    made = settings_of(methods="early_bert", early_bert__search=100.0)
    stages = programs.timeline(made, methods.make(made.methods))
    assert [clock.step for clock in programs.clocks(stages, 0, 3)] == [0, 49, 99]
    assert programs.clocks(stages, 1, 3) == [Clock(0, 1000), Clock(499, 1000), Clock(999, 1000)]


def test_shapes_are_those_that_a_step_is_given():
    made = settings_of(methods="early_bert", model__width=32, model__head_size=16)
    method, mesh = methods.make(made.methods), make_mesh(1, 1, 1, jax.devices()[:1])
    optimizer = optim.make(made.optimizer)
    for index, stage in enumerate(programs.timeline(made, method)):
        real = stepper(method, stage, index == 0, optimizer, mesh)
        shapes = programs.state_shapes(method, stage, index == 0, optimizer, mesh)
        told = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), shapes)
        assert told == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), real.state)
        batch = jax.tree.map(lambda x: (x.shape, x.dtype), global_batch(make_batch(stage.program), mesh))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), programs.batch_shapes(stage.program, mesh)) == batch


def test_layers_of_conditional_spans_are_counted_as_often_as_they_run():
    made = settings_of(methods="layer_drop", layer_drop__execution="cond", micro_batches=4)
    method = methods.make(made.methods)
    (stage,) = programs.timeline(made, method)
    (draw,) = programs.draws(method, stage, [Clock(900, 1000)] * 500)
    # Theta is a half: layer i of 4 runs with probability 1 - i/4 * 1/2.
    np.testing.assert_allclose(draw.on_L, [0.875, 0.75, 0.625, 0.5], atol=0.04)
    assert (
        abs((draw.route.scale_R != 0).mean(0).sum() - sum(draw.on_L)) < 0.4
    )  # 3 layers, not 2, where 2.75 is the mean
    assert step_flops(draw.program, draw.on_L).executed < step_flops(draw.program).executed


# --- hours and money --------------------------------------------------------------------------------------------------

V5E = planner.Slice("v5e:2x4", TPUS["v5e"], [None] * 8)


def made_plan(where=V5E, **changes):
    stage = planner.StagePlan(
        "one",
        1000,
        256,
        128,
        2e13,
        2e13,
        cycles=15e6,
        not_counted={"gather": 819e5, "copy-start": 9e12},
    )
    return planner.Plan(where, [dataclasses.replace(stage, **changes)])


def test_hours_are_cycles_over_the_clock_and_bytes_over_the_bandwidth():
    # 15 M cycles at 1.503 GHz are 9.98 ms, 81.9 MB at 819 GB/s are 0.1 ms; copies beside other work are not waited for.
    assert made_plan().hours() * 3600 == pytest.approx(1000 * (15e6 / (197e12 / 131_072) + 1e-4))
    # 8 chips of 197 TFLOP/s do 2e13 FLOPs in 12.7 ms.
    assert made_plan().hours_at(0.5) * 3600 == pytest.approx(1000 * 2e13 / (8 * 197e12 * 0.5))
    assert made_plan().utilisation() == pytest.approx(2e13 / 8 / 197e12 / (made_plan().hours() * 3.6))


def test_a_stated_utilisation_that_the_cycles_do_not_allow_is_marked():
    # 2.5e12 FLOPs of a device are 12.7 ms at its peak, 30 M cycles 20 ms.
    slow, above = made_plan(cycles=30e6), "which is more than those cycles allow"
    assert above not in "\n".join(bill.totals(slow, 0.6))
    assert f"at 70% of its peak, {above}" in "\n".join(bill.totals(slow, 0.7))


def test_price_is_that_of_chips_not_of_devices():
    assert "8 USD" in bill.price(made_plan(), 0.8)  # 8 chips x 1.20
    pairs = planner.Slice("tpu7x:2x2x1", TPUS["tpu7x"], [None] * 8)  # 4 chips of two devices
    assert made_plan(pairs).chips == 4
    assert bill.price(made_plan(pairs), 1.0) == ""
    priced = pairs._replace(chip=dataclasses.replace(TPUS["tpu7x"], dollars=3.0))
    assert "12 USD" in bill.price(made_plan(priced), 1.0)


def test_realised_fraction_is_time_saved_over_flops_saved():
    half = made_plan(flops=1e13, cycles=9e6)
    (line, _) = bill.comparison(half, made_plan())
    assert "FLOPs 0.500, cycles 0.600, realised 0.80" in line
    assert "realised" not in bill.comparison(made_plan(), made_plan())[0]


def test_stage_that_does_not_fit_is_said_with_a_remedy_and_has_no_hours():
    large = made_plan(problem="uses 20.1G of 15.75G, the largest: 2.0G f32[8] (forward dot_general)", cycles=None)
    told = "\n".join([bill.stages(large), *bill.details(large), *bill.totals(large, 0.4)])
    assert "does not fit: uses 20.1G" in told
    assert "--config.micro_batches" in told
    assert "USD" not in told
    assert large.hours() is None


def test_compilers_message_is_told_in_one_line():
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 27.21G of 15.75G hbm. Exceeded hbm capacity by 11.46G.

  Largest program allocations in hbm:

  1. Size: 2.25G
     Operator: op_name="jit(train_step)/transpose(jvp(Block))/softmax"
     Shape: f32[12,128,12,128,128]{4,3,2,1,0:T(8,128)}
     Unpadded size: 2.25G
"""  # noqa: E501
    told = "uses 27.21G of 15.75G, the largest: 2.25G f32[12,128,12,128,128] (backward softmax)"
    assert tpu.too_large(message, "") == told
    assert tpu.too_large("RESOURCE_EXHAUSTED", "") == "out of memory"


def test_largest_tensors_are_found_in_the_program_where_the_compiler_lists_none():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (22.46G) exceeds "
        "available HBM (15.75G)."
    )

    def loss(x):
        return jnp.sum(jnp.tanh(x @ x.T)) + jnp.sum(x)

    lowered = jax.jit(jax.grad(loss)).lower(jax.ShapeDtypeStruct((256, 16), jnp.float32))
    told = tpu.too_large(message, lowered.as_text(debug_info=True))
    assert told.startswith(
        "uses 22.46G of 15.75G, the largest tensors, of all devices together: 0.00G f32[256,256] (forward"
    )
    assert told.count("f32[256,256]") == 1
    assert "f32[256,16]" in told


# --- the compiler's figures -------------------------------------------------------------------------------------------


class Memory:
    argument_size_in_bytes, temp_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 100, 10, 50, 45


class Lowered:
    """A program whose compiler is this test, which notes what it was asked to compile."""

    compiled: ClassVar[list[str]] = []

    def __init__(self, text):
        self.text = text

    def as_text(self):
        return self.text

    def compile(self):
        self.compiled.append(self.text)
        return self

    def memory_analysis(self):
        return Memory()


def test_what_the_compiler_said_is_kept_and_a_program_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Lowered, "compiled", [])
    first = tpu.compile(Lowered("one"), "v5e:1x1", tmp_path)
    assert (first.arguments, first.temporaries, first.peak, first.text) == (100, 10, 115, "one")
    assert tpu.compile(Lowered("one"), "v5e:1x1", tmp_path) == first
    tpu.compile(Lowered("other"), "v5e:1x1", tmp_path)
    tpu.compile(Lowered("one"), "v5e:2x4", tmp_path)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=1024")
    tpu.compile(Lowered("one"), "v5e:1x1", tmp_path)
    assert Lowered.compiled == ["one", "other", "one", "one"]


def test_means_over_programs_are_scaled_to_all_of_them_and_memory_is_that_of_the_largest():
    stage = made_plan(flops=1.1e13).stages[0]
    often = tpu.Compiled(tpu.Said(60.0, "", 5, 10, 15), cycles=100, not_counted={"gather": 8}, lines=[("a", "b", 100)])
    largest = tpu.Compiled(tpu.Said(90.0, "", 5, 30, 35), cycles=900, lines=[("a", "b", 900)])
    one = planner.merged(stage, [(1.0, often), (0.0, largest)], 1e13, 0.9)
    assert one.cycles == pytest.approx(110)
    assert one.not_counted == {"gather": pytest.approx(8.8)}
    assert one.lines == (("a", "b", 110),)
    assert (one.temporaries, one.peak, one.compile_seconds) == (30, 35, 150.0)
    no_room = dataclasses.replace(largest, said=tpu.Said(1.0, problem="out of memory"))
    assert planner.merged(stage, [(1.0, often), (0.0, no_room)], 1e13, 0.9).problem == "out of memory"


def test_largest_batch_is_the_last_that_fits(monkeypatch):
    tried = []

    def fits_up_to_64(settings, where, cache, say):
        tried.append(settings.batch_size)
        return made_plan(problem="" if settings.batch_size <= 64 else "out of memory")

    monkeypatch.setattr(planner, "plan", fits_up_to_64)
    assert planner.largest_batch(settings_of(), V5E, pathlib.Path("unused"), SILENT) == 64
    assert tried == [16, 32, 64, 128]  # from the run's 16 up
    tried.clear()
    assert planner.largest_batch(settings_of(batch_size=500), V5E, pathlib.Path("unused"), SILENT) == 64
    assert tried == [256, 128, 64]
    monkeypatch.setattr(planner, "plan", lambda *_: made_plan(problem="out of memory"))
    with pytest.raises(BadInput, match=r"not even one example a device fits on v5e:2x4: more --config\.mesh\.fsdp"):
        planner.largest_batch(settings_of(), V5E, pathlib.Path("unused"), SILENT)


def test_dense_training_is_that_of_the_model_before_it_is_pruned():
    pruned = plan(methods="early_bert")
    search, slim = pruned.stages
    assert search.dense == slim.dense == plan().stages[0].dense
    assert search.flops == pytest.approx(search.dense, rel=0.01)
    assert slim.flops < 0.9 * slim.dense


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["v9:1x1", "v5e", "tpu"])
def test_unknown_topology_is_refused_with_the_known(topology):
    with pytest.raises(BadInput, match=rf"--topology={topology} is unknown: .*v5e:4x4.*or cpu, or gpu"):
        planner.on(topology)


def test_missing_or_other_libtpu_is_told_with_what_to_install(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(BadInput, match=r"needs libtpu, .*pip install -r requirements-tpu\.txt"):
        planner.on("v5e:1x1")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.99")
    with pytest.raises(BadInput, match=r"libtpu 0\.0\.99 does not match jaxlib .*, which needs 0\.0\.42"):
        planner.on("v5e:1x1")


def test_libtpu_that_is_asked_for_is_the_one_that_is_installed():
    lines = (pathlib.Path(__file__).parents[1] / "requirements-tpu.txt").read_text().splitlines()
    assert f"libtpu=={tpu.LIBTPU}" in lines


def test_command_prints_a_plan_beside_another():
    config = "configs/token_drop.py:size=tiny"
    done = bert_fast("plan", f"--config={config}", "--compare=configs/bert.py:size=tiny", "--compare.steps=1000")
    assert done.returncode == 0, done.stderr
    assert "the whole run:" in done.stdout
    assert "against the compared config: FLOPs" in done.stdout
    assert bert_fast("plan", f"--config={config}", "--compare.stepz=1").returncode == 2
    asked = bert_fast("plan", f"--config={config}", "--largest_batch")
    assert asked.returncode == 2
    assert "--largest_batch asks the TPU compiler" in asked.stderr


@pytest.mark.slow
def test_tpu_compiler_plans_a_run_of_two_stages(tmp_path):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install -r requirements-tpu.txt")
    made = settings_of(
        methods="stacking", stacking__variant="mslt", stacking__depths="1,2", stacking__shares="0.5,0.5,0",
        model__depth=2, model__dtype="bfloat16", batch_size=64, eval__batch_size=32, model__dropout=0.0,
        model__attention_dropout=0.0,
    )  # fmt: skip
    where = planner.on("v5e:2x4")
    assert len(where.devices) == 8
    planned = planner.plan(made, where, tmp_path, SILENT)
    low, high = planned.stages
    assert planned.fits
    assert low.cycles > 0
    assert planned.hours() > 0
    assert 0 < planned.utilisation() < 1
    assert low.collectives["all-reduce"] > high.collectives["all-reduce"] > 0  # the embeddings do not learn
    assert low.not_counted["gather"] > 0
    assert {line.split(":")[0] for line, _, _ in low.lines} >= {"layers.py", "train/step.py"}
    assert len(list(tmp_path.iterdir())) == 2
    again = planner.plan(made, where, tmp_path, SILENT)
    assert again == planned
    # A quarter of the batch four times, at less use of the chip; and the compiler does not say how often a loop runs.
    looped = planner.plan(dataclasses.replace(made, micro_batches=4), where, tmp_path, SILENT)
    assert looped.stages[0].cycles > 1.2 * low.cycles


def test_profile_names_lines_and_shares():
    stage = made_plan(lines=(("layers.py:10", "forward dot_general", 3_000_000), ("", "?", 1_000_000))).stages[0]
    told = bill.profile(stage, 1)
    assert "layers.py:10" in told
    assert "75.0%" in told
    assert len(told.splitlines()) == 3


def test_steps_are_those_that_would_run():
    made = settings_of()
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    method, optimizer = methods.make(made.methods), optim.make(made.optimizer)
    (stage,) = programs.timeline(made, method)
    (draw,) = programs.draws(method, stage, [Clock(0, 1)])
    steps = compile.Programs(make_step(method, optimizer, made.seed), mesh)
    state = programs.state_shapes(method, stage, True, optimizer, mesh)
    planned = steps.lower(
        draw.program, state, programs.batch_shapes(draw.program, mesh), *programs.other_shapes(draw.route, mesh)
    )
    real = stepper(method, stage, True, optimizer, mesh)
    batch = global_batch(make_batch(stage.program), mesh)
    run = steps.lower(draw.program, *steps.placed(real.state, batch, draw.route, 1e-4))
    assert planned.as_text() == run.as_text()
