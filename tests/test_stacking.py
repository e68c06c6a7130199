"""Stacking and MSLT as functions: timelines, learning rates, costs, copies, and what learns in a compiled step.

Axes: as in bert.py.
"""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import random_batch, random_params
from test_step import dots

from bert_fast import BadInput, bert
from bert_fast.cost.flops import step_flops
from bert_fast.method import Clock, Method, Program, Stage
from bert_fast.methods import stacking
from bert_fast.plan import Route, Span, edit, frozen_depth, whole
from bert_fast.schedule import Schedule
from bert_fast.train import begin, optim
from bert_fast.train.sharding import make_mesh
from bert_fast.train.step import TrainState, join, make_step, partition

TINY = bert.Config(100, 3, 16, 2, 8, 32, 16, norm="pre", pooler=True, dropout=0.0, attention_dropout=0.0)
GONG = Schedule(8e-4, 400_000, warmup_steps=10_000, start=1e-7)
ADAMW = optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, True, 1.0)


def plain(model=TINY, steps=400_000, phases=((16, 1.0),), schedule=GONG, slots=2):
    """The timeline before any method: one stage a phase."""
    program = Program(model, whole(model.depth), 4, 1, 0, slots, "mlm")
    return tuple(
        Stage(f"{length}-tokens", dataclasses.replace(program, seq_len=length), round(share * steps), schedule)
        for length, share in phases
    )


def of_depth(depth, **changes):
    return dataclasses.replace(TINY, depth=depth, **changes)


def summary(stages):
    """Name, steps, depth and frozen layers of each stage."""
    return [(s.name, s.steps, s.program.model.depth, frozen_depth(s.program.plan)) for s in stages]


def rate(stages, step):
    """The learning rate of a step of the run, as the loop asks for it."""
    total, begins = sum(stage.steps for stage in stages), 0
    for stage in stages:
        if begins <= step < begins + stage.steps:
            return stage.learning_rate(Clock(step, total), step - begins)
        begins += stage.steps
    raise ValueError(step)


# The timeline


def test_stacking_doubles_twice_over_the_released_steps():
    stages = stacking.make().stages(plain(of_depth(12)))
    assert summary(stages) == [("3-layers", 50_000, 3, 0), ("6-layers", 70_000, 6, 0), ("12-layers", 280_000, 12, 0)]
    assert [depth for _, _, depth, _ in summary(stacking.make().stages(plain(of_depth(24))))] == [6, 12, 24]
    assert all(
        stage.program.frozen == () and stage.program.plan == whole(stage.program.model.depth) for stage in stages
    )


def test_mslt_adds_quarters_and_ends_with_a_joint_stage():
    fifths = [("3-layers", 3, 0), ("6-layers", 6, 3), ("9-layers", 9, 6), ("12-layers", 12, 9), ("joint", 12, 0)]
    stages = stacking.make("mslt").stages(plain(of_depth(12), 1_000_000))
    assert summary(stages) == [(name, 200_000, depth, frozen) for name, depth, frozen in fifths]
    assert [s.program.frozen for s in stages] == [(), ("^embed/",), ("^embed/",), ("^embed/",), ()]
    assert [row[2:] for row in summary(stacking.make("mslt").stages(plain(of_depth(24))))] == [
        (6, 0), (12, 6), (18, 12), (24, 18), (24, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "depth", "expected"),
    [
        ("stacking", 2, [(1, 0.3), (2, 0.7)]),
        ("stacking", 4, [(1, 0.125), (2, 0.175), (4, 0.7)]),
        ("stacking", 6, [(3, 0.3), (6, 0.7)]),
        ("mslt", 2, [(1, 0.4), (2, 0.4), (2, 0.2)]),
        ("mslt", 3, [(1, 0.8 / 3), (2, 0.8 / 3), (3, 0.8 / 3), (3, 0.2)]),
        ("mslt", 6, [(2, 0.2), (3, 0.2), (5, 0.2), (6, 0.2), (6, 0.2)]),
    ],
)
def test_small_models_have_fewer_stages(variant, depth, expected):
    stages = stacking.make(variant).stages(plain(of_depth(depth), 1_000_000))
    assert [row[2] for row in summary(stages)] == [depth for depth, _ in expected]
    np.testing.assert_allclose([row[1] / 1e6 for row in summary(stages)], [share for _, share in expected], atol=1e-6)


