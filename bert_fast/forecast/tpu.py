"""Asks the TPU compiler, which needs no TPU, what a train step takes on a described slice.

Cycles are the compiler's own estimate, and no measurement: they rank programs and show waste. Gathers, scatters, sorts,
custom calls and collectives carry no estimate; they are listed by their bytes.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from bert_fast import BadInput
from bert_fast.cost import hlo
from bert_fast.cost.accelerators import TPUS, Accelerator
from bert_fast.data.files import atomic_json

LIBTPU = "0.0.42"  # what the `tpu` extra of jax 0.10.2 pins; a newer one failed with an older jaxlib
FORMAT = 2  # of what is kept in the cache
KNOWN = ("v4:2x2x1", "v5e:1x1", "v5e:2x4", "v5e:4x4", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v6e:1x1", "v6e:16x16")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program, for one device.

    arguments, temporaries, peak: bytes. cycles: counted ones. not_counted: bytes by operation. collectives: bytes by
    kind. lines: (source line, operation, cycles), the dearest first. seconds: what compiling took. problem: why it
    does not fit, "" where it does; then the rest is empty.
    """

    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    cycles: int = 0
    not_counted: dict[str, int] = dataclasses.field(default_factory=dict)
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    lines: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    problem: str = ""


def describe(topology: str) -> tuple[Accelerator, Sequence[Any]]:
    """The chip and the described devices of a topology such as v5e:4x4.

    Raises BadInput where it is unknown, or where libtpu is missing or does not match.
    """
    accelerator = TPUS.get(topology.split(":")[0])
    if accelerator is None or ":" not in topology:
        raise BadInput(
            f"--topology={topology} is unknown: expected a TPU slice such as {', '.join(KNOWN)}, or cpu, or gpu"
        )
    try:
        found = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(
            f"--topology={topology} needs libtpu, which holds the TPU compiler and runs on any Linux x86-64 machine: "
            "pip install -r requirements-tpu.txt"
        ) from None
    if found != LIBTPU:
        raise BadInput(
            f"libtpu {found} does not match jaxlib {jax.__version__}, which needs {LIBTPU}: "
            "pip install -r requirements-tpu.txt"
        )
    # It must not look for a TPU in the neighbourhood, nor hold the lock that says that it uses one.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    # The default is a host of four or eight chips.
    alone = {"chips_per_host_bounds": [1, 1, 1]} if re.fullmatch(r"1(x1)+", topology.split(":")[1]) else {}
    try:
        return accelerator, topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--topology={topology}: {reason}; known to work are {', '.join(KNOWN)}") from None


def compile(lowered, topology: str, running: float, cache: pathlib.Path) -> Compiled:
    """What the compiler says of a lowered step; from the cache where it has said so before.

    running: the share of a conditional's true branch, of layers that run in spans with `cond`.
    """
    key = "\n".join([str(FORMAT), jax.__version__, LIBTPU, topology, f"{running:.6f}", lowered.as_text()])
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if path.is_file():
        return Compiled(**json.loads(path.read_text()))
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        result = Compiled(
            seconds=time.monotonic() - began, problem=too_large(str(error), lowered.as_text(debug_info=True))
        )
    else:
        result = read(compiled, running, time.monotonic() - began)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_json(path, dataclasses.asdict(result))
    return result


def read(compiled, running: float, seconds: float) -> Compiled:
    """The figures of a compiled program."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    cycles, not_counted = 0.0, Counter[str]()
    lines: Counter[tuple[str, str]] = Counter()
    for work in hlo.walk(hlo.parse(text), lambda branch: running if branch == 1 else 1 - running):
        if work.cycles is None:
            not_counted[work.operation] += round(work.times * work.bytes)
        else:
            cycles += work.times * work.cycles
            lines[work.source, operation_of(work.name)] += round(work.times * work.cycles)
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs,
        cycles=round(cycles),
        not_counted=dict(not_counted),
        collectives={kind: size for kind, size in hlo.collectives(text).items() if size},
        lines=[(source, operation, count) for (source, operation), count in lines.most_common()],
        seconds=seconds,
    )


def operation_of(name: str) -> str:
    """The last part of an operation's name, with the pass that it belongs to."""
    passes = "backward" if "transpose(" in name else "forward" if "jvp(" in name else "update"
    return f"{passes} {name.rsplit('/', 1)[-1]}" if name else "?"


def too_large(message: str, program: str) -> str:
    """Why a program does not fit, in one line: how much it uses, and its largest tensors.

    message: the compiler's, which does not always list tensors. program: the text that was to be compiled, with
    locations; its shapes are those of all devices together.
    """
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", message)
    used = used or re.search(r"temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    found = re.findall(r"Size: ([\d.]+\w)\s.*?Operator: op_name=\"([^\"]*)\".*?Shape: (\S+?)[{\s]", message, re.DOTALL)
    listed = [f"{size} {shape} ({operation_of(name)})" for size, name, shape in found[:3]]
    whose = "the largest" if listed else "the largest tensors, of all devices together"
    largest = "; ".join(listed or largest_tensors(program, 3))
    return (f"uses {used[1]} of {used[2]}" if used else "out of memory") + (f", {whose}: {largest}" if largest else "")


def largest_tensors(program: str, count: int) -> list[str]:
    """So many of the largest results in the text of a lowered program, each shape once, with what makes them."""
    names = dict(re.findall(r'^(#loc\d+) = loc\("([^"]*)"', program, re.MULTILINE))
    makers: dict[str, tuple[int, str]] = {}
    for shape, kind, place in re.findall(r"tensor<((?:\d+x)+)(\w+)> loc\((#loc\d+)\)$", program, re.MULTILINE):
        sizes = shape.rstrip("x").replace("x", ",")
        bytes_ = math.prod(map(int, sizes.split(","))) * -(-int(re.findall(r"\d+", kind)[0]) // 8)  # i1 is a byte
        makers.setdefault(f"{kind}[{sizes}]", (bytes_, operation_of(names.get(place, ""))))
    ranked = sorted(makers.items(), key=lambda item: -item[1][0])[:count]
    return [f"{size / 2**30:.2f}G {shape} ({maker})" for shape, (size, maker) in ranked]
