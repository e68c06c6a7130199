"""What a run prints: the plan at the start, the summary at the end, and advice when the loss is not finite."""

import dataclasses
import pathlib
import platform
import shlex
import sys
import time

import clu.parameter_overview
import jax
from jax.sharding import Mesh

from bert_fast import STARTED, __version__, attention, command
from bert_fast.cost.flops import dense_equivalent
from bert_fast.cost.utilisation import utilisation
from bert_fast.data import sample_sentence
from bert_fast.method import Method
from bert_fast.train import checkpoint, goodput, timeline
from bert_fast.train.counters import Counters
from bert_fast.train.engine import Engine
from bert_fast.train.log import clock, counted
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.step import join

MANY_PASSES = 200  # BERT read its corpus 40 times (Devlin et al. 2019, A.2)


def say(line: str):
    """Prints a line on standard error, because standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def first_step() -> str:
    """A line with the time from the start of the process to the first step."""
    return f"first step after {time.monotonic() - STARTED:.1f} s"


def devices(mesh: Mesh) -> str:
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind} (" + " ".join(f"{axis}={size}" for axis, size in mesh.shape.items()) + ")"


def plan(settings: PretrainSettings, method: Method, engine: Engine, manifest: dict, workdir):
    """Prints what will run, on which devices, and its FLOPs.

    Widths that are decided during the run are guessed, as in the `plan` command.
    """
    state, stages = engine.state, engine.timeline
    model = settings.model
    shapes = jax.eval_shape(join, state.params, state.frozen)
    say(clu.parameter_overview.get_parameter_overview(shapes, include_stats=False))
    tokens = manifest["splits"]["train"]["tokens"]
    say(
        f"{model.norm}-LN BERT, {counted(model.depth, 'layer')} of width {model.width}, {settings.optimizer.name}, "
        f"{settings.data.objective}, batches of {settings.batch_size}"
        + (f" in {settings.micro_batches} micro-batches" if settings.micro_batches > 1 else "")
        + (f", methods {', '.join(name for name, _ in settings.methods)}" if settings.methods else "")
        + f"\non {devices(engine.mesh)}, from {settings.data.dir} ({tokens:,} training tokens), into {workdir}"
    )
    platform, backends = engine.mesh.devices.flat[0].platform, {}
    for program in (stage.program for stage in stages):
        backends |= dict.fromkeys(attention.backends(program.model, program.plan, program.seq_len, platform))
    say("attention: " + "; ".join(f"{name} ({reason})" for name, reason in backends))
    for index, stage in enumerate(stages):
        program, length = stage.program, counted(stage.steps, "step")
        flops = timeline.flops_of(timeline.draws(method, stage, timeline.clocks(stages, index)))
        dense = dense_equivalent(program, engine.dense_model)
        positions = stage.steps * program.batch_size * program.seq_len
        say(
            f"  stage {stage.name}: {length} at {program.seq_len} tokens, {positions:,} positions "
            f"({positions / tokens:.1f} times the corpus), {stage.steps * flops:.3g} FLOPs"
            + (f", {flops / dense:.0%} of dense" if abs(flops / dense - 1) > 1e-9 else "")
            + (" (widths guessed: the search stage decides them)" if stage.guess else "")
        )
    passes = sum(stage.steps * stage.program.batch_size * stage.program.seq_len for stage in stages) / max(tokens, 1)
    if passes > MANY_PASSES:
        say(
            f"WARNING: the run reads the corpus {passes:,.0f} times. A shorter run: --config.budget=tokens:"
            f"{20 * tokens:.0e}, or --config.steps"
        )
    if (warmup := settings.schedule.warmup) * 2 > settings.steps:
        say(
            f"WARNING: the learning rate rises for {warmup:,} of {settings.steps:,} steps, so it is low for most of "
            "them. Lower --config.learning_rate.warmup_steps (below 1, it is a share of the steps)"
        )
    if engine.step:
        say(f"continuing at step {engine.step:,}")


def course(method: Method, engine: Engine) -> list[tuple[int, float]]:
    """(step, FLOPs spent by then) at a run's start and each stage's end. Stages that have not ended are as planned."""
    found, ends = [(0, 0.0)], engine.counters.ends
    for index, stage in enumerate(engine.timeline):
        step, spent = found[-1]
        end = ends[index] if index < len(ends) else step + stage.steps
        flops = timeline.flops_of(timeline.draws(method, stage, timeline.clocks(engine.timeline, index)))
        found.append((end, spent + (end - step) * flops))
    return found


def advice(problem: str, root: pathlib.Path) -> str:
    """A message for a loss or weights that are not finite: the problem, and what to do about it."""
    advice = (
        f"{problem}, so this step is not saved. Try a lower --config.learning_rate.peak, a longer "
        "--config.learning_rate.warmup_steps, or --config.model.dtype=float32"
    )
    if saved := checkpoint.steps(root):  # the same command would fail again, and this folder refuses another config
        advice += (
            f", in another --workdir; with --config.init={root.parent} that run starts from the weights of step "
            f"{saved[-1]}"
        )
    return advice


def summary(
    settings: PretrainSettings, last: dict, counters: Counters, step: int, mesh: Mesh, peak: float | None
) -> dict:
    """A run's final numbers, for `summary.json`. `peak`: FLOP/s of all devices together."""
    seconds = max(counters.times["seconds"], 1e-9)
    result = {
        "steps": step,
        "train": last.get("train", {}),
        "valid": last.get("valid", {}),
        **counters.counts,
        **{key: round(value, 3) for key, value in counters.times.items()},
        "tokens_real_per_second": counters.counts["tokens_real"] / seconds,
        "flops_per_second": counters.counts["flops"] / seconds,
        "peak_flops_per_second": peak,
        **utilisation(counters.counts, seconds, peak),
        **goodput.summary(counters),
        "devices": devices(mesh),
        "versions": {"bert_fast": __version__, "jax": jax.__version__, "python": platform.python_version()},
        "model": dataclasses.asdict(settings.model),
        "methods": [name for name, _ in settings.methods],
    }
    return result


def farewell(summary: dict, workdir: pathlib.Path, data: str):
    """Prints what happened, where the files are, and what to try next. data: the shards, for a held-out sentence."""
    times = ", ".join(f"{clock(summary[key])} {word}" for key, word in (
        ("seconds", "training"), ("compile_seconds", "compiling"), ("eval_seconds", "evaluating"),
        ("save_seconds", "saving"), ("restore_seconds", "restoring"), ("wasted_seconds", "lost"),
    ) if round(summary[key]) or key == "seconds")  # fmt: skip
    held_out = f", held-out MLM loss {summary['valid']['mlm_loss']:.4f} nats" if summary["valid"] else ""
    used = f", {summary['utilisation']:.0%} of peak" if "utilisation" in summary else ""
    say(
        f"done: {counted(summary['steps'], 'step')}, {summary['tokens_real']:,} tokens{held_out}; {times} "
        f"({summary['tokens_real_per_second']:,.0f} tokens per second{used})\n"
        f"  {workdir}/summary.json, metrics.jsonl, checkpoints/{summary['steps']}\n"
        f"try: {command()} evaluate --checkpoint={workdir}\n"
        f"     {command()} fill-mask --checkpoint={workdir} {shlex.quote(sample_sentence.masked(data))}"
    )
