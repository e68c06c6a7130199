"""Estimates what a run will cost: FLOPs and, for a TPU slice, the compiler's figures for its programs."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bert_fast import BadInput, methods
from bert_fast.cost.accelerators import Accelerator
from bert_fast.cost.flops import dense_equivalent
from bert_fast.method import Method, Stage
from bert_fast.planner import programs, tpu
from bert_fast.train import budget, optim, sharding, timeline
from bert_fast.train.compile import Programs
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.sharding import make_mesh
from bert_fast.train.step import make_step

# The vocabulary to plan for if no shards folder is given: BERT's, uncased.
BERT = {"size": 30_522, "special_ids": {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}}
MOST = 2  # number of a stage's programs to compile, the most frequent first


@dataclasses.dataclass(frozen=True)
class StageEstimate:
    """One stage: means per step, over all devices together unless noted.

    flops: FLOPs executed. dense: FLOPs of dense training. cycles: per device; None without a TPU. share: the share of
    the steps whose program was compiled; the other steps are assumed to take as many cycles per FLOP. Bytes are per
    device. Memory figures are for the program that needs the most.
    """

    name: str
    steps: int
    batch_size: int
    seq_len: int
    flops: float
    dense: float
    share: float = 1.0
    cycles: float | None = None
    not_counted: Mapping[str, float] = dataclasses.field(default_factory=dict)
    collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    compile_seconds: float = 0.0
    problem: str = ""
    lines: tuple[tuple[str, str, int], ...] = ()

    def seconds(self, chip: Accelerator) -> float:
        """Minimum seconds per step: counted cycles at the chip's clock, plus uncounted bytes at its bandwidth."""
        return (self.cycles or 0) / chip.clock + self.bound(chip)

    def bound(self, chip: Accelerator) -> float:
        """Minimum seconds per step for work without an estimate, except copies that overlap other work."""
        waited = sum(size for kind, size in self.not_counted.items() if kind not in tpu.hlo.ASYNCHRONOUS)
        return waited / chip.bandwidth * chip.devices


class Slice(NamedTuple):
    """What to plan for: a chip, and the slice's devices as JAX describes them. chip: None to count FLOPs only."""

    topology: str
    chip: Accelerator | None
    devices: Any


def on(topology: str) -> Slice:
    """The slice that a topology names. Raises BadInput if it is unknown, or if libtpu is missing or does not match."""
    if topology in ("cpu", "gpu"):
        return Slice(topology, None, jax.devices("cpu")[:1])
    return Slice(topology, *tpu.describe(topology))


class CostEstimate(NamedTuple):
    """The estimate of a run on a slice."""

    where: Slice
    stages: list[StageEstimate]

    @property
    def flops(self) -> float:
        return sum(stage.steps * stage.flops for stage in self.stages)

    @property
    def dense(self) -> float:
        return sum(stage.steps * stage.dense for stage in self.stages)

    @property
    def fits(self) -> bool:
        return not any(stage.problem for stage in self.stages)

    @property
    def chips(self) -> int:
        return len(self.where.devices) // (self.where.chip.devices if self.where.chip else 1)

    def cycles(self) -> float | None:
        """Cycles of a device over the whole run; None if any stage's are unknown."""
        counted = [stage.cycles for stage in self.stages]
        if any(cycles is None for cycles in counted):
            return None
        return sum(stage.steps * (stage.cycles or 0) for stage in self.stages)

    def hours(self) -> float | None:
        """Minimum hours of the run, by the compiler's estimate; None if that is unknown."""
        chip = self.where.chip
        if chip is None or not chip.clock or self.cycles() is None:
            return None
        return sum(stage.steps * stage.seconds(chip) for stage in self.stages) / 3600

    def hours_at(self, utilisation: float) -> float | None:
        """Hours of the run at this share of the peak."""
        chip = self.where.chip
        return None if chip is None else self.flops / (self.chips * chip.peak * utilisation) / 3600

    def utilisation(self) -> float | None:
        """Upper bound on the share of the peak, reached if the run takes its minimum hours."""
        hours, at_peak = self.hours(), self.hours_at(1.0)
        return None if hours is None or at_peak is None else at_peak / hours


