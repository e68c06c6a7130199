"""Estimates what a train step costs on a slice, with the TPU compiler, which needs no TPU.

Two instruments give the cycles: the compiler's own estimate, and its static schedule (cost/schedule.py). Neither is a
measurement: they rank programs and show waste. The estimate has no figure for gathers, scatters, sorts and Pallas
kernels. For these, the estimate takes the schedule's figure.
"""

import ctypes
import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bert_fast import BadInput, bert, versions
from bert_fast.cost import hlo, overlap, schedule
from bert_fast.cost.accelerators import TPUS, Accelerator
from bert_fast.cost.traffic import ASYNCHRONOUS
from bert_fast.cost.work import walk
from bert_fast.data.files import atomic_write
from bert_fast.train.compiler_options import Options

INSTALL = 'pip install ".[tpu]" in a clone, or, in the .venv of make, .venv/bin/pip install -r requirements-tpu.txt'
FORMAT = 4  # of the cache entries
FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")  # environment variables that affect the compiler
INSTRUMENTS = ("estimate", "schedule")
KNOWN = ("v4:2x2x1", "v5e:1x1", "v5e:2x4", "v5e:4x4", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v6e:1x1", "v6e:16x16")


@dataclasses.dataclass(frozen=True)
class Said:
    """What the compiler reports about one program, for one device.

    seconds: compile time. text: the compiled HLO, with source lines as they were when it was compiled. bundles: the
    number of bundles of each instruction that has a static schedule. arguments, temporaries, peak: bytes. problem: why
    the program does not fit; empty if it fits. If there is a problem, only `problem` and `seconds` are set.
    """

    seconds: float
    text: str = ""
    bundles: dict[str, int] = dataclasses.field(default_factory=dict)
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Figures computed from what the compiler reports.

    cycles: the cycles of the step without its collectives, by instrument. layers: the part of `cycles` in the encoder's
        layers, without the optimizer's update.
    unscheduled: the cycles of instructions without a schedule, by operation. They are bounds from bytes, FLOPs or the
        estimate.
    copies: the bytes of copies that overlap other work. No sum includes them.
    collectives: the bytes of the collectives' results, by kind. communication: the time of the collectives.
    lines: for each pair of source line and operation, its cycles by instrument. The most expensive pair is first.
    """

    said: Said
    cycles: dict[str, float] = dataclasses.field(default_factory=dict)
    layers: dict[str, float] = dataclasses.field(default_factory=dict)
    unscheduled: dict[str, float] = dataclasses.field(default_factory=dict)
    copies: float = 0.0
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)
    communication: overlap.Communication = overlap.SILENT
    lines: dict[tuple[str, str], dict[str, float]] = dataclasses.field(default_factory=dict)


@functools.cache
def dump_folder() -> tempfile.TemporaryDirectory:
    """The folder in which libtpu writes schedules. The first call must come before libtpu is loaded."""
    folder = tempfile.TemporaryDirectory(prefix="schedules-")
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{given} {schedule.DUMP.format(folder=folder.name)}".strip()
    return folder


def describe(topology: str) -> tuple[Accelerator, Sequence[Any]]:
    """The chip of a topology such as v5e:4x4, and its devices as JAX describes them.

    Raises BadInput if the topology is unknown, or if libtpu is missing or does not match jaxlib.
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
            f"{INSTALL}"
        ) from None
    needed = versions.libtpu_of_jax()  # a newer libtpu failed with an older jaxlib
    if found != needed and not found.startswith(f"{needed}."):
        raise BadInput(
            f"libtpu {found} does not match jaxlib {importlib.metadata.version('jaxlib')}, which needs {needed}: "
            f"{INSTALL}"
        )
    # Keeps libtpu from looking for a TPU, and from holding the lock that claims one.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    dump_folder()
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if re.fullmatch(r"1(x1)+", topology.split(":")[1]):  # the default is a host with four or eight chips
        options["chips_per_host_bounds"] = [1, 1, 1]
    if accelerator.name == "v4":  # one device for both cores, as on the real chip; the default is two devices
        options["chip_config_name"] = "megacore"
    try:
        return accelerator, topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--topology={topology}: {reason}; known to work: {', '.join(KNOWN)}") from None


def compile(lowered, topology: str, cache: pathlib.Path, options: Options) -> Said:
    """Compiles a lowered step, or reads an earlier result from the cache.

    options: the compiler options that the step was lowered with.
    """
    packages = f"{jax.__version__} {importlib.metadata.version('jaxlib')} {versions.libtpu_of_jax()}"
    folder = dump_folder().name
    flags = [os.environ.get(name, "").replace(folder, "") for name in FLAGS]
    key = "\n".join([f"{FORMAT} {packages} {topology} {sorted(options.items())}", *flags, lowered.as_text()])
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json.gz"
    if path.is_file():
        return Said(**json.loads(gzip.decompress(path.read_bytes())))
    schedule.read_bundles(pathlib.Path(folder))  # removes what an earlier program left
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
        bundles = schedule.read_bundles(pathlib.Path(folder))
        said = Said(time.monotonic() - began, compiled.as_text(), bundles, arguments, temporaries, peak)
    # Return freed memory to the system: glibc would keep a gigabyte per program at BERT-base size.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, gzip.compress(json.dumps(dataclasses.asdict(said)).encode()))
    return said


def read(said: Said, running: float, topology: str, chip: Accelerator) -> Compiled:
    """The figures of a compiled program.

    running: the share of conditionals that take the true branch, which is the share of layers that run in spans with
    `cond`.
    """
    if said.problem:
        return Compiled(said)

    def share(branch: int) -> float:
        return running if branch == 1 else 1 - running

    module, copies, seconds = hlo.parse(said.text), 0.0, {}
    bundles = schedule.for_equals(module, said.bundles)
    cycles, layers, unscheduled, lines = {}, {}, {}, {}
    for work in walk(module, share):
        if work.operation in ASYNCHRONOUS:
            copies += work.times * work.bytes
            continue
        least = schedule.cost(work, bundles, chip)
        if least.bounded:
            add(unscheduled, {work.operation: least.cycles}, work.times)
        found = {"estimate": least.cycles if work.cycles is None else work.cycles, "schedule": least.cycles}
        seconds[work.instruction.name] = least.cycles / chip.clock if chip.clock else 0.0
        add(cycles, found, work.times)
        if bert.Block.__name__ in work.name:
            add(layers, found, work.times)
        add(lines.setdefault((work.source, operation_of(work.name)), {}), found, work.times)
    return Compiled(
        said,
        cycles=cycles,
        layers=layers,
        unscheduled=unscheduled,
        copies=copies,
        communication=overlap.communication(module, seconds, topology, chip, share),
        collectives={kind: size for kind, size in hlo.collectives(module, share).items() if size},
        lines=dict(most_expensive(lines)),
    )


def add(total: dict[str, float], found: Mapping[str, float], times: float):
    """Adds each figure, multiplied by `times`, to its total."""
    for key, figure in found.items():
        total[key] = total.get(key, 0.0) + times * figure


def most_expensive(lines: Mapping) -> list:
    """The items of `lines`, most expensive first."""
    return sorted(lines.items(), key=lambda item: -max(item[1].values()))


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
