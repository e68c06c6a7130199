"""Runs every task, learning rate and seed of a call. Keeps the finished runs and summarises them in results.json.

WORKDIR/config.json                     the settings that all runs of the folder share, and their encoder
WORKDIR/mrpc/lr=3e-05,seed=0/           a finished run: result.json, predictions in dev/ and test/, and weights in
                                        checkpoints/ (see --config.keep)
WORKDIR/mrpc/.lr=3e-05,seed=0.unfinished/   an interrupted run; the command that started it resumes it
WORKDIR/submission/                     test predictions of each task's best run at the chosen learning rate
WORKDIR/results.json                    all runs, and each learning rate's mean, deviation and median over seeds
"""

import contextlib
import json
import pathlib
import shutil
import statistics
from collections.abc import Sequence
from typing import Any

import jax

from bert_fast.data import sealed
from bert_fast.data.files import atomic_json, check_output, full_disk_reported, hold
from bert_fast.tasks import data, encoder, glue, own
from bert_fast.tasks.batches import real_share
from bert_fast.tasks.finetune import UNDER_WAY, Finished, train_and_score
from bert_fast.tasks.settings import SWEPT, FinetuneSettings
from bert_fast.tasks.trainer import Trainer
from bert_fast.train import resume
from bert_fast.train.log import Progress, counted
from bert_fast.train.report import devices, first_step, say
from bert_fast.train.signals import StopSignal

NUMBERS = ("mean", "deviation", "median")


def finetune(
    settings: FinetuneSettings, config: dict, workdir: pathlib.Path, checkpoint: str = "", hf: str = ""
) -> dict:
    """Trains the unfinished runs, and returns the contents of results.json ({} in processes other than 0).

    `settings` must be made from `config`. A later call may add tasks, seeds and learning rates to the folder. Of the
    other settings, only `keep` and `checkpoint` may change. Raises BadInput before any training if a setting, the data
    or the encoder is wrong, and Interrupted after a signal.
    """
    check_output(workdir, "--workdir")
    encoder.check_source(checkpoint, hf)
    names = data.names(settings)
    rates = {name: settings.rates_of(name) for name in names}
    texts = {name: data.read(name, settings) for name in names}
    start = encoder.load(checkpoint, hf, settings)
    about = encoder.source(start, hf, settings.random_weights)
    common = {key: value for key, value in config.items() if key not in SWEPT} | {"encoder": about}
    common["own_sha256"] = own.checksums(settings.own, settings.data.dir)  # finished runs must come from the same files
    newer = {"micro_batches": 1, "own": config["own"], "own_sha256": common["own_sha256"]}
    resume.refuse_other(workdir, common, newer=newer)
    trainers = {name: Trainer(data.make(name, texts[name], start.vocab, settings), start, settings) for name in names}
    mesh = next(iter(trainers.values())).mesh

    todo = [(name, rate, seed) for name in names for rate in rates[name] for seed in settings.seeds]
    is_main = jax.process_index() == 0
    with full_disk_reported(workdir), contextlib.ExitStack() as stack:
        if is_main:
            workdir.mkdir(parents=True, exist_ok=True)
            busy = f"another finetune is writing to {workdir}: wait until it ends, or choose another --workdir"
            stack.enter_context(hold(workdir / ".lock", busy))
            resume.refuse_other(workdir, common, newer=newer)  # another call may have written since the check above
            sealed.write(workdir / "config.json", common)
        # listed after the lock is taken, so that no other call is still finishing a run
        left = [run for run in todo if not (folder_of(workdir, *run) / "result.json").is_file()]
        if is_main:
            _plan(trainers, rates, settings, about, devices(mesh), len(todo), len(todo) - len(left), workdir)
        progress = Progress(sum(trainers[name].steps for name, *_ in left), 0, is_main)
        stack.callback(progress.close)
        for trainer in trainers.values():
            stack.callback(trainer.close)
        stop = stack.enter_context(StopSignal("saving after this step; finished runs are kept"))
        for name, rate, seed in left:
            before, folder = progress.done, folder_of(workdir, name, rate, seed)

            def advance(step: int, numbers: dict[str, float], before=before):
                progress.update(before + step, numbers)
                if before == 0 and step == 2:  # the second step waits for the first to end
                    progress.say(first_step())

            finished = train_and_score(trainers[name], rate, seed, unfinished_of(folder), stop, advance)
            progress.update(before + trainers[name].steps, {})  # a run may end early
            if is_main:
                _keep(finished, trainers[name], folder)
                atomic_json(workdir / "results.json", summary(workdir, about))
            diverged = ", diverged" if finished.result["diverged_at"] is not None else ""
            last, best = finished.result["last"]["score"], finished.result["best"]["score"]
            prediction, metrics = trainers[name].task.baseline
            progress.say(
                f"{name} lr={rate:g} seed={seed}: score {last:.2f}, best {best:.2f}{diverged} ({prediction}: "
                f"{metrics['score']:.2f})"
            )
        if not is_main:
            return {}
        results = summary(workdir, about)
        atomic_json(workdir / "results.json", results)
        _submission(workdir, results)
    return results


