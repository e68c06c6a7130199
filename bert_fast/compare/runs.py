"""Trains the unfinished runs of a study, several at once, and fine-tunes them on its tasks."""

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bert_fast import BadInput, Interrupted, bert, methods
from bert_fast.compare import costs as study_costs
from bert_fast.compare import study as studies
from bert_fast.compare.study import Run, Study, slug
from bert_fast.cost.accelerators import TPUS
from bert_fast.cost.budget import Budget
from bert_fast.data import shards
from bert_fast.data.prepare import prepare
from bert_fast.train import budget, resume, step_costs, timeline
from bert_fast.train.log import Progress, clock, counted
from bert_fast.train.report import say
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.signals import StopSignal
from bert_fast.train.step_costs import StepCosts

# On a CPU, models up to this width are trained side by side, one run per core. This takes less time than training them
# one after another on all cores.
NARROW = 256


FINISHED = "finished"  # this file marks a task whose runs have all finished


class Planned(NamedTuple):
    """A run and its estimated cost.

    course: (step, reference seconds up to it) at step 0 and at the end of each stage. Reference seconds are computed
    from the table of step costs. bytes: the size of the run's checkpoints on disk.
    """

    run: Run
    settings: PretrainSettings
    course: list[tuple[int, float]]
    bytes: int

    @property
    def steps(self) -> int:
        return self.course[-1][0]

    @property
    def seconds(self) -> float:
        return self.course[-1][1]

    def seconds_at(self, step: int) -> float:
        """Reference seconds until a step."""
        steps, seconds = zip(*self.course, strict=True)
        return float(np.interp(step, steps, seconds))


def shards_of(study: Study, out: pathlib.Path, data: str) -> pathlib.Path:
    """The shards folder of a study: `data` if given, else one in `out`, made from the study's source if missing.

    Finished shards are used even if the text of the source has changed since, so that a study continues with the text
    that it began with. (The text of the source `docs` changes when packages are upgraded.) Raises BadInput for shards
    of another source or vocabulary size.
    """
    if data:
        return pathlib.Path(data)
    folder = out / "shards"
    if not (folder / "manifest.json").exists():
        prepare(study.source, folder, vocab_size=study.vocab_size)
        return folder
    made = shards.read_manifest(folder)["settings"]
    for key, expected in (("source", study.source), ("vocab", f"trained, {study.vocab_size}")):
        if made[key] != expected:
            raise BadInput(f"{folder} has {key} {made[key]!r}, the study {expected!r}: choose another --out")
    return folder


def backend() -> str:
    """JAX's backend here. A separate process looks it up, so that this one does not hold the device."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "cpu"


def processes_for(study: Study, data: pathlib.Path) -> int:
    """How many runs to train at once: on a CPU one per core if the models are narrow, otherwise one."""
    widest = max(settings.model.width for settings in study_costs.settings_of(study, data))
    return len(cores()) if backend() == "cpu" and widest <= NARROW else 1


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def start(command: Sequence[str], log, core: int | None) -> subprocess.Popen:
    """Starts a command, on one core if `core` is given. Ctrl-C in a terminal does not reach the command."""
    before = None
    if core is not None and hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # the child inherits it
    try:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def make_costs(name: str, study: Study, out: pathlib.Path, data: pathlib.Path, one_core: bool) -> StepCosts:
    """The step costs of a study. If some are missing, makes them in another process and prints the lines of its log.
    Raises BadInput, with the end of the log, if they cannot be made.
    """
    path = out / study_costs.NAME
    known = step_costs.read(path) if path.exists() else None
    if lacking := study_costs.missing(study_costs.settings_of(study, data), known):
        how = f"the compiler for {study.topology}" if study.topology else "measuring them on this machine"
        say(
            f"step costs of {counted(len(lacking), 'arm')}: {how} takes a few minutes. The plan needs them, so a dry "
            f"run makes them too. All runs take them from one table, {path}, which is made once"
        )
        command = [sys.executable, "-m", "bert_fast.compare.costs", name, str(out), str(data)]
        log = out / "costs.log"
        shown = 0
        with log.open("w") as file, StopSignal("stopping") as stop:
            child = start(command, file, cores()[0] if one_core else None)
            try:
                while child.poll() is None:
                    time.sleep(0.2)
                    shown = relay(log, shown)
                    if stop.received:
                        raise Interrupted(stop.received, "the step costs are not finished")
            finally:  # also after a second signal, which ends this process at once
                if child.poll() is None:
                    child.kill()
                    child.wait()
        relay(log, shown)
        if child.returncode:
            raise BadInput(f"the step costs cannot be made: {last_lines(log)}")
    return step_costs.read(path)


def relay(log: pathlib.Path, shown: int) -> int:
    """Prints a log's complete lines after the first `shown`, except errors. Returns the number of complete lines."""
    lines = log.read_text(errors="replace").split("\n")[:-1]
    for line in lines[shown:]:
        if not line.startswith("error: "):
            say(f"  {line}")
    return len(lines)


