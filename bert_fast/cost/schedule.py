"""The TPU compiler's static schedule: a second opinion on the cycles of a step, which covers Pallas kernels too.

For each fusion and kernel, the compiler writes how many bundles (instruction words, one per cycle) one pass takes. A
fusion or kernel takes at least bundles x passes cycles. It also takes at least the time to move its bytes at the
memory's bandwidth. The start-up of grid steps and waits for copies are not included. A loop inside a kernel counts as
one pass. The compiler schedules equal instructions once, under the name of one of them (libtpu 0.0.42 wrote 2 schedules
for 24 kernels of 12 layers).
"""

import base64
import functools
import math
import pathlib
import re
from typing import NamedTuple

from bert_fast.cost import hlo
from bert_fast.cost.accelerators import Accelerator
from bert_fast.cost.work import Work

# libtpu reads these flags when it is loaded. They write one file per fusion or kernel, named after the instruction.
DUMP = "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*post-ra.*"
PASS = "schedule-analysis_packed-bundles-post-ra"
KERNEL = 'custom_call_target="tpu_custom_call"'  # a Pallas kernel


class Cost(NamedTuple):
    """Cycles of one run of an instruction.

    bounded: True if the schedule or its number of passes is unknown. The cycles are then a bound from bytes, FLOPs or
    the compiler's estimate.
    """

    cycles: float
    bounded: bool


def read_bundles(folder: pathlib.Path) -> dict[str, int]:
    """The bundles of each instruction that has a schedule in the folder. Empties the folder."""
    bundles = {}
    for path in folder.iterdir():
        found = re.fullmatch(rf"\d+-(.*)-\d+-{PASS}\.txt", path.name)
        if found and (count := re.search(r"total scheduled bundles:\s*(\d+)", path.read_text())):
            bundles[found[1]] = int(count[1])
        path.unlink()
    return bundles


def for_equals(module: hlo.Module, bundles: dict[str, int]) -> dict[str, int]:
    """`bundles`, with added entries for instructions that have no schedule but are equal to one with a schedule."""
    instructions = [each for computation in module.computations.values() for each in computation]
    types = {each.name: each.result for each in instructions}
    contents = {each.name: content(module, types, each) for each in instructions}
    scheduled = {contents[name]: count for name, count in bundles.items() if name in contents}
    return {name: scheduled[text] for name, text in contents.items() if text in scheduled} | bundles


def content(module: hlo.Module, types: dict[str, str], instruction: hlo.Instruction) -> str:
    """The text of an instruction and of what it fuses, with the types of its operands. Names, estimates, and places in
    the source or in memory are left out.
    """
    texts = [instruction.text, *(inner.text for inner in module.computations.get(hlo.called(instruction, "calls"), []))]
    return "\n".join([*map(_without_names, texts), *(types.get(name, name) for name in instruction.operands)])


def _without_names(text: str) -> str:
    """The text without metadata, estimates and offsets. Its names become numbers, in order of appearance."""
    numbers: dict[str, int] = {}
    text = re.sub(r'^ROOT |, metadata=\{[^}]*\}|"estimated_cycles":"\d+",?|"offset":"\d+"', "", text.strip())
    return re.sub(r"%([\w.-]+)", lambda found: f"%{numbers.setdefault(found[1], len(numbers))}", text)


def cost(work: Work, bundles: dict[str, int], chip: Accelerator) -> Cost:
    """The least cycles of an instruction: the larger of its schedule's cycles and the cycles to move its bytes.

    If the schedule or its number of passes is unknown, two other bounds replace the schedule's cycles: the compiler's
    estimate, and for a kernel the cycles of its FLOPs.
    """
    passes, found = iterations(work.instruction.text), bundles.get(work.instruction.name)
    least = work.bytes / chip.bandwidth * chip.devices * chip.clock
    if passes is None or found is None:
        return Cost(max(least, work.cycles or 0, flops(work.instruction.text) / per_cycle(chip)), True)
    return Cost(max(least, passes * found), False)


def per_cycle(chip: Accelerator) -> float:
    """FLOPs of a device per cycle; infinite if its clock is unknown."""
    return chip.peak / chip.devices / chip.clock if chip.clock else math.inf


def iterations(text: str) -> int | None:
    """The passes through an instruction's schedule: a fusion's windows or a kernel's grid steps. None if unknown."""
    if KERNEL in text:
        body = re.search(r'"body":\s*"([^"]*)"', text)
        sizes = grid(body[1]) if body else (-1,)
        return None if min(sizes, default=1) < 0 else math.prod(sizes)  # dynamic sizes are negative
    window = re.search(r'"iteration_bounds":\[([^\]]*)\]', text)
    return math.prod(int(size) for size in re.findall(r"\d+", window[1])) if window else None


def flops(text: str) -> float:
    """FLOPs of a kernel, from its author's cost estimate; 0 if there is none."""
    estimate = re.search(r'"cost_estimate":\s*\{[^}]*"flops":\s*"?(\d+)', text)
    return float(estimate[1]) if estimate else 0.0


@functools.cache
def grid(body: str) -> tuple[int, ...]:
    """The grid of a Pallas kernel, from the base64 text of its compiled module."""
    from jax.experimental.mosaic.dialects import tpu
    from jax.extend.mlir import ir

    context = ir.Context()
    context.allow_unregistered_dialects = True
    tpu.register_dialect(context)
    with context, ir.Location.unknown():
        for operation in ir.Module.parse(base64.b64decode(body)).body.operations:
            if "iteration_bounds" in operation.attributes:
                return tuple(ir.DenseI64ArrayAttr(operation.attributes["iteration_bounds"]))
    return ()
