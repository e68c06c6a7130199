"""How long the collectives of a step take, and how much of that time overlaps no other work.

A step is simulated on one processor and one network. An asynchronous collective runs alongside the work that follows
it, until an instruction waits for its end. During any other collective, the processor waits. Times are at the full
bandwidth of a chip's links, so they are lower bounds.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from bert_fast.cost.accelerators import Accelerator
from bert_fast.cost.hlo import COLLECTIVES, Instruction, Module, every_branch, kind_of, received, run_by, within

END = '"AsyncCollectiveDone"'  # the custom call in the last piece of a collective that is fused with work


class Communication(NamedTuple):
    """Seconds per step. seconds: the time of all collectives. exposed: the part of it that overlaps no other work."""

    seconds: float
    exposed: float


SILENT = Communication(0.0, 0.0)


def communication(
    module: Module,
    work_seconds: Mapping[str, float],
    topology: str,
    chip: Accelerator,
    branch_share: Callable[[int], float] = every_branch,
) -> Communication:
    """The communication of a step on a slice.

    work_seconds: seconds of each instruction that computes, by the instruction's name.
    """
    now = work = network = total = 0.0
    ends: dict[str, float] = {}  # key of a collective in flight (see below) -> when it ends

    def send(key: str, seconds: float):
        nonlocal network, total
        ends[key] = network = max(now, network) + seconds
        total += seconds

    for times, _, outer in run_by(module, branch_share):
        inside = within(module, outer)
        sent = next((each for each in inside if kind_of(each) in COLLECTIVES), None)
        # A collective that is fused with work has several pieces, which share a channel: the channel is its key. The
        # key of any other collective is the name of its instruction.
        key = channel_of(sent) if sent and outer.operation == "fusion" else outer.name
        if sent and key not in ends:
            send(key, times * seconds_of(sent, topology, chip))
        took = times * work_seconds.get(outer.name, 0.0)
        now, work = now + took, work + took
        awaited = list(outer.operands) if outer.operation.endswith("-done") else []
        if outer.operation in COLLECTIVES or (sent and any(END in each.text for each in inside)):
            awaited = [key]
        for each in awaited:
            now = max(now, ends.pop(each, now))
    return Communication(total, max(now, network) - work)


def channel_of(instruction: Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", instruction.text)
    return found[1] if found else instruction.name


def seconds_of(collective: Instruction, topology: str, chip: Accelerator) -> float:
    """A lower bound on the seconds of a collective: the bytes that a chip sends, divided by the bandwidth of its links.

    A permutation uses one link. Any other collective uses all links of a chip in a corner of the slice.
    """
    members, kind = group_size(collective.text, topology, chip), kind_of(collective)
    size = received(collective) * chip.devices  # the devices of a chip share its links
    if kind == "collective-permute":
        return size / chip.link
    rest = (members - 1) / members
    # Bytes that a chip sends in a ring for each byte of the result.
    sent = {"all-reduce": 2 * rest, "reduce-scatter": members - 1}.get(kind, rest)
    return sent * size / (links(topology, chip) * chip.link) if rest else 0.0


def group_size(text: str, topology: str, chip: Accelerator) -> int:
    """Number of devices in a group of a collective. If the text lists no groups, the number of devices of the slice."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(counted[1])
    return math.prod(sizes_of(topology)) * chip.devices


def sizes_of(topology: str) -> list[int]:
    return [int(size) for size in topology.split(":")[1].split("x")]


def links(topology: str, chip: Accelerator) -> int:
    """Links of a corner chip: two for each dimension that is a ring, one for each that is a line."""
    return sum((2 if size % chip.ring == 0 else 1) for size in sizes_of(topology) if size > 1)