def last_lines(log: pathlib.Path, count: int = 3) -> str:
    """The end of a log, for a message."""
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])


def plan(study: Study, out: pathlib.Path, data: pathlib.Path, costs: StepCosts) -> list[Planned]:
    """Every run with its steps, reference seconds and disk space. Raises BadInput for a run that cannot be planned."""
    found = []
    for run in studies.runs_of(study):
        refuse_other(study, run, out, data)
        settings = studies.settings_of(study, run, data, out / study_costs.NAME)
        method = methods.make(settings.methods)
        try:
            settings = budget.resolved(settings, method)
        except BadInput as error:
            raise BadInput(f"arm {run.arm!r}: {error}") from None
        course = reference(settings, costs).course(timeline.stages(settings, method))
        size = 4 * 3 * parameters(settings) * (1 + method.needs_initial)
        found.append(Planned(run, settings, course, size))
    return found


def reference(settings: PretrainSettings, costs: StepCosts) -> budget.Meter:
    """A meter of reference seconds for a run."""
    timed = dataclasses.replace(settings, budget=Budget("seconds", 1.0), costs=costs)
    return budget.Meter(timed, methods.make(settings.methods))


def parameters(settings: PretrainSettings) -> int:
    """Number of parameters of a run's model."""
    return sum(leaf.size for leaf in jax.tree.leaves(bert.shapes(settings.model)))


def describe(
    planned: Sequence[Planned], study: Study, costs: StepCosts, at_once: int, kept: Collection[Run] = ()
) -> str:
    """The plan as text: the runs, their time, their disk space and, for a TPU, their price. kept: runs that have
    records and are not repeated.
    """
    left = [one for one in planned if one.run not in kept]
    total = sum(one.seconds for one in left)
    arms, seeds, budgets = (counted(len(x), what) for x, what in (
        (study.arms, "arm"), (study.seeds, "seed"), (study.budgets, "budget"),
    ))  # fmt: skip
    lines = [f"{arms} x {seeds} x {budgets}: {counted(len(planned), 'run')}"]
    for arm in study.arms:
        parts = [one for one in planned if one.run.arm == arm and one.run.seed == study.seeds[0]]
        each = ", ".join(f"{one.run.budget}: {one.steps:,} steps, {clock(one.seconds)}" for one in parts)
        lines.append(f"  {arm}: {each}")
    if kept:
        lines.append(f"{counted(len(planned) - len(left), 'run')} finished before: the records have their results")
    where = f"on {costs.machine}" if costs.instrument == "measured" else f"on {costs.machine}, at least"
    lines.append(
        f"{clock(total)} of training {where}; {counted(at_once, 'run')} at a time: about {clock(total / at_once)}, "
        "plus starting, compiling and evaluating each run"
    )
    if costs.chip and (dollars := TPUS[costs.chip].dollars):
        lines.append(f"at least {total / 3600 * costs.chips * dollars:,.2f} USD at {dollars:.2f} per chip-hour")
    lines.append(f"disk: {sum(one.bytes for one in left) / 2**20:,.0f} MiB of checkpoints")
    return "\n".join(lines)


def command_of(study: Study, run: Run, out: pathlib.Path, data: pathlib.Path) -> list[str]:
    """The command that trains a run."""
    spec, changes = studies.changes_of(study, run, data, out / study_costs.NAME)
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    workdir = out / run.folder
    return [sys.executable, "-m", "bert_fast", "pretrain", f"--config={spec}", f"--workdir={workdir}", *flags]


def task_folder(run: Run, out: pathlib.Path, task: str) -> pathlib.Path:
    return out / run.folder / "tasks" / slug(task)