def plan(settings: PretrainSettings, where: Slice, cache: pathlib.Path, say: Callable[[str], None]) -> CostEstimate:
    """The cost estimate of a run.

    For a TPU slice, compiles each stage's most frequent programs and its largest one. Results that are in the cache
    are read from there.

    Raises BadInput if the run's batches do not divide evenly over the slice.
    """
    method = methods.make(settings.methods)
    settings = budget.resolved(settings, method)
    stages, dense_model = timeline.stages(settings, method), settings.model
    drawn = [timeline.draws(method, stage, timeline.clocks(stages, index)) for index, stage in enumerate(stages)]
    found = [analytic(stage, draws, dense_model) for stage, draws in zip(stages, drawn, strict=True)]
    if where.chip is None:
        return CostEstimate(where, found)
    mesh = make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor, devices=where.devices)
    sharding.check_divides(settings.eval.batch_size, stages, mesh)
    chosen = [programs.to_compile(draws, MOST) for draws in drawn]
    count = sum(map(len, chosen))
    say(
        f"{count} programs to compile for {where.topology}, or to read from {cache}; at BERT-base size, compiling one "
        "takes one to three minutes on two cores"
    )
    if dense_model.dtype == "float32":
        say("activations are float32, which runs at half a TPU's speed or less: use --config.model.dtype=bfloat16")
    steps = Programs(make_step(method, optim.make(settings.optimizer), PRETRAINING), mesh)
    done = 0
    for index, stage in enumerate(stages):
        added = not any(earlier.data == "restart" for earlier in stages[: index + 1])
        parts = []
        for draw in chosen[index]:
            done += 1
            say(f"[{done}/{count}] stage {stage.name}: {describe(draw.program)}")
            parts.append((draw.share, one(steps, method, stage, draw, added, settings, where, cache)))
        found[index] = merged(
            found[index], parts, timeline.flops_of(chosen[index]), sum(d.share for d in drawn[index][:MOST])
        )
    return CostEstimate(where, found)


def describe(program) -> str:
    layers = [span.stop - span.start if span.run is None else span.run for span in program.plan]
    return f"{sum(layers)} layers, {program.batch_size} x {program.seq_len} tokens"


def analytic(stage: Stage, drawn: list[timeline.Draw], dense_model) -> StageEstimate:
    """The estimate of a stage without a compiler: FLOPs only."""
    program = stage.program
    dense = dense_equivalent(program, dense_model)
    return StageEstimate(stage.name, stage.steps, program.batch_size, program.seq_len, timeline.flops_of(drawn), dense)


def one(
    steps: Programs, method: Method, stage: Stage, draw, added: bool, settings: PretrainSettings, where: Slice, cache
):
    """Compiles one program of a stage as the run would, and reads the compiler's figures."""
    mesh = steps.mesh
    state = programs.state_shapes(method, stage, added, optim.make(settings.optimizer), mesh)
    lowered = steps.lower(
        draw.program, state, programs.batch_shapes(draw.program, mesh), *programs.other_shapes(draw.route, mesh)
    )
    conditional = [share for span in draw.program.plan if span.cond for share in draw.on_L[span.start : span.stop]]
    running = sum(conditional) / len(conditional) if conditional else 1.0
    return tpu.read(tpu.compile(lowered, where.topology, cache), running)


def merged(stage: StageEstimate, parts: list[tuple[float, tpu.Compiled]], flops: float, share: float) -> StageEstimate:
    """The stage with means over its compiled programs, and the memory of the largest.

    flops: mean FLOPs per step of these programs. Cycles and bytes are scaled from it to the mean over all programs of
    the stage.
    """
    scale = stage.flops / flops

    def mean(of: Callable[[tpu.Compiled], Mapping[str, int]]) -> dict[str, float]:
        total: Counter[str] = Counter()
        for part, compiled in parts:
            total.update({kind: scale * part * size for kind, size in of(compiled).items()})  # type: ignore[arg-type]
        return dict(total)

    said = [compiled.said for _, compiled in parts]
    problem = next((one.problem for one in said if one.problem), "")
    lines: Counter[tuple[str, str]] = Counter()
    for part, compiled in parts:
        for source, operation, cycles in compiled.lines:
            lines[source, operation] += round(scale * part * cycles)
    return dataclasses.replace(
        stage,
        share=share,
        cycles=None if problem else scale * sum(part * compiled.cycles for part, compiled in parts),
        not_counted=mean(lambda compiled: compiled.not_counted),
        collectives=mean(lambda compiled: compiled.collectives),
        arguments=max(one.arguments for one in said),
        temporaries=max(one.temporaries for one in said),
        peak=max(one.peak for one in said),
        compile_seconds=sum(one.seconds for one in said),
        problem=problem,
        lines=tuple((source, operation, cycles) for (source, operation), cycles in lines.most_common()),
    )


def largest_batch(settings: PretrainSettings, where: Slice, cache: pathlib.Path, say: Callable[[str], None]) -> int:
    """The largest batch of the form devices x micro-batches x 2^n with which every stage fits.

    Raises BadInput if not even one example per device and micro-batch fits.
    """

    if any(phase.batch_size for phase in settings.phases):
        raise BadInput("--largest_batch needs phases without batch sizes: leave out @BATCH in --config.phases")

    def fits(size: int) -> bool:
        say(f"batch of {size}:")
        return plan(dataclasses.replace(settings, batch_size=size), where, cache, say).fits

    # Search up or down from about the run's own batch: a program of BERT-base size takes minutes to compile.
    size = least = len(where.devices) * settings.micro_batches
    while 2 * size <= settings.batch_size:
        size *= 2
    if fits(size):
        while fits(2 * size):
            size *= 2
        return size
    while size > least:
        size //= 2
        if fits(size):
            return size
    raise BadInput(
        f"not even one example per device fits on {where.topology}: use more --config.mesh.fsdp, a larger chip, or "
        "--config.model.dtype=bfloat16"
    )
