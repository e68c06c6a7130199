"""Formats a cost estimate as tables for people, and says what each figure includes."""

from bert_fast.cost.accelerators import GIB
from bert_fast.planner.estimate import CostEstimate, StageEstimate
from bert_fast.train.log import clock

CAVEAT = """\
Cycles are the TPU compiler's estimate, not a measurement. Hours computed from them are a lower bound: they leave out
collectives, copies that overlap other work, waiting for input, evaluation and saving. Gathers, scatters, sorts and
custom calls count as the time to move their bytes at the memory's bandwidth. Prices are list prices, dated above."""


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as aligned text, with the header first. The first column is left-aligned, the others are right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def mib(sizes) -> str:
    """Text with the size of each kind in MiB. `sizes` are in bytes; "none" if there are none."""
    return ", ".join(f"{kind} {size / 2**20:,.1f}" for kind, size in sizes.items()) or "none"


def stages(plan: CostEstimate) -> str:
    """One row per stage."""
    chip = plan.where.chip
    head = ("stage", "steps", "batch x tokens", "FLOPs/step", "of dense")
    if chip is None:
        rows = [(*_analytic(stage),) for stage in plan.stages]
        return table([head, *rows])
    of = f"peak GiB, of {chip.memory / chip.devices / GIB:.0f}"
    head = (*head, "fits", "arguments GiB", "temporaries GiB", of, "M cycles/step", "compiled for")
    rows = []
    for stage in plan.stages:
        cycles = "-" if stage.cycles is None else f"{stage.cycles / 1e6:,.1f}"
        memory = [gib(size) for size in (stage.arguments, stage.temporaries, stage.peak)]
        rows.append(
            (*_analytic(stage), "no" if stage.problem else "yes", *memory, cycles, f"{stage.share:.0%} of steps")
        )
    return table([head, *rows])


def _analytic(stage: StageEstimate) -> tuple[str, ...]:
    return (
        stage.name,
        f"{stage.steps:,}",
        f"{stage.batch_size:,} x {stage.seq_len}",
        f"{stage.flops:.3g}",
        f"{stage.flops / stage.dense:.0%}",
    )


def details(plan: CostEstimate) -> list[str]:
    """For each stage, the bytes that a device moves in work without a cycle estimate and in collectives.

    For a stage that does not fit, the reason and the remedies.
    """
    lines = []
    for stage in plan.stages if plan.where.chip else ():
        if stage.problem:
            lines.append(
                f"stage {stage.name} does not fit: {stage.problem}. Use a smaller --config.batch_size, more "
                "--config.micro_batches, a larger slice or --config.mesh.fsdp. --largest_batch finds the largest "
                "batch that fits"
            )
            continue
        lines.append(
            f"stage {stage.name}, MiB per step and device: {mib(stage.not_counted)} (work without a cycle estimate); "
            f"{mib(stage.collectives)} (collectives)"
        )
    return lines


def totals(plan: CostEstimate, utilisation: float) -> list[str]:
    """FLOPs, hours and price of the whole run; at `utilisation` only if the cycles allow that share of the peak."""
    chip = plan.where.chip
    lines = [f"the whole run: {plan.flops:.3g} FLOPs, {plan.flops / plan.dense:.1%} of dense training"]
    if chip is None or not plan.fits:
        return lines
    hours, at, used = plan.hours(), plan.hours_at(utilisation), plan.utilisation()
    if hours is not None and used is not None:
        least = f"{clock(3600 * hours)}{price(plan, hours)}"
        lines.append(f"  at least {least} on {plan.where.topology}: at most {used:.0%} of its peak")
    if at is not None and (hours is None or at >= hours):
        lines.append(f"  {clock(3600 * at)}{price(plan, at)} at {utilisation:.0%} of its peak")
    lines.append(f"  compiling: {clock(sum(stage.compile_seconds for stage in plan.stages))} in total, once per run")
    return lines


def price(plan: CostEstimate, hours: float) -> str:
    chip = plan.where.chip
    if chip is None or chip.dollars is None:
        return ""
    return f", {hours * plan.chips * chip.dollars:,.0f} USD at {chip.dollars:.2f} per chip-hour ({chip.sources[1]})"


def comparison(plan: CostEstimate, other: CostEstimate) -> list[str]:
    """One run relative to another: FLOPs and, by the compiler's estimate, time."""
    flops = plan.flops / other.flops
    lines = [f"relative to the compared config: FLOPs {flops:.3f}"]
    cycles, others = plan.cycles(), other.cycles()
    if cycles is not None and others:
        ratio = cycles / others
        realised = f", realised {(1 - ratio) / (1 - flops):.2f} of the saving" if abs(1 - flops) > 0.01 else ""
        lines[0] += f", cycles {ratio:.3f}{realised}"
        most = [gib(max(stage.temporaries for stage in one.stages)) for one in (plan, other)]
        lines.append(f"  temporaries {most[0]} GiB instead of {most[1]} GiB")
    return lines


def profile(stage: StageEstimate, top: int = 25) -> str:
    """Where a stage's cycles go: the `top` most expensive pairs of source line and operation."""
    total = sum(cycles for _, _, cycles in stage.lines) or 1
    rows = [
        (source or "?", operation, f"{cycles / 1e6:.2f}", f"{cycles / total:.1%}")
        for source, operation, cycles in stage.lines[:top]
    ]
    return f"stage {stage.name}:\n" + table([("line", "operation", "M cycles", "share"), *rows])