def test_phases_and_growth_interleave():
    phases = ((128, 0.9), (512, 0.1))
    stages = stacking.make("mslt", warm_again=0.02).stages(plain(of_depth(12), 1_000_000, phases))
    assert summary(stages)[-3:] == [
        ("12-layers/128-tokens", 200_000, 12, 9),
        ("joint/128-tokens", 100_000, 12, 0),
        ("joint/512-tokens", 100_000, 12, 0),
    ]
    assert [stage.program.seq_len for stage in stages] == [128] * 5 + [512]
    # A phase that begins inside a stage is no growth: the rate does not climb there once more.
    assert [stage.skipped for stage in stages] == [0] * 5 + [100_000]
    one = stacking.make("mslt", warm_again=0.02).stages(plain(of_depth(12), 1_000_000))
    assert all(rate(stages, step) == rate(one, step) for step in range(0, 1_000_000, 997))
    several = stacking.make().stages(plain(of_depth(12), 400_000, ((128, 0.2), (256, 0.4), (512, 0.4))))
    assert summary(several) == [
        ("3-layers/128-tokens", 50_000, 3, 0),
        ("6-layers/128-tokens", 30_000, 6, 0),
        ("6-layers/256-tokens", 40_000, 6, 0),
        ("12-layers/256-tokens", 120_000, 12, 0),
        ("12-layers/512-tokens", 160_000, 12, 0),
    ]
    one = stacking.make().stages(plain(of_depth(12)))
    assert all(rate(several, step) == rate(one, step) for step in range(0, 400_000, 997))


def test_depths_and_shares_are_taken_as_given():
    quadruple = stacking.make(depths="3,12").stages(plain(of_depth(12)))
    assert summary(quadruple) == [("3-layers", 120_000, 3, 0), ("12-layers", 280_000, 12, 0)]
    skipped = stacking.make("mslt", depths="1,3", shares="0.5,0.5,0").stages(plain(steps=100))
    assert summary(skipped) == [("1-layers", 50, 1, 0), ("3-layers", 50, 3, 1)]


# Learning rates


def test_rates_of_stacking_are_those_of_the_released_script():
    stages = stacking.make().stages(plain(of_depth(12)))
    # reproduce_bert.sh: --lr, --end-lr, --max-update of its three runs; of the third's 800,000, 280,000 are released.
    knots = [0, 10_000, 50_000, 120_000, 920_000], [1e-7, 8e-4, 5.5e-4, 3e-4, 0]
    steps = [0, 1, 5_000, 9_999, 10_000, 30_000, 49_999, 50_000, 85_000, 119_999, 120_000, 260_000, 399_999]
    np.testing.assert_allclose([rate(stages, step) for step in steps], np.interp(steps, *knots), rtol=1e-9)
    two = stacking.make(depths="3,12").stages(plain(of_depth(12)))
    steps = [10_000, 65_000, 119_999, 120_000, 399_999]
    knots = [10_000, 120_000, 920_000], [8e-4, 3e-4, 0]
    np.testing.assert_allclose([rate(two, step) for step in steps], np.interp(steps, *knots), rtol=1e-9)


def test_rates_of_mslt_are_the_runs_with_a_climb_after_each_growth():
    schedule = Schedule(1e-4, 100_000, warmup_steps=1_000)
    stages = stacking.make("mslt").stages(plain(of_depth(12), 100_000, schedule=schedule))
    for step in (0, 500, 1_000, 19_999, 21_000, 39_999, 81_000, 99_999):
        assert rate(stages, step) == schedule(step)
    for growth in (20_000, 40_000, 60_000, 80_000):
        climb = [rate(stages, growth + since) / schedule(growth + since) for since in (0, 250, 999, 1_000)]
        np.testing.assert_allclose(climb, [0, 0.25, 0.999, 1])
    none = stacking.make("mslt", warm_again=0.0).stages(plain(of_depth(12), 100_000, schedule=schedule))
    assert rate(none, 20_000) == schedule(20_000)
    segments = stacking.make("mslt", learning_rate="segments").stages(plain(of_depth(12), 100_000, schedule=schedule))
    np.testing.assert_allclose(rate(segments, 21_000), 1e-4 * (1 - 0.625 / 4 * 1.05), rtol=1e-9)
    run = stacking.make(learning_rate="run", warm_again=0.1).stages(plain(of_depth(12), 100_000, schedule=schedule))
    assert [rate(run, step) / schedule(step) for step in (12_500, 17_500, 22_500)] == [0, 0.5, 1]