def commands_of(study: Study, run: Run, out: pathlib.Path, data: pathlib.Path) -> list[list[str]]:
    """The commands of a run that have not finished: training, then its tasks."""
    found = []
    if not (out / run.folder / "summary.json").exists():
        found.append(command_of(study, run, out, data))
    for task in study.tasks:
        workdir = task_folder(run, out, task)
        if not (workdir / FINISHED).exists():
            command = [sys.executable, "-m", "bert_fast", "finetune", f"--config={task}", f"--workdir={workdir}"]
            found.append([*command, f"--checkpoint={out / run.folder}", f"--config.data.dir={study.task_data}"])
    return found


def refuse_other(study: Study, run: Run, out: pathlib.Path, data: pathlib.Path):
    """Raises BadInput if the run's folder holds a finished run of another config."""
    if (out / run.folder / "summary.json").exists():
        config = studies.config_of(study, run, data, out / study_costs.NAME).to_dict()
        resume.settle_activation(out / run.folder, config)
        resume.refuse_other(out / run.folder, config, resume.NEWER, resume.MAY_CHANGE)


def task_of(command: Sequence[str]) -> pathlib.Path | None:
    """The folder that a fine-tuning command writes to; None for pre-training."""
    workdir = next(arg.removeprefix("--workdir=") for arg in command if arg.startswith("--workdir="))
    return pathlib.Path(workdir) if "finetune" in command else None


def steps_done(folder: pathlib.Path) -> int:
    """The step of the last row in a run's log."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0
    for line in reversed(path.read_bytes().splitlines()[-2:]):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def train(
    study: Study,
    planned: Sequence[Planned],
    out: pathlib.Path,
    data: pathlib.Path,
    at_once: int,
    kept: Collection[Run] = (),
    keep: Callable[[Run], None] | None = None,
) -> Mapping[Run, str]:
    """Trains every unfinished run. Returns the error of each run that failed. kept: runs that have records. keep:
    called with each run that has finished, to record it.

    Raises Interrupted after a signal, once the runs in progress have saved their work.
    """
    waiting = [(one.run, commands_of(study, one.run, out, data)) for one in planned if one.run not in kept]
    for run, commands in waiting:
        if keep and not commands:
            keep(run)  # it finished earlier, but was not recorded
    waiting = [(run, commands) for run, commands in waiting if commands]
    plans = {one.run: one for one in planned}
    left = {run for run, _ in waiting}
    done = {run: 0.0 if run in left else one.seconds for run, one in plans.items()}
    failed: dict[Run, str] = {}
    free: list[int | None] = [*(cores()[:at_once] if at_once > 1 else [None])]
    # Run -> (child process, its command followed by the run's later commands, core).
    busy: dict[Run, tuple[subprocess.Popen, list[list[str]], int | None]] = {}
    # Progress is counted in reference seconds, because steps of different arms and stages take different times.
    total = round(sum(one.seconds for one in planned))
    progress = Progress(total, round(sum(done.values())), noun="reference second")

    def launch(run: Run, commands: list[list[str]], core: int | None):
        folder = out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            print(f"$ {shlex.join(commands[0])}", file=log, flush=True)
            busy[run] = start(commands[0], log, core), commands, core

    with StopSignal("saving the runs in progress") as stop:
        while waiting or busy:
            while waiting and free and not stop.received:
                launch(*waiting.pop(0), free.pop(0))
            time.sleep(0.5)
            for run, (child, (command, *rest), core) in list(busy.items()):
                done[run] = plans[run].seconds_at(steps_done(out / run.folder))
                if child.poll() is None:
                    continue
                del busy[run]
                task = task_of(command)
                if child.returncode == 0 and task:
                    (task / FINISHED).touch()
                if child.returncode == 0 and rest and not stop.received:
                    launch(run, rest, core)
                    continue
                free.append(core)
                if child.returncode == 0 and not rest and keep:
                    keep(run)
                if child.returncode and not stop.received:
                    failed[run] = last_lines(out / run.folder / "log.txt")
                    progress.say(f"failed: {run.arm}, {run.budget}, seed {run.seed}: {failed[run]}")
                done[run] = plans[run].seconds
            progress.update(round(sum(done.values())), {"runs left": len(waiting) + len(busy)})
            if stop.received:
                for child, _, _ in busy.values():
                    child.send_signal(signal.SIGTERM)
                for child, _, _ in busy.values():
                    child.wait()
                progress.close()
                raise Interrupted(stop.received, f"the runs in {out} are saved")
    progress.close()
    return failed
