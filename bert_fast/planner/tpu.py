"""Asks the TPU compiler, which needs no TPU, what a train step costs on a described slice.

Cycles are the compiler's own estimate, not a measurement: they rank programs and show waste. Gathers, scatters, sorts,
custom calls and collectives have no estimate; their bytes are listed instead.
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

from bert_fast import BadInput, versions
from bert_fast.cost import hlo
from bert_fast.cost.accelerators import TPUS, Accelerator
from bert_fast.data.files import atomic_write

FORMAT = 3  # of the cache entries
FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")  # environment variables that change what the compiler does
KNOWN = ("v4:2x2x1", "v5e:1x1", "v5e:2x4", "v5e:4x4", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v6e:1x1", "v6e:16x16")


@dataclasses.dataclass(frozen=True)
class Said:
    """What the compiler said about one program, for one device.

    text: the compiled HLO, with source lines as they were when it was compiled. arguments, temporaries, peak: bytes.
    seconds: compile time. problem: why the program does not fit, "" if it fits; with a problem, text and memory are
    absent.
    """

    seconds: float
    text: str = ""
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Figures read from what the compiler said.

    cycles: of the work with an estimate. not_counted: bytes of the other work, by operation. collectives: bytes by
    kind. lines: (source line, operation, cycles), most expensive first.
    """

    said: Said
    cycles: int = 0
    not_counted: dict[str, int] = dataclasses.field(default_factory=dict)
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    lines: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)


def describe(topology: str) -> tuple[Accelerator, Sequence[Any]]:
    """The chip of a topology such as v5e:4x4, and its devices as JAX describes them.

    Raises BadInput if it is unknown, or if libtpu is missing or does not match.
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
    needed = versions.libtpu_of_jax()  # a newer libtpu failed with an older jaxlib
    if found != needed and not found.startswith(f"{needed}."):
        raise BadInput(
            f"libtpu {found} does not match jaxlib {importlib.metadata.version('jaxlib')}, which needs {needed}: "
            "pip install -r requirements-tpu.txt"
        )
    # Keeps libtpu from looking for a TPU, and from holding the lock that claims one.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if re.fullmatch(r"1(x1)+", topology.split(":")[1]):  # the default is a host of four or eight chips
        options["chips_per_host_bounds"] = [1, 1, 1]
    if accelerator.name == "v4":  # one device for both cores, as on the real chip; the default is two
        options["chip_config_name"] = "megacore"
    try:
        return accelerator, topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--topology={topology}: {reason}; known to work: {', '.join(KNOWN)}") from None


def compile(lowered, topology: str, cache: pathlib.Path) -> Said:
    """Compiles a lowered step, or reads an earlier result from the cache."""
    packages = f"{jax.__version__} {importlib.metadata.version('jaxlib')} {versions.libtpu_of_jax()}"
    key = "\n".join(
        [f"{FORMAT} {packages} {topology}", *(os.environ.get(name, "") for name in FLAGS), lowered.as_text()]
    )
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
    # Return freed memory to the system: glibc would keep a gigabyte per program at BERT-base size.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, gzip.compress(json.dumps(dataclasses.asdict(said)).encode()))
    return said


def read(said: Said, running: float) -> Compiled:
    """The figures of a compiled program.

    running: the share of conditionals that take the true branch, which is the share of layers that run in spans with
    `cond`.
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
    """The pass that an operation belongs to, and the last part of its name."""
    passes = "backward" if "transpose(" in name else "forward" if "jvp(" in name else "update"
    return f"{passes} {name.rsplit('/', 1)[-1]}" if name else "?"


def too_large(message: str, program: str) -> str:
    """Why a program does not fit, in one line: how much memory it uses, and its largest tensors.

    message: the compiler's error message, which does not always list tensors. program: the text of the lowered
    program, with locations; its shapes are for all devices together.
    """
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", message)
    used = used or re.search(r"temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    listed = []
    for entry in re.split(r"^\s*\d+\. (?=Size: )", message, flags=re.MULTILINE)[1:4]:
        size, shape = re.match(r"Size: ([\d.]+\w)", entry), re.search(r"Shape: (\w+\[[\d,]*\])", entry)
        name = re.search(r'op_name="([^"]*)"', entry)
        if size and shape:
            listed.append(f"{size[1]} {shape[1]} ({operation_of(name[1] if name else '')})")
    whose = "largest tensors" if listed else "largest tensors, over all devices together"
    largest = "; ".join(listed or largest_tensors(program, 3))
    return (f"uses {used[1]} of {used[2]}" if used else "out of memory") + (f"; {whose}: {largest}" if largest else "")


def largest_tensors(program: str, count: int) -> list[str]:
    """The `count` largest results in the text of a lowered program, each shape once, with its operation."""
    names = dict(re.findall(r'^(#loc\d+) = loc\("([^"]*)"', program, re.MULTILINE))
    makers: dict[str, tuple[int, str]] = {}
    for shape, kind, place in re.findall(r"tensor<((?:\d+x)+)(\w+)> loc\((#loc\d+)\)$", program, re.MULTILINE):
        sizes = shape.rstrip("x").replace("x", ",")
        bytes_ = math.prod(map(int, sizes.split(","))) * -(-int(re.findall(r"\d+", kind)[0]) // 8)  # i1 is a byte
        makers.setdefault(f"{kind}[{sizes}]", (bytes_, operation_of(names.get(place, ""))))
    ranked = sorted(makers.items(), key=lambda item: -item[1][0])[:count]
    return [f"{size / 2**30:.2f}G {shape} ({maker})" for shape, (size, maker) in ranked]