# Costs


def flops(stages):
    return [step_flops(stage.program).executed for stage in stages]


def test_cost_of_the_layers_is_one_forward_and_two_backward_where_they_learn():
    # Without prediction slots the head costs nothing; in pre-LN the lowest layer that learns needs every product.
    units = np.array(flops(stacking.make("mslt").stages(plain(of_depth(12), slots=0)))) / step_flops(
        plain(of_depth(1), slots=0)[0].program
    ).executed  # fmt: skip
    np.testing.assert_allclose(3 * units, [9, 12, 15, 18, 36])
    assert 36 / np.mean(3 * units) == pytest.approx(2.0)
    for depths, speedup in (("6,12,18,24", 2.0), ("4,8,12,16,20,24", 2.25), ("3,6,9,12,15,18,21,24", 2.4)):
        stages = stacking.make("mslt", depths=depths).stages(plain(of_depth(24), slots=0))
        executed = sum(stage.steps * f for stage, f in zip(stages, flops(stages), strict=True))
        assert 400_000 * flops(stages)[-1] / executed == pytest.approx(speedup, rel=1e-4)


def test_released_steps_of_stacking_cost_82_percent_of_the_deep_model():
    stages = stacking.make().stages(plain(of_depth(12), slots=0))
    executed = sum(stage.steps * f for stage, f in zip(stages, flops(stages), strict=True))
    assert executed / (400_000 * flops(stages)[-1]) == pytest.approx(0.81875)


def test_head_at_base_size_takes_some_of_the_saving():
    program = Program(bert.Config(30_522, pooler=True), whole(12), 256, 1, 128, 20, "mlm+nsp")
    one = (Stage("128-tokens", program, 1_000, Schedule(1e-4, 1_000)),)
    stages = stacking.make("mslt").stages(one)
    D, tokens = 768, 256 * 128
    layer = 2 * tokens * 12 * D * D + 4 * tokens * 128 * D
    heads, table = 2 * 256 * (20 * D * D + D * D + 2 * D), 2 * 256 * 20 * D * 30_592
    # The heads are paid in full, but for the gradient of the frozen table; and the lowest post-LN layer that learns
    # needs three products less.
    by_hand = [(n + 2 * 3) * layer - 3 * 2 * tokens * D * D + 3 * heads + 2 * table for n in (6, 9, 12)]
    by_hand = [(3 + 2 * 3) * layer + 3 * heads + 3 * table, *by_hand, 36 * layer + 3 * heads + 3 * table]
    assert flops(stages) == by_hand
    assert by_hand[-1] / np.mean(by_hand) == pytest.approx(1.9656, abs=0.0005)
    stages = stacking.make(learning_rate="run").stages(one)
    assert np.average(flops(stages), weights=[50, 70, 280]) / by_hand[-1] == pytest.approx(0.8263, abs=0.0005)


# Copies


def entered(method, params, before, after, key=None):
    """(new parameters, new stage, moments' surgery) as the loop gets them between two stages."""
    key = jax.random.key(1) if key is None else key
    surgery, _, new = method.enter(params, (), before, after, None, key)
    return surgery.params(params), new, surgery.moments


def layers_of(params, *indices):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[list(indices)], params["layers"])


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (3, 6, [0, 1, 2]),  # double.py
        (3, 12, [0, 1, 2] * 3),  # quadruple.py
        (6, 9, [3, 4, 5]),  # the top 3
        (9, 12, [6, 7, 8]),
        (3, 5, [1, 2]),
        (2, 5, [1, 0, 1]),  # three on top of two: both again, and the top one below them
    ],
)
def test_layers_that_are_added_are_copies_of_the_topmost(before, after, expected):
    np.testing.assert_array_equal(stacking.sources(before, after), [*range(before), *expected])


