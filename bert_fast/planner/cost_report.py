"""Formats a cost estimate as tables, and explains what each figure includes."""

from bert_fast.cost.accelerators import GIB
from bert_fast.planner.estimate import CostEstimate, Slice, StageEstimate
from bert_fast.planner.saving import of_run
from bert_fast.planner.search import Found
from bert_fast.planner.tpu import INSTRUMENTS
from bert_fast.train.log import clock
from bert_fast.train.settings import PretrainSettings

CAVEAT = """\
Cycles come from two instruments of the TPU compiler, and neither is a measurement. The estimate is the compiler's own
figure for each operation; it is too high for small batched products. The schedule is the code that the compiler wrote
for each operation and Pallas kernel. Its cycles are instruction words x passes. If it takes longer to move the
operation's bytes at the memory's bandwidth, that time counts instead. If one instrument has no figure for an operation,
the other's figure is used. Hours come from the larger sum, plus the time of collectives that overlaps no other work.
The hours leave out copies that overlap other work, the start-up of kernels, waiting for input, evaluation and saving.
Prices are list prices, dated above."""


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
    """Text with the size of each kind in MiB, or "none" if there are no kinds. `sizes` are in bytes."""
    return ", ".join(f"{kind} {size / 2**20:,.1f}" for kind, size in sizes.items()) or "none"


def stages(plan: CostEstimate) -> str:
    """One row per stage."""
    chip = plan.where.chip
    head = ("stage", "steps", "batch x tokens", "FLOPs/step", "of dense")
    if chip is None:
        rows = [(*_analytic(stage),) for stage in plan.stages]
        return table([head, *rows])
    of = f"peak GiB, of {chip.memory / chip.devices / GIB:.0f}"
    by = (*(f"{name}, M cycles" for name in INSTRUMENTS), "of peak")
    head = (*head, "fits", "arguments GiB", "temporaries GiB", of, *by, "collectives ms", "not hidden", "compiled for")
    rows = []
    for stage in plan.stages:
        cycles = [f"{stage.cycles[name] / 1e6:,.1f}" if stage.cycles else "-" for name in INSTRUMENTS]
        of_peak = f"{stage.of_peak(chip, len(plan.where.devices)):.2f}" if stage.cycles and chip.clock else "-"
        memory = [gib(size) for size in (stage.arguments, stage.temporaries, stage.peak)]
        sent = [f"{1e3 * seconds:.2f}" for seconds in stage.communication]
        fits = "no" if stage.problem else "yes"
        rows.append((*_analytic(stage), fits, *memory, *cycles, of_peak, *sent, f"{stage.share:.0%} of steps"))
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
    """For each stage, per step and device: cycles of operations without a schedule, bytes copied alongside other work,
    and bytes sent. For a stage that does not fit: the reason and the remedies.
    """
    lines = []
    for stage in plan.stages if plan.where.chip else ():
        if stage.problem:
            lines.append(
                f"stage {stage.name} does not fit: {stage.problem}. Use a smaller --config.batch_size, more "
                "--config.micro_batches, a larger slice or --config.mesh.fsdp. "
                "--search finds the cheapest choice that fits"
            )
            continue
        bounded = ", ".join(f"{kind} {cycles / 1e6:,.2f}" for kind, cycles in stage.unscheduled.items()) or "none"
        lines.append(
            f"stage {stage.name}, per step and device: M cycles without a schedule, bounded by bytes, FLOPs or the "
            f"estimate: {bounded}; MiB copied alongside other work: {stage.copies / 2**20:,.1f}; MiB in collectives: "
            f"{mib(stage.collectives)}"
        )
    return lines


def totals(plan: CostEstimate, utilisation: float) -> list[str]:
    """FLOPs, hours and price of the whole run.

    The hours at `utilisation` are left out if the cycles do not allow that share of the peak.
    """
    chip = plan.where.chip
    lines = [f"the whole run: {plan.flops:.3g} FLOPs, {plan.flops / plan.dense:.1%} of dense training"]
    if chip is None or not plan.fits:
        return lines
    hours, at, used = plan.hours(), plan.hours_at(utilisation), plan.utilisation()
    if hours is not None and used is not None:
        least = f"{clock(3600 * hours)}{price(plan, hours)}"
        lines.append(f"  {least} on {plan.where.topology} at these cycles: {used:.0%} of its peak")
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
    """One run relative to another: FLOPs, cycles, and the realised part of the saving, by each instrument."""
    lines = [f"relative to the compared config: FLOPs {plan.flops / other.flops:.3f}"]
    for name, saving in (savings := of_run(plan, other)).items():
        line = f"  by the {name}: cycles {saving.cycles:.3f}"
        if saving.realised is not None:
            line += f", realised {saving.realised:.2f} of the saving: {saving.of_ceiling:.2f} of its ceiling, "
            line += f"which is {saving.ceiling:.2f}"
        lines.append(line)
    if savings:
        most = [gib(max(stage.temporaries for stage in one.stages)) for one in (plan, other)]
        lines.append(f"  temporaries {most[0]} GiB instead of {most[1]} GiB")
    return lines


def choices(found: list[Found], own: Found | None, settings: PretrainSettings, where: Slice) -> str:
    """What a search found, cheapest first. own: the cheapest choice with the run's own batch size; None if none
    fits.
    """
    head = (
        "batch",
        "micro-batches",
        "recompute",
        "data x fsdp x tensor",
        "peak GiB",
        "examples/s",
        "of peak",
        "of least",
    )
    rows: list[tuple[str, ...]] = [head]
    for choice, plan, seconds in found:
        mesh = choice.mesh
        rows.append(
            (
                f"{choice.batch_size:,}",
                str(choice.micro_batches),
                choice.recompute,
                f"{mesh.data} x {mesh.fsdp} x {mesh.tensor}",
                gib(max(stage.peak for stage in plan.stages)),
                f"{plan.chips / seconds:,.0f}",
                f"{plan.utilisation():.2f}",
                f"{seconds / found[0].seconds:.2f}",
            )
        )
    lines = [f"found to fit on {where.topology}, least cost first:", table(rows)]
    if own is None:
        lines.append(f"a batch of {settings.batch_size:,} does not fit")
    elif own != found[0]:
        flags = " ".join(f"--config.{key}={value}" for key, value in own.choice.flags(settings).items())
        lines.append(
            f"with a batch of {settings.batch_size:,}, the least cost is {own.seconds / found[0].seconds:.2f} times "
            f"that of the first row: {flags}"
        )
    return "\n".join(lines)


def profile(stage: StageEstimate, top: int = 25) -> str:
    """Where a stage's cycles go: the `top` most expensive pairs of source line and operation, by each instrument."""
    if not stage.cycles:
        return f"stage {stage.name}: {stage.problem or 'not compiled'}"
    rows = [("line", "operation", *(cell for name in INSTRUMENTS for cell in (f"{name}, M cycles", "share")))]
    for source, operation, cycles in stage.lines[:top]:
        by = [
            cell
            for name in INSTRUMENTS
            for cell in (f"{cycles[name] / 1e6:.2f}", f"{cycles[name] / stage.cycles[name]:.1%}")
        ]
        rows.append((source or "?", operation, *by))
    rows.append(("sum", "", *(cell for name in INSTRUMENTS for cell in (f"{stage.cycles[name] / 1e6:.2f}", "100.0%"))))
    return f"stage {stage.name}:\n" + table(rows)
