"""Timelines of stacking and MSLT, their learning rates and costs, and bad input."""

import dataclasses

import numpy as np
import pytest

from bert_fast import BadInput, bert
from bert_fast.cost.flops import step_flops
from bert_fast.method import Clock, Program, Stage
from bert_fast.methods import stacking
from bert_fast.plan import edit, frozen_depth, whole
from bert_fast.schedule import Schedule
from helpers.stacking_cases import GONG, of_depth, plain


def summary(stages):
    """Name, steps, depth and frozen layers of each stage."""
    return [(s.name, s.steps, s.program.model.depth, frozen_depth(s.program.plan)) for s in stages]


def rate(stages, step):
    """The learning rate of a step of the run, as the loop computes it."""
    total, begins = sum(stage.steps for stage in stages), 0
    for stage in stages:
        if begins <= step < begins + stage.steps:
            return stage.learning_rate(Clock(step, total), step - begins)
        begins += stage.steps
    raise ValueError(step)


# The timeline


def test_stacking_doubles_the_depth_twice_in_the_released_steps():
    stages = stacking.make().stages(plain(of_depth(12)))
    assert summary(stages) == [("3-layers", 50_000, 3, 0), ("6-layers", 70_000, 6, 0), ("12-layers", 280_000, 12, 0)]
    assert [depth for _, _, depth, _ in summary(stacking.make().stages(plain(of_depth(24))))] == [6, 12, 24]
    assert all(
        stage.program.frozen_paths == () and stage.program.plan == whole(stage.program.model.depth) for stage in stages
    )


@pytest.mark.parametrize(("variant", "shares"), [("stacking", "0.7,0.3"), ("mslt", "0.7,0.1,0.2")])
def test_a_single_depth_is_followed_by_the_depth_of_the_model(variant, shares):
    once = stacking.make(variant, depths="1", shares=shares).stages(plain(of_depth(12)))
    both = stacking.make(variant, depths="1,12", shares=shares).stages(plain(of_depth(12)))
    assert summary(once) == summary(both)
    assert summary(once)[:2] == [
        ("1-layers", 280_000, 1, 0),
        ("12-layers", round(400_000 * float(shares.split(",")[1])), 12, 1 if variant == "mslt" else 0),
    ]


def test_mslt_adds_a_quarter_of_the_layers_per_stage_and_ends_with_a_joint_stage():
    fifths = [("3-layers", 3, 0), ("6-layers", 6, 3), ("9-layers", 9, 6), ("12-layers", 12, 9), ("joint", 12, 0)]
    stages = stacking.make("mslt").stages(plain(of_depth(12), 1_000_000))
    assert summary(stages) == [(name, 200_000, depth, frozen) for name, depth, frozen in fifths]
    assert [s.program.frozen_paths for s in stages] == [(), ("^embed/",), ("^embed/",), ("^embed/",), ()]
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
def test_stages_fit_the_depth_of_small_models(variant, depth, expected):
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
    # The model does not grow when a phase begins inside a stage, so the rate does not climb again.
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


def test_rates_of_stacking_equal_those_of_the_released_script():
    stages = stacking.make().stages(plain(of_depth(12)))
    # From --lr, --end-lr and --max-update of the three runs in reproduce_bert.sh. The third run plans 800,000 steps.
    # The last stage here takes the first 280,000 of them.
    knots = [0, 10_000, 50_000, 120_000, 920_000], [1e-7, 8e-4, 5.5e-4, 3e-4, 0]
    steps = [0, 1, 5_000, 9_999, 10_000, 30_000, 49_999, 50_000, 85_000, 119_999, 120_000, 260_000, 399_999]
    np.testing.assert_allclose([rate(stages, step) for step in steps], np.interp(steps, *knots), rtol=1e-9)
    two = stacking.make(depths="3,12").stages(plain(of_depth(12)))
    steps = [10_000, 65_000, 119_999, 120_000, 399_999]
    knots = [10_000, 120_000, 920_000], [8e-4, 3e-4, 0]
    np.testing.assert_allclose([rate(two, step) for step in steps], np.interp(steps, *knots), rtol=1e-9)


def test_rates_of_mslt_follow_the_schedule_of_the_run_and_climb_again_after_each_growth():
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


def test_a_trained_layer_costs_three_times_as_much_as_a_frozen_layer():
    # Without prediction slots, the head costs nothing. With pre-LN, the lowest trainable layer's backward
    # pass costs as much as any other trainable layer's.
    units = np.array(flops(stacking.make("mslt").stages(plain(of_depth(12), slots=0)))) / step_flops(
        plain(of_depth(1), slots=0)[0].program
    ).executed  # fmt: skip
    np.testing.assert_allclose(3 * units, [9, 12, 15, 18, 36])
    assert 36 / np.mean(3 * units) == pytest.approx(2.0)
    for depths, speedup in (("6,12,18,24", 2.0), ("4,8,12,16,20,24", 2.25), ("3,6,9,12,15,18,21,24", 2.4)):
        stages = stacking.make("mslt", depths=depths).stages(plain(of_depth(24), slots=0))
        executed = sum(stage.steps * f for stage, f in zip(stages, flops(stages), strict=True))
        assert 400_000 * flops(stages)[-1] / executed == pytest.approx(speedup, rel=1e-4)