@pytest.mark.parametrize(
    ("variant", "depths"), [("stacking", "3,6"), ("stacking", "2,6"), ("mslt", "3,5"), ("mslt", "2,3")]
)
def test_growth_copies_every_leaf_and_keeps_the_old_layers(variant, depths):
    low, high = map(int, depths.split(","))
    method = stacking.make(variant, depths=depths)
    before, after, *_ = method.stages(plain(of_depth(high)))
    params = random_params(of_depth(low))
    params["layers"]["gain"] = np.arange(low, dtype=np.float32)  # of another method
    grown, new, _ = entered(method, params, before, after)
    begin.check_model("grown", grown, new.program.model)
    added = high - low
    copied = range(low - added, low) if added <= low else [i % low for i in range(added)]
    assert same(layers_of(grown, *range(low)), params["layers"])
    assert same(layers_of(grown, *range(low, high)), layers_of(params, *copied))
    assert same({k: v for k, v in grown.items() if k != "layers"}, {k: v for k, v in params.items() if k != "layers"})


def test_layers_of_uneven_width_are_copied_with_their_widths():
    method = stacking.make("mslt", depths="3,5")
    before, after, joint = method.stages(plain(of_depth(5)))
    slim = of_depth(3, heads=(2, 1, 1), hidden=(32, 16, 24))
    before = dataclasses.replace(before, program=dataclasses.replace(before.program, model=slim))
    grown, new, _ = entered(method, random_params(slim), before, after)
    assert (new.program.model.heads, new.program.model.hidden) == ((2, 1, 1, 1, 1), (32, 16, 24, 16, 24))
    begin.check_model("grown", grown, new.program.model)
    _, joint, _ = entered(method, grown, new, joint)
    assert joint.program.model.heads == (2, 1, 1, 1, 1)
    even = dataclasses.replace(slim, heads=(1, 1, 1), hidden=16)
    before = dataclasses.replace(before, program=dataclasses.replace(before.program, model=even))
    assert entered(method, random_params(even), before, after)[1].program.model.heads == 1


def test_random_layers_are_fresh_ones_of_the_deeper_model():
    method = stacking.make("mslt", depths="1,3", init="random")
    before, after, _ = method.stages(plain())
    params = random_params(of_depth(1))
    params["layers"]["gain"] = np.full(1, 7, np.float32)
    grown, _, _ = entered(method, params, before, after)
    fresh = begin.fresh_params(TINY, 1, make_mesh(1, 1, 1, jax.devices()[:1]))
    assert same(layers_of(grown, 0), params["layers"])
    assert grown["layers"].pop("gain").tolist() == [7, 7, 7]
    assert same(layers_of(grown, 1, 2), layers_of(fresh, 1, 2))
    kernels = grown["layers"]["query"]["kernel"]
    assert (kernels[1] != kernels[2]).any()
    assert (kernels[1] != kernels[0]).any()


@pytest.mark.parametrize(("variant", "depths"), [("stacking", "2,4"), ("mslt", "2,3")])
def test_identity_layers_change_nothing_in_a_pre_ln_model(variant, depths):
    low, high = map(int, depths.split(","))
    method = stacking.make(variant, depths=depths, init="identity")
    before, after, *_ = method.stages(plain(of_depth(high)))
    params = random_params(of_depth(low))
    grown, _, _ = entered(method, params, before, after)
    batch = random_batch(TINY, 3, 12, 2)
    x_BSD, y_BSD = (
        bert.encode(of_depth(depth), tree, {}, batch, whole(depth), Route(), None)
        for depth, tree in ((low, params), (high, grown))
    )
    np.testing.assert_array_equal(x_BSD, y_BSD)
    # What is not an output is a copy, so that the new layers have something to learn from.
    assert same(layers_of(grown, high - 1)["query"], layers_of(params, low - 1)["query"])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_doubled_model_equals_its_equations(norm):
    method = stacking.make(depths="2,4", learning_rate="run")
    before, after = method.stages(plain(of_depth(4, norm=norm)))
    params = random_params(of_depth(2, norm=norm))
    grown, new, _ = entered(method, params, before, after)
    twice = {**params, "layers": jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), params["layers"])}
    batch = random_batch(TINY, 2, 12, 2)
    x_BSD = bert.encode(new.program.model, grown, {}, batch, new.program.plan, Route(), None)
    logits_BPV = bert.predict(new.program.model, grown, {}, x_BSD, batch["slots"])
    expected_BSD, expected_BPV = reference.forward(new.program.model, twice, batch, whole(4))
    np.testing.assert_allclose(x_BSD, expected_BSD, atol=2e-5)
    np.testing.assert_allclose(logits_BPV[..., : TINY.vocab_size], expected_BPV, atol=2e-5)


