"""The tables of experiments/tpu_plan.md.

Two instruments count cycles: the compiler's estimate and its schedule. The less favourable of them decides whether a
goal is reached. Only the share of dropout is judged by the schedule alone.
"""

import dataclasses

from bert_fast.cost.overlap import Communication
from bert_fast.planner import estimate
from experiments import tpu_tables
from helpers.estimates import V5E, made_plan

ONE = V5E._replace(topology="v5e:1x1", devices=[None])


def plan(cycles, flops=9e12, names=("128-tokens",), **changes):
    made = made_plan(ONE, flops=flops, cycles={"estimate": cycles, "schedule": 0.9 * cycles}, **changes)
    stages = [dataclasses.replace(made.stages[0], name=name) for name in names]
    return estimate.CostEstimate(ONE, stages)


def line_of(table, label):
    (found,) = [line for line in table.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def figures(**plans):
    return tpu_tables.figures(lambda arm, topology, size, seq: plans.get(f"{arm}/{topology}/{size}/{seq}"))


def test_goals_of_dense_training_are_judged_by_the_larger_number_of_cycles():
    table = figures(**{"dense/v5e:1x1/base/128": plan(100e6), "dense/v5e:1x1/base/512": plan(140e6)})
    share = f"{9e12 / (100e6 * 131_072):.2f}"
    assert line_of(table, "dense base, 128 x 128, v5e")[-2:] == [f"100.0 M, {share}", "yes"]
    assert line_of(table, "dense base, 32 x 512, v5e")[-1] == "no"
    assert line_of(table, "dense base, 128 tokens, v6e")[-2:] == ["not compiled yet", ""]


def test_methods_must_reach_their_ceiling_and_speed_up_as_much_as_dense_training():
    layers = {"estimate": 90e6, "schedule": 81e6}
    dense = plan(100e6, layers=layers)
    dense = dense._replace(stages=[dataclasses.replace(dense.stages[0], dense=9e12, dense_layers=9e12)])
    # The ceiling is 0.9. At the ceiling, a step with half of the FLOPs takes 55 M cycles, and a step with 0.9 of the
    # FLOPs takes 91 M. Before the trunk was made faster, dense training took 143.7 M, and layer dropping 109.9 M. Here,
    # dense training takes 100 M. With the same speed-up, layer dropping may take 76.5 M.
    for cycles, flops, reached in ((55e6, 4.5e12, "yes"), (91e6, 8.1e12, "no"), (60e6, 4.5e12, "no")):
        table = figures(**{
            "dense/v5e:1x1/base/128": dense, "layer dropping/v5e:1x1/base/128": plan(cycles, flops, layers=layers)
        })  # fmt: skip
        assert line_of(table, "layer dropping, 128-tokens")[-1] == reached
    assert line_of(table, "layer dropping, 128-tokens")[-2] == f"{0.4 / 0.5 / 0.9:.2f}, 60.0 M"


def test_share_of_dropout_is_measured_by_the_schedule():
    dense, without = plan(100e6), plan(96e6)
    table = figures(**{"dense/v5e:1x1/base/128": dense, "dense, no dropout/v5e:1x1/base/128": without})
    assert line_of(table, "drawing dropout masks, 128 tokens, by schedule")[-2:] == ["4.0%", "yes"]


def test_what_each_stage_of_growth_sends_is_compared_with_dense_training():
    dense = plan(100e6, collectives={"all-reduce": 300 * 2**20}, communication=Communication(6e-3, 3e-3))
    grown = plan(50e6, names=("3-layers", "joint"), collectives={"all-reduce": 30 * 2**20})
    table = tpu_tables.communication(dense, grown)
    assert line_of(table, "dense")[1:5] == ["300", "1.00", "6.00", "3.00"]
    assert line_of(table, "MSLT, 3-layers")[1:5] == ["30", "0.10", "2.00", "0.10"]
    assert tpu_tables.communication(None, grown) == "Not compiled yet."


def test_rows_show_both_instruments_and_the_lower_share_of_the_ceiling():
    dense = plan(100e6, layers={"estimate": 80e6, "schedule": 81e6})
    table = tpu_tables.methods({"half": plan(60e6, 4.5e12), "none": None}, dense)
    assert "Ceiling of the realised fraction (estimate, schedule): 0.89, 1.00." in table
    cells = line_of(table, "half")
    assert cells[1:5] == ["0.500", "60.0, 54.0", f"{4.5e12 / (60e6 * 131_072):.2f}", "0.600, 0.600"]
    assert cells[5:7] == ["0.80, 0.80", "**0.80**"]
    assert line_of(table, "none")[1] == "not compiled yet"
