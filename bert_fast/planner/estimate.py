"""Estimates what a run will cost: FLOPs and, for a TPU slice, the compiler's figures for its programs."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bert_fast import methods
from bert_fast.cost import schedule
from bert_fast.cost.accelerators import Accelerator
from bert_fast.cost.flops import dense_equivalent, step_flops
from bert_fast.cost.overlap import SILENT, Communication
from bert_fast.method import Method, Stage
from bert_fast.planner import programs, tpu
from bert_fast.train import budget, optim, sharding, timeline
from bert_fast.train.compile import Programs
from bert_fast.train.compiler_options import Options
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.sharding import make_mesh
from bert_fast.train.step import make_step

# The vocabulary to plan for if no shards folder is given: uncased BERT's.
BERT = {"size": 30_522, "special_ids": {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}}
MOST = 2  # how many of a stage's programs to compile, most frequent first


@dataclasses.dataclass(frozen=True)
class StageEstimate:
    """The estimate of one stage. Figures are means per step, for all devices together unless noted.

    flops: FLOPs executed. dense: FLOPs of dense training. dense_layers: the part of `dense` in the encoder's layers.
    share: the share of the steps whose program was compiled. The other steps are assumed to take as many cycles per
    FLOP. cycles, layers, unscheduled, copies, collectives, communication, lines: as in tpu.Compiled, per device; empty
    if the slice has no TPU. arguments, temporaries, peak: bytes of memory per device, for the program that needs most.
    problem: why a program of the stage does not fit; empty if all fit.
    """

    name: str
    steps: int
    batch_size: int
    seq_len: int
    flops: float
    dense: float
    dense_layers: float
    share: float = 1.0
    cycles: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unscheduled: Mapping[str, float] = dataclasses.field(default_factory=dict)
    copies: float = 0.0
    collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    communication: Communication = SILENT
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    compile_seconds: float = 0.0
    problem: str = ""
    lines: tuple[tuple[str, str, Mapping[str, float]], ...] = ()

    def seconds(self, chip: Accelerator) -> float:
        """Seconds per step: the cycles by the instrument that counts more, plus waiting for collectives."""
        return max(self.cycles.values()) / chip.clock + self.communication.exposed

    def of_peak(self, chip: Accelerator, devices: int) -> float:
        """Share of the devices' peak, by the instrument that counts more cycles."""
        return self.flops / devices / (max(self.cycles.values()) * schedule.per_cycle(chip))


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

    def cycles(self, instrument: str) -> float | None:
        """Cycles of a device over the whole run; None if the cycles of any stage are unknown."""
        if not all(stage.cycles for stage in self.stages):
            return None
        return sum(stage.steps * stage.cycles[instrument] for stage in self.stages)

    def hours(self) -> float | None:
        """Hours of the run, by the instrument that counts more cycles in each stage; None if cycles are unknown."""
        chip = self.where.chip
        if chip is None or not chip.clock or not all(stage.cycles for stage in self.stages):
            return None
        return sum(stage.steps * stage.seconds(chip) for stage in self.stages) / 3600

    def hours_at(self, utilisation: float) -> float | None:
        """Hours of the run at this share of the peak."""
        chip = self.where.chip
        return None if chip is None else self.flops / (self.chips * chip.peak * utilisation) / 3600

    def utilisation(self) -> float | None:
        """Share of the peak if the run takes `hours()`; None if the hours are unknown."""
        hours, at_peak = self.hours(), self.hours_at(1.0)
        return None if hours is None or at_peak is None else at_peak / hours


def plan(
    settings: PretrainSettings,
    where: Slice,
    cache: pathlib.Path,
    say: Callable[[str], None],
    options: Options | None = None,
) -> CostEstimate:
    """The cost estimate of a run. options: the compiler's options; None: those of a real run.

    For a TPU slice, compiles each stage's most frequent programs and its largest one. Cached results are reused.

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
    sharding.check_stages(settings.eval.batch_size, stages, mesh)
    chosen = [programs.to_compile(draws, MOST) for draws in drawn]
    count = sum(map(len, chosen))
    say(
        f"{count} programs to compile for {where.topology}, or to read from {cache}. "
        f"At BERT-base size, compiling one takes one to three minutes on two cores"
    )
    if dense_model.dtype == "float32":
        say("activations are float32, which runs at half a TPU's speed or less: use --config.model.dtype=bfloat16")
    steps = Programs(make_step(method, optim.make(settings.optimizer), PRETRAINING), mesh, options)
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
    no_layers = dataclasses.replace(program, model=dense_model, plan=(), frozen_paths=())
    return StageEstimate(
        stage.name,
        stage.steps,
        program.batch_size,
        program.seq_len,
        timeline.flops_of(drawn),
        dense,
        dense - step_flops(no_layers).executed,
    )


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
    assert where.chip is not None
    return tpu.read(tpu.compile(lowered, where.topology, cache, steps.options), running, where.topology, where.chip)


def merged(stage: StageEstimate, parts: list[tuple[float, tpu.Compiled]], flops: float, share: float) -> StageEstimate:
    """The stage, with means over its compiled programs and the memory of the program that needs most.

    parts: for each compiled program, its weight in the means and the compiler's figures. flops: the mean FLOPs per step
    of these programs. The means are multiplied by the stage's FLOPs per step / `flops`, so that they hold for all
    programs of the stage. share: as in StageEstimate.
    """
    scale = stage.flops / flops

    def mean(of: Callable[[tpu.Compiled], Mapping[str, float]]) -> dict[str, float]:
        total: dict[str, float] = {}
        for part, compiled in parts:
            tpu.add(total, of(compiled), scale * part)
        return total

    said = [compiled.said for _, compiled in parts]
    problem = next((one.problem for one in said if one.problem), "")
    lines: dict[tuple[str, str], dict[str, float]] = {}
    for part, compiled in parts:
        for place, cycles in compiled.lines.items():
            tpu.add(lines.setdefault(place, {}), cycles, scale * part)
    return dataclasses.replace(
        stage,
        share=share,
        cycles={} if problem else mean(lambda compiled: compiled.cycles),
        layers=mean(lambda compiled: compiled.layers),
        unscheduled=mean(lambda compiled: compiled.unscheduled),
        copies=sum(scale * part * compiled.copies for part, compiled in parts),
        collectives=mean(lambda compiled: compiled.collectives),
        communication=Communication(**mean(lambda compiled: compiled.communication._asdict())),
        arguments=max(one.arguments for one in said),
        temporaries=max(one.temporaries for one in said),
        peak=max(one.peak for one in said),
        compile_seconds=sum(one.seconds for one in said),
        problem=problem,
        lines=tuple((*place, cycles) for place, cycles in tpu.most_expensive(lines)),
    )