# Moments


def test_fresh_optimizer_only_where_the_model_grows_or_more_of_it_learns():
    method = stacking.make("mslt", depths="1,3")
    stages = method.stages(plain(phases=((16, 0.1), (8, 0.8), (16, 0.1))))
    names = [stage.name for stage in stages]
    assert names == [
        "1-layers/16-tokens", "1-layers/8-tokens", "3-layers/8-tokens", "joint/8-tokens", "joint/16-tokens",
    ]  # fmt: skip
    params = {1: random_params(of_depth(1)), 3: random_params(TINY)}
    fresh = []
    for before, after in itertools.pairwise(stages):
        tree = params[before.program.model.depth]
        surgery, _, new = method.enter(tree, (), before, after, None, jax.random.key(0))
        fresh.append(surgery.moments is None)
        assert new == after
        if not fresh[-1]:
            assert surgery.params(tree) is tree
            assert surgery.moments(tree) is tree
    assert fresh == [False, True, True, False]


def test_boundary_at_which_another_method_slims_is_left_alone():
    method = stacking.make(depths="1,3")
    *_, stage = method.stages(plain())
    slim = dataclasses.replace(stage.program.model, heads=(2, 1, 1), hidden=(32, 8, 8))
    after = dataclasses.replace(stage, program=dataclasses.replace(stage.program, model=slim))
    params = random_params(TINY)
    grown, new, moments = entered(method, params, stage, after)
    assert grown is params
    assert new == after
    assert moments(params) is params


def test_carried_moments_are_copied_in_stacking_and_zero_in_new_layers_of_mslt():
    for variant, init, expected in (
        ("stacking", "copy", "copies"), ("stacking", "random", "zeros"), ("mslt", "copy", "zeros"),
    ):  # fmt: skip
        method = stacking.make(variant, depths="2,4", optimizer="carry", init=init)
        before, after, *_ = method.stages(plain(of_depth(4)))
        moments = random_params(of_depth(2))
        _, _, of_moments = entered(method, moments, before, after)
        carried = of_moments(moments)
        assert same(layers_of(carried, 0, 1), moments["layers"])
        top = layers_of(carried, 2, 3)
        assert same(top, moments["layers"] if expected == "copies" else jax.tree.map(np.zeros_like, top))
        assert same(carried["mlm"], moments["mlm"])


# What learns: the program


def of_stage(variant="mslt", index=1, model=TINY, **arguments):
    """The step of a stage of growth "1,3" or "2,4", its state, and its program."""
    method = stacking.make(variant, **arguments)
    program = method.stages(plain(model))[index].program
    optimizer = optim.make(ADAMW)
    learns, frozen = partition(random_params(program.model), program)
    state = TrainState(jnp.zeros((), jnp.int32), learns, frozen, optimizer.init(learns), ())
    return lambda state, batch: make_step(Method(), optimizer, 0)(state, batch, Route(), 0.1, program), state, program


def paths(tree):
    return {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def leaf_at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


@pytest.mark.parametrize("embedding", ["A", "B", "C"])
def test_frozen_leaves_are_byte_identical_and_have_no_backward_pass_when_compiled(embedding):
    step, state, program = of_stage(depths="1,3", embedding=embedding)
    before = join(state.params, state.frozen)
    compiled = jax.jit(step).lower(state, random_batch(TINY, 4, 16, 2)).compile()
    for seed in range(3):
        state, _ = compiled(state, random_batch(TINY, 4, 16, 2, seed))
    after = join(state.params, state.frozen)
    moved = {path for path in paths(before) if not same(leaf_at(before, path), leaf_at(after, path))}
    learning = {path for path in paths(before) if not path.startswith("embed/")}
    learning |= {"embed/word"} if embedding == "A" else set()
    assert moved == learning
    assert ("mlm/word" in learning) == (embedding == "C") == (not program.model.tied)
    # Weight decay and moments move the lowest layer no more than gradients do.
    assert same(layers_of(before, 0), layers_of(after, 0))
    assert not same(layers_of(before, 1)["query"], layers_of(after, 1)["query"])
    assert not same(layers_of(before, 2)["query"], layers_of(after, 2)["query"])
    # 8 products a layer, two more for each in the backward pass of the two that learn; the heads' four likewise, but
    # for the gradient of a frozen table.
    assert compiled_dots(compiled) == 3 * 8 + 2 * 16 + 3 * 4 - (embedding == "B")


def compiled_dots(compiled) -> int:
    return len(re.findall(r" = \S+ dot\(", compiled.as_text()))


@pytest.mark.parametrize("embedding", ["A", "B", "C"])
def test_there_is_no_gradient_and_no_moment_for_what_is_frozen(embedding):
    step, state, _ = of_stage(depths="1,3", embedding=embedding)
    expected = {path for path in paths(join(state.params, state.frozen)) if not path.startswith("embed/")}
    expected |= {"embed/word"} if embedding == "A" else set()
    assert paths(state.params) == expected
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state.params["layers"])} == {2}
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(state.params)])
    # In the program, too, nothing is as large as the whole stack.
    text = str(jax.make_jaxpr(step)(state, random_batch(TINY, 4, 16, 2)))
    assert "f32[2,16,32]" in text
    assert "f32[3,16,32]" not in text


