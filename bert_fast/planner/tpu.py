"""Asks the TPU compiler, which needs no TPU, what a train step takes on a described slice.

Cycles are the compiler's own estimate, and no measurement: they rank programs and show waste. Gathers, scatters, sorts,
custom calls and collectives carry no estimate; they are listed by their bytes.
"""

import ctypes
import dataclasses
import gzip
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
from bert_fast.data.files import atomic_write

LIBTPU = "0.0.42"  # what the `tpu` extra of jax 0.10.2 pins; a newer one failed with an older jaxlib
FORMAT = 3  # of what is kept in the cache
FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")  # the variables that change what the compiler does
KNOWN = ("v4:2x2x1", "v5e:1x1", "v5e:2x4", "v5e:4x4", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v6e:1x1", "v6e:16x16")


@dataclasses.dataclass(frozen=True)
class Said:
    """What the compiler said of one program, for one device.

    text: the compiled HLO, with source lines as they were then. arguments, temporaries, peak: bytes. seconds: what
    compiling took. problem: why it does not fit, "" where it does; then there is neither text nor memory.
    """

    seconds: float
    text: str = ""
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is read from that. cycles: counted ones. not_counted: bytes by operation. collectives: bytes by kind.
    lines: (source line, operation, cycles), the dearest first.
    """

    said: Said
    cycles: int = 0
    not_counted: dict[str, int] = dataclasses.field(default_factory=dict)
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    lines: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)


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
            f"libtpu {found} does not match jaxlib {importlib.metadata.version('jaxlib')}, which needs {LIBTPU}: "
            "pip install -r requirements-tpu.txt"
        )
    # It must not look for a TPU in the neighbourhood, nor hold the lock that says that it uses one.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if re.fullmatch(r"1(x1)+", topology.split(":")[1]):  # the default is a host of four or eight chips
        options["chips_per_host_bounds"] = [1, 1, 1]
    if accelerator.name == "v4":  # as on the chip itself both of its cores are one device; the default is two
        options["chip_config_name"] = "megacore"
    try:
        return accelerator, topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--topology={topology}: {reason}; known to work are {', '.join(KNOWN)}") from None


def compile(lowered, topology: str, cache: pathlib.Path) -> Said:
    """What the compiler says of a lowered step; from the cache where it has said so before."""
    versions = f"{FORMAT} {jax.__version__} {importlib.metadata.version('jaxlib')} {LIBTPU} {topology}"
    key = "\n".join([versions, *(os.environ.get(name, "") for name in FLAGS), lowered.as_text()])
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json.gz"
    if path.is_file():
        return Said(**json.loads(gzip.decompress(path.read_bytes())))
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        problem = too_large(str(error), lowered.as_text(debug_info=True))
        said = Said(time.monotonic() - began, problem=problem)
    else:
        memory = compiled.memory_analysis()
        arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak = arguments + temporaries + outputs
        said = Said(time.monotonic() - began, compiled.as_text(), arguments, temporaries, peak)
    # glibc keeps what the compiler has freed, at BERT-base size a gigabyte a program.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, gzip.compress(json.dumps(dataclasses.asdict(said)).encode()))
    return said


def read(said: Said, running: float) -> Compiled:
    """The figures of a compiled program.

    running: the share of a conditional's true branch, of layers that run in spans with `cond`.
    """
    if said.problem:
        return Compiled(said)

    def share(branch: int) -> float:
        return running if branch == 1 else 1 - running

    module, cycles, not_counted = hlo.parse(said.text), 0.0, Counter[str]()
    lines: Counter[tuple[str, str]] = Counter()
    for work in hlo.walk(module, share):
        if work.cycles is None:
            not_counted[work.operation] += round(work.times * work.bytes)
        else:
            cycles += work.times * work.cycles
            lines[work.source, operation_of(work.name)] += round(work.times * work.cycles)
    return Compiled(
        said,
        cycles=round(cycles),
        not_counted=dict(not_counted),
        collectives={kind: round(size) for kind, size in hlo.collectives(module, share).items() if size},
        lines=[(source, operation, count) for (source, operation), count in lines.most_common()],
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
    listed = []
    for entry in re.split(r"^\s*\d+\. (?=Size: )", message, flags=re.MULTILINE)[1:4]:
        size, shape = re.match(r"Size: ([\d.]+\w)", entry), re.search(r"Shape: (\w+\[[\d,]*\])", entry)
        name = re.search(r'op_name="([^"]*)"', entry)
        if size and shape:
            listed.append(f"{size[1]} {shape[1]} ({operation_of(name[1] if name else '')})")
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
