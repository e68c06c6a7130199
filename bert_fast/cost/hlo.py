"""What a compiled program sends between devices, read from its text."""

import re

import numpy as np

COLLECTIVES: tuple[str, ...] = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"s8": 1, "u8": 1, "pred": 1}


def collectives(text: str) -> dict[str, int]:
    """Bytes a device of the results of each kind of collective instruction in a module of compiled HLO.

    Instructions in the body of a loop or in a branch count once. Raises KeyError for a type that is not known here.
    """
    total = dict.fromkeys(COLLECTIVES, 0)
    for line in text.splitlines():
        found = re.match(rf"\s+(?:ROOT )?%?[\w.-]+ = (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if found:
            for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", found[1]):
                total[found[2]] += BYTES[kind] * int(np.prod([int(size) for size in sizes.split(",") if size]))
    return total