def test_a_frozen_layer_saves_16_matrix_products():
    def written(depths, index, norm="pre"):
        step, state, _ = of_stage(model=of_depth(4, norm=norm), depths=depths, index=index)
        return dots(jax.make_jaxpr(step)(state, random_batch(TINY, 4, 16, 2)).jaxpr)

    # A layer has 8 products (query, key, value, scores, values, output, two of the feed-forward network), each with
    # two in its backward pass. In a pre-LN model the lowest layer that learns needs all of them, for its LayerNorm; in
    # a post-LN model not the three that would be the gradient of its input. The heads have four products, and the
    # frozen table takes no gradient.
    counts = [written(f"{frozen},4", 1) for frozen in (3, 2, 1)]
    assert counts == [32 + 16 + 11, 32 + 32 + 11, 32 + 48 + 11]
    assert written("2,4", 2) == 32 + 64 + 12
    assert written("2,4", 1, "post") == 32 + 32 + 11 - 3


@pytest.mark.parametrize("frozen_dropout", [True, False])
def test_frozen_layers_and_embeddings_drop_out_only_where_asked(frozen_dropout):
    model = of_depth(3, dropout=0.3, attention_dropout=0.3)
    method = stacking.make("mslt", depths="2,3", init="identity", frozen_dropout=frozen_dropout)
    before, after, joint = method.stages(plain(model))
    grown, new, _ = entered(method, random_params(of_depth(2)), before, after)
    batch, (learns, frozen) = random_batch(TINY, 3, 12, 2), partition(grown, new.program)

    # The new layer adds nothing, so this is what the frozen ones compute.
    def trunk(seed):
        key = jax.random.key(seed)
        return np.asarray(bert.encode(model, learns, frozen, batch, new.program.plan, Route(), key))

    assert (trunk(0) == trunk(1)).all() != frozen_dropout
    assert new.program.plan == (Span(0, 2, frozen=True, dropout=frozen_dropout), Span(2, 3))
    assert before.program.plan == whole(2)
    assert joint.program.plan == whole(3)


# Through the state of a run


def test_untied_table_starts_from_the_embeddings_and_is_given_up_in_the_joint_stage():
    mesh, optimizer = make_mesh(1, 1, 1, jax.devices()[:1]), optim.make(ADAMW)
    for carry in ("fresh", "carry"):
        method = stacking.make("mslt", depths="1,3", embedding="C", optimizer=carry)
        first, grown, joint = method.stages(plain())
        assert [stage.program.model.tied for stage in (first, grown, joint)] == [True, False, True]
        state = begin.first_state(random_params(first.program.model), method, first, optimizer, mesh)
        noisy = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim else leaf, state.opt_state)
        state = state._replace(opt_state=noisy)
        word_VD = np.asarray(state.params["embed"]["word"])
        state, _ = begin.next_state(state, method, first, grown, None, optimizer, 0, mesh)
        np.testing.assert_array_equal(state.params["mlm"]["word"], word_VD)
        mu = next(node.mu for node in state.opt_state if hasattr(node, "mu"))
        assert mu["mlm"]["word"].max() == mu["mlm"]["dense"]["kernel"].max() == (carry == "carry")
        assert mu["layers"]["query"]["kernel"].max() == 0
        learned = {**state.params, "mlm": {**state.params["mlm"], "word": state.params["mlm"]["word"] + 1}}
        state, _ = begin.next_state(state._replace(params=learned), method, grown, joint, None, optimizer, 0, mesh)
        assert "word" not in state.params["mlm"]
        np.testing.assert_array_equal(state.params["embed"]["word"], word_VD)
        assert state.frozen == {}
        mu = next(node.mu for node in state.opt_state if hasattr(node, "mu"))
        assert mu["embed"]["word"].max() == 0
        assert mu["mlm"]["dense"]["kernel"].max() == (carry == "carry")