def test_released_steps_of_stacking_cost_82_percent_of_training_the_deep_model():
    stages = stacking.make().stages(plain(of_depth(12), slots=0))
    executed = sum(stage.steps * f for stage, f in zip(stages, flops(stages), strict=True))
    assert executed / (400_000 * flops(stages)[-1]) == pytest.approx(0.81875)


def test_head_at_base_size_reduces_the_saving():
    program = Program(bert.Config(30_522, pooler=True), whole(12), 256, 1, 128, 20, "mlm+nsp")
    one = (Stage("128-tokens", program, 1_000, Schedule(1e-4, 1_000)),)
    stages = stacking.make("mslt").stages(one)
    D, tokens = 768, 256 * 128
    layer = 2 * tokens * 12 * D * D + 4 * tokens * 128 * D
    heads, table = 2 * 256 * (20 * D * D + D * D + 2 * D), 2 * 256 * 20 * D * 30_592
    # The heads cost as much as in a dense step, except for the gradient of the frozen table. In the lowest trainable
    # post-LN layer, the query, key and value products need no gradient of their input.
    by_hand = [(n + 2 * 3) * layer - 3 * 2 * tokens * D * D + 3 * heads + 2 * table for n in (6, 9, 12)]
    by_hand = [(3 + 2 * 3) * layer + 3 * heads + 3 * table, *by_hand, 36 * layer + 3 * heads + 3 * table]
    assert flops(stages) == by_hand
    assert by_hand[-1] / np.mean(by_hand) == pytest.approx(1.9656, abs=0.0005)
    stages = stacking.make(learning_rate="run").stages(one)
    assert np.average(flops(stages), weights=[50, 70, 280]) / by_hand[-1] == pytest.approx(0.8263, abs=0.0005)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": "3,6"}, r"depths=3,6: .*end with the model's 12 layers, such as 6,12"),
        ({"depths": "12"}, "at least two increasing depths"),
        ({"depths": "6,6,12"}, "at least two increasing depths"),
        ({"depths": "12,6,12"}, "at least two increasing depths"),
        ({"depths": "0,12"}, "at least two increasing depths"),
        ({"depths": "3,6,24"}, "the model's 12 layers"),
        ({"depths": "5,12"}, "must be a multiple"),
        ({"depths": "3;12"}, r'depths=.3;12.: expected comma-separated numbers, such as "3,6,12"'),
        ({"shares": "0.5,0.5"}, r"shares=0.5,0.5: .*3-layers, 6-layers, 12-layers"),
        ({"shares": "0.5,0.4,0.3"}, "sum to 1"),
        ({"shares": "0.5,0.5,0"}, "expected positive shares"),
        ({"shares": "1.2,-0.4,0.2"}, "expected positive shares"),
        ({"shares": "a,b"}, "expected comma-separated numbers"),
        ({"depths": "1,2,4,12"}, "no default for 4 stages"),
        ({"variant": "doubling"}, r"variant='doubling' is unknown: expected stacking, mslt"),
        ({"init": "zeros"}, "expected copy, random, identity"),
        ({"embedding": "b"}, "expected A, B, C"),
        ({"learning_rate": "stage"}, "expected segments, run"),
        ({"optimizer": "reset"}, "expected fresh, carry"),
        ({"embedding": "A"}, "nothing is frozen"),
        ({"frozen_dropout": False}, "nothing is frozen"),
        ({"warm_again": 1.0}, "below 1"),
        ({"warm_again": 0.2}, "stage 6-layers has only 70000: lower it"),
        ({"variant": "mslt", "shares": "0.25,0.25,0.25,0.25"}, "12-layers, joint"),
        ({"variant": "mslt", "shares": "0.3,0,0.3,0.2,0.2"}, "expected positive shares"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        stacking.make(**arguments).stages(plain(of_depth(12)))


@pytest.mark.parametrize(
    ("timeline", "message"),
    [
        (plain(of_depth(1)), "the model has one layer, so it cannot grow"),
        (plain(of_depth(7)), "at least two increasing depths .* such as 1,7"),
        (plain(of_depth(12), steps=3), "3 steps leave none for stage 3-layers"),
        (plain(of_depth(12), schedule=dataclasses.replace(GONG, decay="exponential")), "learning_rate=run"),
        (plain(of_depth(12), steps=40_000), "does not end within the first stage of 5000 steps"),
        (plain(of_depth(12, norm="post")), "a post-LN layer normalises"),
        ([dataclasses.replace(s, data="restart") for s in plain()], "name stacking first"),
        ([dataclasses.replace(s, ask_every=5) for s in plain()], "name stacking first"),
    ],
)
def test_timelines_that_cannot_grow_are_refused(timeline, message):
    with pytest.raises(BadInput, match=message):
        stacking.make(init="identity").stages(timeline)


def test_stacking_must_come_before_methods_that_change_the_plan():
    (stage,) = plain()
    for changed in (
        dataclasses.replace(stage.program, plan=edit(whole(3), 1, 2, queries=8)),
        dataclasses.replace(stage.program, frozen_paths=("embed/",)),
    ):
        with pytest.raises(BadInput, match="name stacking first"):
            stacking.make().stages((dataclasses.replace(stage, program=changed),))
    with pytest.raises(BadInput, match="name stacking first, and only once"):
        stacking.make().stages(stacking.make(depths="1,3").stages((stage,)))
