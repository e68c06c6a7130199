"""Reads the text of a compiled program: its instructions, how often each runs, and what the program sends between
devices.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

COLLECTIVES: tuple[str, ...] = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"s8": 1, "u8": 1, "pred": 1, "token": 0}


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    result: str  # its type
    operation: str
    operands: tuple[str, ...]
    text: str


class Module(NamedTuple):
    """Instructions by computation, the name of the entry computation, and the source line of each stack frame."""

    computations: dict[str, list[Instruction]]
    entry: str
    sources: dict[int, str]


def size_of(result: str) -> int:
    """Bytes of a type such as `f32[8,128]{1,0}`, or of a tuple of types."""
    return sum(sizes_of(result))


def sizes_of(result: str) -> list[int]:
    """Bytes of each array in a type. Raises KeyError for an element type that is not in BYTES."""
    return [
        BYTES[kind] * int(np.prod([int(size) for size in sizes.split(",") if size]))
        for kind, sizes in re.findall(r"([a-z]\w*)\[([\d,]*)\]", result)
    ]


def received(collective: Instruction) -> int:
    """Bytes of a collective's result. `all-gather-start` and `collective-permute-start` also return their operands, and
    these come first.
    """
    sizes, count = sizes_of(collective.result), len(collective.operands)
    if collective.operation in ("all-gather-start", "collective-permute-start") and len(sizes) >= 2 * count:
        sizes = sizes[count : 2 * count]
    return sum(sizes)


def parse(text: str) -> Module:
    """The instructions of every computation of a module's text."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.endswith("{") and (found := re.match(r"(ENTRY )?%?([\w.-]+) \(", line)):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif current is not None and (
            found := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)", line)
        ):
            operands = tuple(re.findall(r"%([\w.-]+)", found[4]))
            current.append(Instruction(found[1], found[2], found[3], operands, line))
        elif line == "}":
            current = None
    return Module(computations, entry, _sources(text))


def _sources(text: str) -> dict[int, str]:
    """`file:line` of each stack frame, from the tables at the top of the text."""

    def table(title: str, pattern: str) -> dict[int, tuple[str, ...]]:
        found = re.search(rf"^{title}\n((?:\d+ .*\n)+)", text, re.MULTILINE)
        rows = re.findall(rf"^(\d+) {pattern}", found[1], re.MULTILINE) if found else []
        return {int(row[0]): row[1:] for row in rows}

    files = {key: name for key, (name,) in table("FileNames", r'"(.*)"').items()}
    places = table("FileLocations", r"\{file_name_id=(\d+) .*?line=(\d+)")
    frames = table("StackFrames", r"\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?")

    def source(frame: int) -> str:
        """The innermost line on the stack that belongs to this package. If none does, the innermost line."""
        innermost, seen = "", set()
        while frame in frames and frame not in seen:
            seen.add(frame)
            place, parent = frames[frame]
            file, line = places[int(place)]
            name = files[int(file)]
            innermost = innermost or f"{name.rsplit('/', 1)[-1]}:{line}"
            inside = name.rpartition("/bert_fast/")[2]
            # The folder of a git clone may be named bert_fast too, and contain installed libraries.
            if inside != name and "site-packages/" not in inside:
                return f"{inside}:{line}"
            frame = int(parent or 1) - 1  # in jaxlib 0.10.2, parent ids are one too high; 0 ends the loop
        return innermost

    return {frame: source(frame) for frame in frames}


def every_branch(branch: int) -> float:
    return 1.0


def run_by(module: Module, branch_share: Callable[[int], float]) -> Iterator[tuple[float, str, Instruction]]:
    """For every instruction outside fusions: how often a step runs it, its computation, and the instruction.

    branch_share: maps the number of a conditional's branch (0: the first, for a false predicate) to the share of
    steps that take it. The body of a loop counts once per iteration. If the number of iterations is unknown, the body
    counts once, and the loop instruction is included too.
    """

    def of(computation: str, times: float) -> Iterator[tuple[float, str, Instruction]]:
        for instruction in module.computations[computation]:
            if instruction.operation == "while":
                trips = _trips(module, instruction)
                if trips is None:
                    yield times, computation, instruction
                yield from of(called(instruction, "body"), times * (trips or 1))
            elif instruction.operation == "conditional":
                for number, branch in enumerate(_branches(instruction)):
                    if share := branch_share(number):
                        yield from of(branch, times * share)
            elif instruction.operation == "call":
                yield from of(called(instruction, "to_apply"), times)
            else:
                yield times, computation, instruction

    yield from of(module.entry, 1.0)


def _trips(module: Module, loop: Instruction) -> int | None:
    """Number of iterations of a loop; None if unknown.

    The number is `known_trip_count` if the loop has it. Otherwise it is the upper bound in the loop's condition: the
    loop is assumed to count from 0.
    """
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
    if known:
        return int(known[1])
    condition = module.computations[called(loop, "condition")]
    bounds = [re.search(r" constant\((\d+)\)", instruction.text) for instruction in condition]
    bounds = [int(bound[1]) for bound in bounds if bound]
    return bounds[0] if len(bounds) == 1 and "direction=LT" in condition[-1].text else None


def collectives(module: Module, branch_share: Callable[[int], float] = every_branch) -> dict[str, float]:
    """For each kind of collective, the size of its results in one step, in bytes per device.

    The compiler may cut a collective into pieces and fuse each with other work. The pieces share a channel, and count
    as one collective.
    """
    found: dict[tuple[str, str], float] = {}
    for times, computation, outer in run_by(module, branch_share):
        for instruction in within(module, outer):
            kind = kind_of(instruction)
            if kind in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", instruction.text)
                key = (kind, channel[1] if channel else f"{computation}/{outer.name}")
                found[key] = max(found.get(key, 0), times * received(instruction))
    return {kind: sum(size for (of, _), size in found.items() if of == kind) for kind in COLLECTIVES}


def within(module: Module, outer: Instruction) -> list[Instruction]:
    """The instructions inside a fusion or inside what `async-start` starts; for any other instruction, only itself."""
    inside = outer.operation in ("fusion", "async-start")
    return module.computations.get(called(outer, "calls"), []) if inside else [outer]


def kind_of(instruction: Instruction) -> str:
    return instruction.operation.removesuffix("-start")


def called(instruction: Instruction, key: str) -> str:
    """The name of the computation that an instruction gives as `key`; "" if it gives none. A fusion uses `calls`."""
    found = re.search(rf"\b{key}=%?([\w.-]+)", instruction.text)
    return found[1] if found else ""


def _branches(instruction: Instruction) -> list[str]:
    """The computations of a conditional. The first is for a false predicate, or for index 0."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.text)
    if listed:
        return re.findall(r"%?([\w.-]+)", listed[1])
    return [called(instruction, "false_computation"), called(instruction, "true_computation")]