def folder_of(workdir: pathlib.Path, task: str, rate: float, seed: int) -> pathlib.Path:
    return workdir / task / f"lr={rate:g},seed={seed}"


def unfinished_of(folder: pathlib.Path) -> pathlib.Path:
    """The folder of a run that is not finished. `summary` ignores such folders."""
    return folder.with_name(f".{folder.name}.unfinished")


def _keep(run: Finished, trainer: Trainer, folder: pathlib.Path):
    """Writes the folder of a finished run atomically."""
    part = unfinished_of(folder)
    for kind, splits in (("dev", trainer.task.held_out), ("test", trainer.task.test)):
        for split in splits:
            (part / kind).mkdir(parents=True, exist_ok=True)
            trainer.task.write(part / kind, split, run.logits[split])
    atomic_json(part / "result.json", run.result)
    if trainer.settings.keep == "none":  # an earlier call with another `keep` may have left weights
        shutil.rmtree(part / "checkpoints", ignore_errors=True)
    shutil.rmtree(part / UNDER_WAY, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def summary(workdir: pathlib.Path, about: dict) -> dict[str, Any]:
    """All finished runs of a folder, and their statistics over seeds.

    A task's chosen learning rate has the highest mean held-out score at the end of training. Devlin et al. (2019,
    section 4.1) also choose the rate on the held-out set. The reported result is `last`, the metrics at the end of
    training. `best` has the metrics of each run's best evaluation.
    """
    tasks: dict[str, Any] = {}
    for path in sorted(workdir.glob("*/lr=*,seed=*/result.json")):
        result = json.loads(path.read_text())
        tasks.setdefault(result["task"], {"runs": []})["runs"].append(result)
    for task in tasks.values():
        task["runs"].sort(key=lambda run: (run["learning_rate"], run["seed"]))
        task["learning_rates"] = {}
        for rate in sorted({run["learning_rate"] for run in task["runs"]}):
            runs = [run for run in task["runs"] if run["learning_rate"] == rate]
            kinds = {kind: _over_seeds([run[kind] for run in runs]) for kind in ("last", "best")}
            task["learning_rates"][f"{rate:g}"] = {"seeds": [run["seed"] for run in runs], **kinds}
        by_rate = task["learning_rates"]
        task["chosen"] = max(by_rate, key=lambda rate: by_rate[rate]["last"]["score"]["mean"])
        task |= {kind: by_rate[task["chosen"]][kind] for kind in ("last", "best")}
        # Runs of older versions have no baseline. All others have the same one, because their examples are the same.
        task["baseline"] = next((run["baseline"] for run in task["runs"] if "baseline" in run), None)
    order = [name for name in glue.TASKS if name in tasks]
    tasks = {name: tasks[name] for name in [*order, *(tasks.keys() - set(order))]}
    averaged = [name for name in order if name not in glue.NOT_IN_MEAN]
    results: dict[str, Any] = {"encoder": about, "tasks": tasks}
    if len(averaged) > 1:
        means = {kind: statistics.fmean(tasks[n][kind]["score"]["mean"] for n in averaged) for kind in ("last", "best")}
        results["glue"] = {"tasks": averaged, **means}
    return results


def _over_seeds(rows: list[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean, sample standard deviation (None for a single seed) and median of every metric."""
    numbers = {}
    for key in rows[0].keys() - {"step", "epoch", "train_loss"}:
        values = [row[key] for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        found = (statistics.fmean(values), deviation, statistics.median(values))
        numbers[key] = dict(zip(NUMBERS, found, strict=True))
    return numbers


def _submission(workdir: pathlib.Path, results: dict):
    """Copies the test predictions of each task's best run at the chosen learning rate to submission/."""
    for name, task in results["tasks"].items():
        runs = [run for run in task["runs"] if f"{run['learning_rate']:g}" == task["chosen"]]
        best = max(runs, key=lambda run: run["last"]["score"])
        for path in sorted((folder_of(workdir, name, best["learning_rate"], best["seed"]) / "test").glob("*")):
            (workdir / "submission").mkdir(exist_ok=True)
            shutil.copyfile(path, workdir / "submission" / path.name)


def _plan(
    trainers: dict[str, Trainer],
    rates,
    settings: FinetuneSettings,
    about: dict,
    where: str,
    runs: int,
    done: int,
    workdir,
):
    """Prints what will be run."""
    source = about.get("checkpoint") or about["hf"]
    what = f"the model of {source} with random weights" if about["random_weights"] else source
    say(f"fine-tuning {what}\non {where}, {_listed('seed', settings.seeds)}, into {workdir}")
    for name, trainer in trainers.items():
        rows = trainer.task.train
        share = real_share(rows, trainer.widths, settings.batch_size)
        held_out = " + ".join(f"{len(r.ids_N):,}" for r in trainer.task.held_out.values())
        say(
            f"  {name}: {len(rows.ids_N):,} training and {held_out} held-out examples, "
            f"{counted(trainer.steps, 'step')} of {settings.batch_size} examples, "
            f"{_listed('learning rate', [f'{rate:g}' for rate in rates[name]])}; "
            f"{_listed('width', trainer.widths)}: {share:.0%} of the positions hold real tokens"
        )
        if not trainer.task.head.on_tokens and not ("next" in trainer.start.params and not about["random_weights"]):
            say("    the encoder has no trained pooler: starting with a fresh one")
    say(counted(runs, "run") + (f", {done:,} already finished" if done else ""))


def _listed(noun: str, values: Sequence) -> str:
    """A noun with its values: "seed 0", or "seeds 0, 1"."""
    return f"{noun}{'' if len(values) == 1 else 's'} {', '.join(map(str, values))}"


def table(results: dict) -> str:
    """A text table of each task's scores at the end of training, over the seeds of its chosen learning rate.

    After each metric, the score of a constant prediction is in brackets.
    """
    lines = [f"{'task':<8} {'lr':>7} {'seeds':>5} {'score':>6} {'dev.':>5} {'median':>6} {'best':>6}  metrics"]
    constant = []
    for name, task in results["tasks"].items():
        last, score, baseline = task["last"], task["last"]["score"], task["baseline"]
        deviation = "-" if score["deviation"] is None else f"{score['deviation']:.2f}"
        shown = {key: f"{key} {value['mean']:.2f}" for key, value in sorted(last.items()) if key != "score"}
        if baseline:
            shown = {key: f"{text} ({baseline[key]:.2f})" for key, text in shown.items()}
            constant.append(f"{name}: {baseline['prediction']}")
        seeds = len(task["learning_rates"][task["chosen"]]["seeds"])
        lines.append(
            f"{name:<8} {task['chosen']:>7} {seeds:>5} {score['mean']:>6.2f} {deviation:>5} {score['median']:>6.2f} "
            f"{task['best']['score']['mean']:>6.2f}  {'  '.join(shown.values())}"
        )
    if constant:
        lines.append(f"in brackets: the same prediction for every example ({'; '.join(constant)})")
    if "glue" in results:
        means = results["glue"]
        lines.append(f"GLUE mean of {', '.join(means['tasks'])}: {means['last']:.2f} (best {means['best']:.2f})")
    return "\n".join(lines)
