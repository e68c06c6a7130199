"""How the figures of a cost estimate become hours and dollars, and how they are printed."""

import dataclasses

import pytest

from bert_fast.cost.accelerators import TPUS
from bert_fast.planner import cost_report, estimate
from helpers.estimates import made_plan


def test_hours_come_from_the_larger_cycle_count_and_from_collectives_that_are_not_hidden():
    # 15 M cycles at 1.503 GHz take 9.98 ms. Of the 2 ms of collectives, 0.1 ms are not hidden.
    assert made_plan().hours() * 3600 == pytest.approx(1000 * (15e6 / (197e12 / 131_072) + 1e-4))
    # At their peak of 197 TFLOP/s each, 8 chips take 12.7 ms for 2e13 FLOPs.
    assert made_plan().hours_at(0.5) * 3600 == pytest.approx(1000 * 2e13 / (8 * 197e12 * 0.5))
    assert made_plan().utilisation() == pytest.approx(2e13 / 8 / 197e12 / (made_plan().hours() * 3.6))


def test_no_hours_are_given_for_a_share_of_the_peak_that_the_cycles_do_not_allow():
    # At its peak, a device takes 12.7 ms for 2.5e12 FLOPs. Its 30 M cycles take 20 ms, so it reaches 63% of its peak.
    slow = made_plan(cycles={"estimate": 30e6, "schedule": 14e6})
    assert "63% of its peak" in "\n".join(cost_report.totals(slow, 0.7))
    assert "at 60% of its peak" in "\n".join(cost_report.totals(slow, 0.6))
    assert "at 70% of its peak" not in "\n".join(cost_report.totals(slow, 0.7))


def test_price_is_per_chip_not_per_device():
    assert "8 USD" in cost_report.price(made_plan(), 0.8)  # 8 chips x 1.20
    pairs = estimate.Slice("tpu7x:2x2x1", TPUS["tpu7x"], [None] * 8)  # 4 chips with two devices each
    assert made_plan(pairs).chips == 4
    assert cost_report.price(made_plan(pairs), 1.0) == ""
    priced = pairs._replace(chip=dataclasses.replace(TPUS["tpu7x"], dollars=3.0))
    assert "12 USD" in cost_report.price(made_plan(priced), 1.0)


def test_realised_fraction_is_time_saved_over_flops_saved():
    half = made_plan(flops=1e13, cycles={"estimate": 9e6, "schedule": 7.7e6})
    flops, by_estimate, by_schedule, _ = cost_report.comparison(half, made_plan())
    assert "FLOPs 0.500" in flops
    # The layers take 0.84 of the estimated cycles, 0.8 of the scheduled ones, and 0.9 of the FLOPs.
    assert (
        "by the estimate: cycles 0.600, realised 0.80 of the saving: 0.86 of its ceiling, which is 0.93" in by_estimate
    )
    assert (
        "by the schedule: cycles 0.550, realised 0.90 of the saving: 1.01 of its ceiling, which is 0.89" in by_schedule
    )
    assert "realised" not in "".join(cost_report.comparison(made_plan(), made_plan()))


def test_stage_that_does_not_fit_is_reported_with_a_remedy_and_without_hours():
    large = made_plan(problem="uses 20.1G of 15.75G; largest tensors: 2.0G f32[8] (forward dot_general)", cycles={})
    message = "\n".join([cost_report.stages(large), *cost_report.details(large), *cost_report.totals(large, 0.4)])
    assert "does not fit: uses 20.1G" in message
    assert "--config.micro_batches" in message
    assert "USD" not in message
    assert large.hours() is None


def test_profile_shows_source_lines_and_their_share_of_the_cycles():
    lines = (
        ("layers.py:10", "forward dot_general", {"estimate": 12e6, "schedule": 7e6}),
        ("", "?", {"estimate": 3e6, "schedule": 7e6}),
    )
    _, _, line, total = cost_report.profile(made_plan(lines=lines).stages[0], 1).splitlines()
    assert line.split() == ["layers.py:10", "forward", "dot_general", "12.00", "80.0%", "7.00", "50.0%"]
    assert total.split() == ["sum", "15.00", "100.0%", "14.00", "100.0%"]


def test_work_without_a_schedule_is_listed():
    (line,) = cost_report.details(made_plan())
    assert "M cycles without a schedule, bounded by bytes, FLOPs or the estimate: gather 0.10;" in line


def test_stage_shows_both_cycle_counts_and_the_share_of_the_peak_by_the_larger_count():
    head, row = (line.split("  ") for line in cost_report.stages(made_plan()).splitlines())
    cells = dict(zip(filter(None, map(str.strip, head)), filter(None, map(str.strip, row)), strict=True))
    assert cells["estimate, M cycles"] == "15.0"
    assert cells["schedule, M cycles"] == "14.0"
    assert cells["of peak"] == f"{2e13 / 8 / (15e6 * 131_072):.2f}"
    assert (cells["collectives ms"], cells["not hidden"]) == ("2.00", "0.10")


def test_profile_of_a_stage_that_does_not_fit_says_so():
    (stage,) = made_plan(cycles={}, problem="needs 20 GiB").stages
    assert cost_report.profile(stage) == "stage one: needs 20 GiB"
