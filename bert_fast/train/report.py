"""What a run prints: the plan at the start, the summary at the end, and advice when the loss is not finite."""

import dataclasses
import pathlib
import platform
import sys
import time

import clu.parameter_overview
import jax
from jax.sharding import Mesh

from bert_fast import STARTED, __version__, command
from bert_fast.cost.flops import dense_equivalent
from bert_fast.cost.utilisation import utilisation
from bert_fast.method import Method
from bert_fast.train import checkpoint, timeline
from bert_fast.train.counters import Counters
from bert_fast.train.engine import Engine
from bert_fast.train.log import clock, counted
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.step import join


def say(line: str):
    """Prints a line for people, on standard error: standard output is for results."""
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
    for index, stage in enumerate(stages):
        program, length = stage.program, counted(stage.steps, "step")
        flops = timeline.flops_of(timeline.draws(method, stage, timeline.clocks(stages, index)))
        dense = dense_equivalent(program, engine.dense_model)
        positions = stage.steps * program.batch_size * program.seq_len
        say(
            f"  stage {stage.name}: {length} at {program.seq_len} tokens, {positions:,} positions "
            f"({positions / tokens:.1f} times the corpus), {stage.steps * flops:.3g} FLOPs"
            + (f", {flops / dense:.0%} of dense" if abs(flops / dense - 1) > 1e-9 else "")
            + (" (widths guessed: the search decides)" if stage.guess else "")
        )
    if engine.step:
        say(f"continuing at step {engine.step:,}")


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
        "devices": devices(mesh),
        "versions": {"bert_fast": __version__, "jax": jax.__version__, "python": platform.python_version()},
        "model": dataclasses.asdict(settings.model),
        "methods": [name for name, _ in settings.methods],
    }
    return result


def farewell(summary: dict, workdir: pathlib.Path):
    """Prints what happened, where the files are, and what to try next."""
    times = ", ".join(f"{clock(summary[key])} {word}" for key, word in (
        ("seconds", "training"), ("compile_seconds", "compiling"), ("eval_seconds", "evaluating"),
        ("save_seconds", "saving"),
    ))  # fmt: skip
    held_out = f", held-out MLM loss {summary['valid']['mlm_loss']:.4f} nats" if summary["valid"] else ""
    used = f", {summary['utilisation']:.0%} of peak" if "utilisation" in summary else ""
    say(
        f"done: {counted(summary['steps'], 'step')}, {summary['tokens_real']:,} tokens{held_out}; {times} "
        f"({summary['tokens_real_per_second']:,.0f} tokens per second{used})\n"
        f"  {workdir}/summary.json, metrics.jsonl, checkpoints/{summary['steps']}\n"
        f"try: {command()} evaluate --checkpoint={workdir}\n"
        f'     {command()} fill-mask --checkpoint={workdir} "The capital of France is [MASK]."'
    )