def test_report_says_depth_and_what_learns():
    method = stacking.make("mslt", depths="1,3")
    _, stage, _ = method.stages(plain())
    report = method.report((), stage, Clock(0, 1), ())
    assert report == {"depth": 3, "learning_layers": 2}


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": "3,6"}, r"depths=3,6: .*end with the model's 12 layers, as 4,12"),
        ({"depths": "12"}, "at least two depths"),
        ({"depths": "6,6,12"}, "each above the one before"),
        ({"depths": "12,6,12"}, "each above the one before"),
        ({"depths": "0,12"}, "at least two depths"),
        ({"depths": "3,6,24"}, "the model's 12 layers"),
        ({"depths": "5,12"}, "must be a multiple"),
        ({"depths": "3;12"}, r'depths=.3;12.: expected numbers with commas between, as "3,6,12"'),
        ({"shares": "0.5,0.5"}, r"shares=0.5,0.5: .*3-layers, 6-layers, 12-layers"),
        ({"shares": "0.5,0.4,0.3"}, "sum to 1"),
        ({"shares": "0.5,0.5,0"}, "above 0"),
        ({"shares": "1.2,-0.4,0.2"}, "above 0"),
        ({"shares": "a,b"}, "expected numbers"),
        ({"depths": "1,2,4,12"}, "no default for 4 stages"),
        ({"variant": "doubling"}, r"variant='doubling' is unknown: expected stacking, mslt"),
        ({"init": "zeros"}, "expected copy, random, identity"),
        ({"embedding": "b"}, "expected A, B, C"),
        ({"learning_rate": "stage"}, "expected segments, run"),
        ({"optimizer": "reset"}, "expected fresh, carry"),
        ({"embedding": "A"}, "nothing is frozen"),
        ({"frozen_dropout": False}, "nothing is frozen"),
        ({"warm_again": 1.0}, "below 1"),
        ({"warm_again": 0.2}, "the stage of 6-layers has 70000: make it smaller"),
        ({"variant": "mslt", "shares": "0.25,0.25,0.25,0.25"}, "12-layers, joint"),
        ({"variant": "mslt", "shares": "0.3,0,0.3,0.2,0.2"}, "above 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        stacking.make(**arguments).stages(plain(of_depth(12)))


@pytest.mark.parametrize(
    ("timeline", "message"),
    [
        (plain(of_depth(1)), "at least two depths"),
        (plain(of_depth(7)), "at least two depths"),
        (plain(of_depth(12), steps=3), "3 steps leave none for the stage of 3-layers"),
        (plain(of_depth(12), schedule=dataclasses.replace(GONG, decay="exponential")), "learning_rate=run"),
        (plain(of_depth(12), steps=40_000), "does not end within the first stage, of 5000 steps"),
        (plain(of_depth(12, norm="post")), "a post-LN layer normalises"),
        ([dataclasses.replace(s, data="restart") for s in plain()], "write stacking first"),
        ([dataclasses.replace(s, ask_every=5) for s in plain()], "write stacking first"),
    ],
)
def test_timelines_that_cannot_grow_are_refused(timeline, message):
    with pytest.raises(BadInput, match=message):
        stacking.make(init="identity").stages(timeline)


def test_plans_of_other_methods_must_come_later():
    (stage,) = plain()
    for changed in (
        dataclasses.replace(stage.program, plan=edit(whole(3), 1, 2, rows=8)),
        dataclasses.replace(stage.program, frozen=("embed/",)),
    ):
        with pytest.raises(BadInput, match="write stacking first"):
            stacking.make().stages((dataclasses.replace(stage, program=changed),))
    with pytest.raises(BadInput, match="write stacking first, and once"):
        stacking.make().stages(stacking.make(depths="1,3").stages((stage,)))
