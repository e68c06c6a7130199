"""How a plan's figures become hours and money, and how they are printed."""

import dataclasses

import pytest

from bert_fast.cost.accelerators import TPUS
from bert_fast.planner import cost_report, estimate
from helpers.estimates import made_plan


def test_hours_are_cycles_over_the_clock_and_bytes_over_the_bandwidth():
    # 15 M cycles at 1.503 GHz are 9.98 ms, 81.9 MB at 819 GB/s are 0.1 ms; copies that overlap other work add nothing.
    assert made_plan().hours() * 3600 == pytest.approx(1000 * (15e6 / (197e12 / 131_072) + 1e-4))
    # 8 chips of 197 TFLOP/s do 2e13 FLOPs in 12.7 ms.
    assert made_plan().hours_at(0.5) * 3600 == pytest.approx(1000 * 2e13 / (8 * 197e12 * 0.5))
    assert made_plan().utilisation() == pytest.approx(2e13 / 8 / 197e12 / (made_plan().hours() * 3.6))


def test_utilisation_that_the_cycles_do_not_allow_is_marked():
    # 2.5e12 FLOPs per device are 12.7 ms at its peak, 30 M cycles are 20 ms.
    slow, above = made_plan(cycles=30e6), "which is more than those cycles allow"
    assert above not in "\n".join(cost_report.totals(slow, 0.6))
    assert f"at 70% of its peak, {above}" in "\n".join(cost_report.totals(slow, 0.7))


def test_price_is_per_chip_not_per_device():
    assert "8 USD" in cost_report.price(made_plan(), 0.8)  # 8 chips x 1.20
    pairs = estimate.Slice("tpu7x:2x2x1", TPUS["tpu7x"], [None] * 8)  # 4 chips of two devices
    assert made_plan(pairs).chips == 4
    assert cost_report.price(made_plan(pairs), 1.0) == ""
    priced = pairs._replace(chip=dataclasses.replace(TPUS["tpu7x"], dollars=3.0))
    assert "12 USD" in cost_report.price(made_plan(priced), 1.0)


def test_realised_fraction_is_time_saved_over_flops_saved():
    half = made_plan(flops=1e13, cycles=9e6)
    (line, _) = cost_report.comparison(half, made_plan())
    assert "FLOPs 0.500, cycles 0.600, realised 0.80" in line
    assert "realised" not in cost_report.comparison(made_plan(), made_plan())[0]


def test_stage_that_does_not_fit_is_reported_with_a_remedy_and_without_hours():
    large = made_plan(problem="uses 20.1G of 15.75G; largest tensors: 2.0G f32[8] (forward dot_general)", cycles=None)
    message = "\n".join([cost_report.stages(large), *cost_report.details(large), *cost_report.totals(large, 0.4)])
    assert "does not fit: uses 20.1G" in message
    assert "--config.micro_batches" in message
    assert "USD" not in message
    assert large.hours() is None


def test_profile_names_lines_and_shares():
    stage = made_plan(lines=(("layers.py:10", "forward dot_general", 3_000_000), ("", "?", 1_000_000))).stages[0]
    message = cost_report.profile(stage, 1)
    assert "layers.py:10" in message
    assert "75.0%" in message
    assert len(message.splitlines()) == 3
