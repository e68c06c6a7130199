"""The work of a compiled step: each instruction that takes time, how often it runs, its estimated cycles, and the bytes
that it moves.

Only the TPU compiler estimates cycles.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bert_fast.cost.hlo import Instruction, Module, called, every_branch, run_by
from bert_fast.cost.traffic import ASYNCHRONOUS, moved

# Operations without an estimate, heaviest first. A fusion that contains any of these counts as the heaviest of them.
NOT_ESTIMATED = ("scatter", "gather", "sort", "custom-call", "rng-bit-generator", "while")
# Custom calls that only annotate their operand, reserve memory, or mark the start or the end of a collective.
FREE = (
    *("ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked"),
    *("AllocateBuffer", "AsyncCollectiveStart", "AsyncCollectiveDone"),
)


class Work(NamedTuple):
    """One instruction of a step, and how often it runs. cycles: the compiler's estimate; None if there is none."""

    times: float
    operation: str
    cycles: int | None
    bytes: int
    source: str
    name: str
    instruction: Instruction


def walk(module: Module, branch_share: Callable[[int], float] = every_branch) -> Iterator[Work]:
    """Every instruction that takes time in a step, except collectives, with how often it runs."""
    results = {
        computation: {instruction.name: instruction.result for instruction in instructions}
        for computation, instructions in module.computations.items()
    }
    for times, computation, instruction in run_by(module, branch_share):
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.text)
        kind = instruction.operation
        if kind == "fusion":
            inner = module.computations.get(called(instruction, "calls"), [])
            inside = {each.operation for each in inner if not _is_free(each)}
            kind = next((heavy for heavy in NOT_ESTIMATED if heavy in inside), kind)
        # A few scalar operations have no estimate either, and are skipped.
        if (estimate is None and kind not in (*NOT_ESTIMATED, *ASYNCHRONOUS)) or _is_free(instruction):
            continue
        source = re.search(r"stack_frame_id=(\d+)", instruction.text)
        name = re.search(r'op_name="([^"]*)"', instruction.text)
        yield Work(
            times,
            kind,
            int(estimate[1]) if estimate and kind not in NOT_ESTIMATED else None,
            moved(kind, module, results[computation], instruction),
            module.sources.get(int(source[1]), "") if source else "",
            name[1] if name else "",
            instruction,
        )


def _is_free(instruction: Instruction) -> bool:
    return instruction.operation == "custom-call" and any(f'"{free}"' in instruction.text for free in FREE)
