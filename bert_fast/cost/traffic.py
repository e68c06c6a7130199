"""A lower bound on the bytes that an instruction moves to and from a device's main memory (HBM)."""

import re

from bert_fast.cost.hlo import Instruction, Module, called, size_of, sizes_of

# Copies that overlap other work. They are listed, but left out of sums: other work may hide their time.
ASYNCHRONOUS = ("copy-start", "slice-start", "dynamic-slice-start")
SLICES = ("slice", "dynamic-slice", "gather")  # they read only what they return
VIEWS = ("bitcast", "get-tuple-element")  # they read nothing
INTO = "dynamic-update-slice"  # writes into its first operand, and moves only the slice


def moved(kind: str, module: Module, results: dict[str, str], instruction: Instruction) -> int:
    """The bytes that an instruction reads and writes.

    kind: the instruction's operation, or the heaviest operation in a fusion. results: the type of each instruction in
    the same computation, by name.

    A gather reads only the rows that it returns, not the whole table. A scatter reads its updates. It also reads and
    writes the table rows that they change. The table is the operand that is as large as the result. If a fusion uses
    only slices of an operand, only the slices count.
    """
    operands = [size_of(results.get(name, "")) for name in instruction.operands]
    if kind in ASYNCHRONOUS:  # the type of its result includes the source, but only a slice of the source is moved
        return 2 * min((size for size in sizes_of(instruction.result) if size > 4), default=0)
    if kind == "gather":
        return 2 * size_of(instruction.result)
    if kind == "scatter":
        result = size_of(instruction.result)
        if result in operands:
            operands.remove(result)
        return 3 * max(operands, default=result)
    types = [results.get(name, "") for name in instruction.operands]
    if instruction.operation == "fusion" and (inside := module.computations.get(called(instruction, "calls"))):
        read = [min(in_memory(each), _read(module, inside, index)) for index, each in enumerate(types)]
        return sum(read) + min(in_memory(instruction.result), _written(inside))
    return sum(map(in_memory, types)) + in_memory(instruction.result)


def in_memory(result: str) -> int:
    """Bytes of the arrays of a type, without arrays that are outside main memory. S(1) marks vector memory; S(2) and
    higher mark other memories.
    """
    return size_of(re.sub(r"\w+\[[\d,]*\]\{[^}]*S\([1-9]\d*\)\}", "", result))


def _read(module: Module, inside: list[Instruction], index: int) -> int:
    """Bytes of parameter number `index` that a fused computation reads."""
    found = [each for each in inside if each.operation == "parameter" and f" parameter({index})" in each.text]
    return _used(module, inside, found[0]) if found else 0


def _used(module: Module, inside: list[Instruction], value: Instruction) -> int:
    """Bytes of a value that the rest of its computation uses."""
    whole, total = size_of(value.result), 0
    for user in inside:
        for place, name in enumerate(user.operands):
            if name != value.name:
                continue
            if user.operation in SLICES and place == 0:
                total += size_of(user.result)
            elif user.operation in VIEWS:
                total += _used(module, inside, user)
            elif user.operation == "fusion":
                total += _read(module, module.computations.get(called(user, "calls"), []), place)
            elif user.operation != INTO or place > 0:
                return whole
    return min(whole, total)


def _written(inside: list[Instruction]) -> int:
    """Bytes that a fused computation writes."""
    by_name = {each.name: each for each in inside}
    root = next((each for each in inside if each.text.lstrip().startswith("ROOT")), inside[-1])
    parts = [by_name[name] for name in root.operands if name in by_name] if root.operation == "tuple" else [root]
    slices = [by_name[part.operands[1]] if part.operation == INTO else part for part in parts]
    return sum(size_of(each.result) for each in slices)
