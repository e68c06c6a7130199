"""The realised fraction of a saving (saved cycles over saved FLOPs), and its ceiling."""

import pytest

from bert_fast.planner import saving
from helpers.estimates import made_plan


def both(estimate, schedule):
    return {"estimate": estimate, "schedule": schedule}


def test_layers_whose_cycles_shrink_as_much_as_their_flops_reach_the_ceiling():
    # The layers need half of the cycles and half of the FLOPs. The rest of the step is unchanged.
    dense = made_plan()
    half = made_plan(flops=2e13 - 0.5 * 1.8e13, cycles=both(15e6 - 0.5 * 12.6e6, 14e6 - 0.5 * 11.2e6))
    for found in (saving.of_run(half, dense), saving.of_stage(half.stages[0], dense.stages[0])):
        assert found["estimate"].realised == pytest.approx(0.84 / 0.9)
        assert found["schedule"].realised == pytest.approx(0.8 / 0.9)
        assert [each.of_ceiling for each in found.values()] == [pytest.approx(1), pytest.approx(1)]


def test_the_lower_of_the_two_instruments_counts():
    found = saving.of_run(made_plan(flops=1e13, cycles=both(9e6, 7e6)), made_plan())
    assert saving.lower(found) == found["estimate"]
    found = saving.of_run(made_plan(flops=1e13, cycles=both(7e6, 9e6)), made_plan())
    assert saving.lower(found) == found["schedule"]


def test_ceiling_of_a_run_is_the_mean_over_dense_stages_weighted_by_flops():
    dense = made_plan()
    other = made_plan(flops=4e13, layers=both(7.5e6, 14e6)).stages[0]
    two = dense._replace(stages=[dense.stages[0], other])
    assert saving.of_run(two, two)["estimate"].ceiling == pytest.approx((0.84 / 0.9 + 2 * 0.5 / 0.9) / 3)


def test_nothing_is_reported_for_a_run_without_cycles_or_without_a_saving():
    assert saving.of_run(made_plan(cycles={}), made_plan()) == {}
    assert saving.of_stage(made_plan(cycles={}).stages[0], made_plan().stages[0]) == {}
    assert saving.of_run(made_plan(), made_plan())["estimate"].of_ceiling is None
