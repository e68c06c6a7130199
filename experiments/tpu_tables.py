"""The tables of tpu_plan.md, from finished plans."""

from collections.abc import Callable, Mapping

from bert_fast.cost.accelerators import GIB
from bert_fast.planner import saving
from bert_fast.planner.estimate import CostEstimate, StageEstimate
from bert_fast.planner.saving import Saving
from bert_fast.planner.tpu import INSTRUMENTS

Read = Callable[[str, str, str, int], CostEstimate | None]  # arm, topology, size, tokens

HEAD = f"""\
| | FLOPs / dense | M cycles: {", ".join(INSTRUMENTS)} | of peak | cycles / dense | realised | of its ceiling | no schedule, M | \
temporaries, GiB | collectives, MiB | collectives, ms | not hidden, ms |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""
# Million cycles of a step before the trunk was made faster, by the compiler's estimate (November 2026, libtpu 0.0.42,
# v5e:1x1, 128 x 128 tokens). `figures` compares finished plans with them.
DENSE_BEFORE = 143.7
BEFORE = {
    "layer dropping": {"128-tokens": 109.9},
    "token dropping, examples_per_row=2": {"128-tokens": 116.8},
    "EarlyBERT, align=128": {"128-tokens": 101.6},
    "stacking": {"3-layers": 44.6, "6-layers": 78.7},
    "MSLT": {"3-layers": 44.6, "6-layers": 53.1, "9-layers": 66.0, "12-layers": 76.2},
    "all four, neurons=layer, examples_per_row=2": {
        "search": 31.8,
        "3-layers": 25.9,
        "6-layers": 39.8,
        "12-layers": 66.3,
    },
}
# Each entry: label, (topology, size, tokens), figures before, figures to reach. The figures are million cycles of a
# step and the share of the chip's peak.
DENSE = (
    ("dense base, 128 x 128, v5e", ("v5e:1x1", "base", 128), "143.7 M, 0.48", (110, 0.62)),
    ("dense base, 32 x 512, v5e", ("v5e:1x1", "base", 512), "226.2 M, 0.32", (132, 0.56)),
    ("dense large, 64 x 128, v5e", ("v5e:4x4", "large", 128), "0.52", (None, 0.65)),
    ("dense base, 128 tokens, v5p", ("v5p:2x2x1", "base", 128), "0.45", (None, 0.60)),
    ("dense base, 128 tokens, v6e", ("v6e:1x1", "base", 128), "0.19", (None, 0.40)),
)
DROPOUT = (("128", 128, 0.05), ("512", 512, 0.08))  # the largest share of a step that drawing dropout masks may take
TOGETHER = "all four, neurons=layer, examples_per_row=2"
MISSING = "not compiled yet"


def both(figures: Mapping[str, float | None], form: str = ".2f") -> str:
    return ", ".join("" if figure is None else format(figure, form) for figure in figures.values()).strip(", ")


def compared(savings: Mapping[str, Saving]) -> list[str]:
    """Three cells: cycles relative to dense training, realised fractions, and the share of its ceiling that a fraction
    reaches. The first two cells have a figure for each instrument, the last has the lower figure of the two.
    """
    of_ceiling = saving.lower(dict(savings)).of_ceiling if savings else None
    return [
        both({name: each.cycles for name, each in savings.items()}, ".3f"),
        both({name: each.realised for name, each in savings.items()}),
        "" if of_ceiling is None else f"**{of_ceiling:.2f}**",
    ]


def row(label: str, stage: StageEstimate, dense: StageEstimate, plan: CostEstimate) -> str:
    """The row of a stage: its costs relative to dense training, its use of the chip, its memory and its collectives."""
    flops = f"{stage.flops / dense.flops:.3f}"
    if not stage.cycles or not dense.cycles:
        return f"| {label} | {flops} | does not fit: {stage.problem} | | | | | | | | | |"
    assert plan.where.chip is not None
    millions = both({name: cycles / 1e6 for name, cycles in stage.cycles.items()}, ",.1f")
    of_peak = f"{stage.of_peak(plan.where.chip, len(plan.where.devices)):.2f}"
    sent = ", ".join(f"{kind} {size / 2**20:,.0f}" for kind, size in stage.collectives.items()) or "-"
    took, waited = (f"{1e3 * seconds:.2f}" for seconds in stage.communication)
    cells = [flops, millions, of_peak, *compared(saving.of_stage(stage, dense))]
    cells += [f"{sum(stage.unscheduled.values()) / 1e6:.2f}", f"{stage.temporaries / GIB:.2f}", sent, took, waited]
    return f"| {label} | {' | '.join(cells)} |"


def methods(plans: Mapping[str, CostEstimate | None], dense: CostEstimate) -> str:
    """One row per stage of each plan, and one per run of several stages."""
    (whole,) = dense.stages
    lines = []
    for name, plan in plans.items():
        if plan is None:
            lines.append(f"| {name} | {MISSING} | | | | | | | | | | |")
            continue
        several = len(plan.stages) > 1
        lines += [row(f"{name}, {stage.name}" if several else name, stage, whole, plan) for stage in plan.stages]
        savings = saving.of_run(plan, dense)
        if several and savings:  # EarlyBERT's search comes in addition to the training, so its cost is included
            cells = [f"{plan.flops / dense.flops:.3f}", "", "", *compared(savings)]
            lines.append(f"| {name}, **whole run** | {' | '.join(cells)} | | | | | |")
    ceilings = both({name: saving.ceiling(name, whole) for name in INSTRUMENTS}) if whole.cycles else MISSING
    return f"Ceiling of the realised fraction ({', '.join(INSTRUMENTS)}): {ceilings}.\n\n{HEAD}" + "\n".join(lines)


def figures(read: Read) -> str:
    """The goals, and what was found. Of the two instruments, the one that counts more cycles is shown."""
    lines = ["| | before | goal | found | reached |", "|---|---|---|---|---|"]

    def add(label: str, before: str, goal: str, found: str, reached: bool | None):
        lines.append(
            f"| {label} | {before} | {goal} | {found} | {'' if reached is None else 'yes' if reached else 'no'} |"
        )

    for label, (topology, size, seq), before, (cycles, share) in DENSE:
        goal = f"{share:.2f}" if cycles is None else f"at most {cycles} M, {share:.2f}"
        plan = read("dense", topology, size, seq)
        if plan is None or not plan.fits or plan.where.chip is None:
            add(label, before, goal, MISSING if plan is None else "does not fit", None)
            continue
        (stage,) = plan.stages
        millions, of_peak = most(stage) / 1e6, stage.of_peak(plan.where.chip, len(plan.where.devices))
        reached = of_peak >= share and (cycles is None or millions <= cycles)
        add(label, before, goal, f"{millions:.1f} M, {of_peak:.2f}", reached)
    dense = read("dense", "v5e:1x1", "base", 128)
    if dense is not None and dense.fits:
        (whole,) = dense.stages
        gain = DENSE_BEFORE * 1e6 / most(whole)
        for arm, stages in BEFORE.items():
            plan = read(arm, "v5e:1x1", "base", 128)
            for name, before in stages.items():
                stage = plan and next((each for each in plan.stages if each.name == name), None)
                label = f"{arm}, {name}"
                goal = f"0.97 of its ceiling, at most {before / gain:.1f} M"
                if not stage or not stage.cycles:
                    add(label, f"{before} M", goal, MISSING if plan is None else "does not fit", None)
                    continue
                least, millions = saving.lower(saving.of_stage(stage, whole)).of_ceiling, most(stage) / 1e6
                reached = millions <= before / gain and (least is None or least >= 0.97)
                add(
                    label, f"{before} M", goal, f"{'-' if least is None else f'{least:.2f}'}, {millions:.1f} M", reached
                )
        plan = read(TOGETHER, "v5e:1x1", "base", 128)
        if plan is not None and plan.fits:
            steps = sum(stage.steps for stage in dense.stages)
            ratio = sum(stage.steps * most(stage) for stage in plan.stages) / (steps * DENSE_BEFORE * 1e6)
            add(
                "all four, whole run, relative to dense training before",
                "0.41",
                "at most 0.31",
                f"{ratio:.2f}",
                ratio <= 0.31,
            )
    for label, seq, goal in DROPOUT:
        plans = [read(arm, "v5e:1x1", "base", seq) for arm in ("dense", "dense, no dropout")]
        label, before = f"drawing dropout masks, {label} tokens, by schedule", "7 to 12 % by estimate"
        cycles = [plan.cycles("schedule") if plan else None for plan in plans]
        if cycles[0] is None or cycles[1] is None:
            add(label, before, f"at most {goal:.0%}", MISSING, None)
        else:
            share = 1 - cycles[1] / cycles[0]
            add(label, before, f"at most {goal:.0%}", f"{share:.1%}", share <= goal)
    return "\n".join(lines)


def most(stage: StageEstimate) -> float:
    """Cycles by the instrument that counts more."""
    return max(stage.cycles.values())


def communication(dense: CostEstimate | None, grown: CostEstimate | None) -> str:
    """What a device sends in each stage of MSLT, compared with dense training."""
    if dense is None or grown is None:
        return MISSING[0].upper() + MISSING[1:] + "."
    (whole,) = dense.stages
    lines = [
        "| v5e:4x4, 128 x 128 tokens a chip | collectives, MiB | / dense | ms at full bandwidth | not hidden, ms | of the step |",
        "|---|---|---|---|---|---|",
    ]
    for name, stage in [("dense", whole), *((f"MSLT, {stage.name}", stage) for stage in grown.stages)]:
        sent, all_ = (sum(each.collectives.values()) for each in (stage, whole))
        took, waited = stage.communication
        assert dense.where.chip is not None
        share = waited / stage.seconds(dense.where.chip)
        lines.append(
            f"| {name} | {sent / 2**20:,.0f} | {sent / all_:.2f} | {1e3 * took:.2f} | {1e3 * waited:.2f} | {share:.1%} |"
        )
    return (
        "\n".join(lines) + "\n\nThe bandwidth is for a corner chip, which has the fewest links. Times are lower bounds."
    )
