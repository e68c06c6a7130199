"""The results of a study: figures of each run, differences over paired seeds, and speed-ups between budgets."""

import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bert_fast.compare import runs
from bert_fast.compare import study as studies
from bert_fast.compare.study import Run, Study
from bert_fast.cost import budget as budgets
from bert_fast.cost.accelerators import TPUS
from bert_fast.train import checkpoint
from bert_fast.train.report import say
from bert_fast.train.step_costs import StepCosts

RESOLVED = 2.5  # smallest |t| at which a difference counts as more than the noise of seeds
LOSSES = ("mlm_loss", "mask_loss", "mlm_accuracy")
UNITS = ("tokens", "flops", "seconds")  # of the speed-ups
LEAST_SAVING = 0.02  # a smaller saving of FLOPs has no meaningful realised fraction


def figures(study: Study, run: Run, out: pathlib.Path, data: pathlib.Path, costs: StepCosts) -> dict[str, Any] | None:
    """The figures of a finished run; None if it has not finished.

    seconds: reference time of its steps. overhead: what else its own clock counted: compiling, growing and saving.
    """
    folder = out / run.folder
    if not (folder / "summary.json").exists():
        return None
    summary = json.loads((folder / "summary.json").read_text())
    about = checkpoint.about(checkpoint.find(checkpoint.newest(folder / "checkpoints", say) or folder))
    stages, ends = [*about.earlier_stages, about.stage], [*about.counters.ends, about.step]
    settings = studies.settings_of(study, run, data, out / runs.study_costs.NAME)
    seconds = runs.reference(settings, costs).spent(stages, ends)
    found = {
        "seed": run.seed,
        "steps": summary["steps"],
        **{key: summary["valid"][key] for key in LOSSES},
        "fingerprint": summary["valid"]["fingerprint"],
        "tokens": summary["tokens_padded"],
        "flops": summary["flops"],
        "flops_dense": summary["flops_dense"],
        "seconds": seconds,
        "clock_seconds": summary["seconds"],
        "overhead": summary["compile_seconds"] + summary["save_seconds"],
    }
    if costs.chip:
        found["chip_hours"] = seconds / 3600 * costs.chips
        found["usd"] = found["chip_hours"] * (TPUS[costs.chip].dollars or math.nan)
    for task in study.tasks:
        path = runs.task_folder(run, out, task) / "results.json"
        if path.exists():
            (result,) = json.loads(path.read_text())["tasks"].values()
            found.setdefault("scores", {})[task] = result["last"]["score"]["mean"]
    return found


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> dict[str, Any]:
    """Mean difference to the reference over the seeds that both have, and its paired t; None with fewer than 2 seeds.

    resolved: whether |t| is at least RESOLVED.
    """
    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    if not differences:
        return {"difference": None, "t": None, "resolved": False}
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return {"difference": mean, "t": None, "resolved": False}
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    t = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
    return {"difference": mean, "t": t, "resolved": abs(t) >= RESOLVED}


def equivalent(loss: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """The amount at which the reference's final losses reach `loss`: linear in the logarithm between two budgets.

    curve: (amount, final loss) for each budget. None outside the budgets, where nothing was measured.
    """
    points = sorted((final, math.log(amount)) for amount, final in curve)
    losses = [final for final, _ in points]
    if len(points) < 2 or not losses[0] <= loss <= losses[-1]:
        return None
    return math.exp(float(np.interp(loss, losses, [amount for _, amount in points])))


def mean_of(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def summarize(study: Study, found: Mapping[Run, Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of the finished runs: by budget, then by arm."""
    first = next(iter(study.arms))

    def rows_of(text: str, arm: str) -> list[Mapping[str, Any]]:
        return [found[run] for seed in study.seeds if (run := Run(arm, text, seed)) in found]

    result: dict[str, Any] = {}
    for text in study.budgets:
        reference = rows_of(text, first)
        arms: dict[str, Any] = {}
        for arm in study.arms:
            rows = rows_of(text, arm)
            if not rows:
                continue
            about: dict[str, Any] = {"runs": rows}
            for key in (*LOSSES, "tokens", "flops", "seconds", "clock_seconds", "overhead", "chip_hours", "usd"):
                if key in rows[0]:
                    about[key] = mean_of(rows, key)
            about["deviation"] = statistics.stdev(row["mlm_loss"] for row in rows) if len(rows) > 1 else None
            by_seed = {row["seed"]: row["mlm_loss"] for row in rows}
            about |= paired(by_seed, {row["seed"]: row["mlm_loss"] for row in reference})
            if reference:
                about |= relative(about, {key: mean_of(reference, key) for key in UNITS})
            about["speedup"] = speedups(study, text, first, about, rows_of)
            about["scores"] = scores(rows)
            arms[arm] = about
        ranking = {"loss": sorted(arms, key=lambda arm: arms[arm]["mlm_loss"])}
        for unit in UNITS:
            known = [arm for arm in arms if arms[arm]["speedup"][unit] is not None]
            ranking[unit] = sorted(known, key=lambda arm: -arms[arm]["speedup"][unit])
        result[text] = {"arms": arms, "ranking": ranking}
    return result


def relative(about: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float | None]:
    """FLOPs and seconds per token relative to the first arm, and how much of the saving of FLOPs is one of time."""
    flops, seconds = (about[key] / about["tokens"] * dense["tokens"] / dense[key] for key in ("flops", "seconds"))
    realised = (1 - seconds) / (1 - flops) if 1 - flops > LEAST_SAVING else None
    return {"flops_per_token": flops, "seconds_per_token": seconds, "realised": realised}


def speedups(study: Study, text: str, first: str, about: Mapping[str, float], rows_of) -> dict[str, float | None]:
    """By unit: how much more of it the first arm needs for an arm's final loss. From final losses of whole schedules
    only, never from a point inside a schedule.
    """
    unit = text.partition(":")[0]
    result: dict[str, float | None] = {}
    for key in UNITS:
        curve = [
            (mean_of(rows, key), mean_of(rows, "mlm_loss"))
            for other in study.budgets
            if other.partition(":")[0] == unit and (rows := rows_of(other, first))
        ]
        amount = equivalent(about["mlm_loss"], curve)
        result[key] = None if amount is None else amount / about[key]
    return result


def scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean downstream score of each task, over the runs that have it."""
    tasks = dict.fromkeys(task for row in rows for task in row.get("scores", {}))
    return {
        task: statistics.fmean(row["scores"][task] for row in rows if task in row.get("scores", {})) for task in tasks
    }


def collect(study: Study, out: pathlib.Path, data: pathlib.Path, costs: StepCosts) -> dict[str, Any]:
    """All results of a study's folder."""
    found = {}
    for run in studies.runs_of(study):
        if (figure := figures(study, run, out, data, costs)) is not None:
            found[run] = figure
    return {
        "arms": {arm: dict(changes) for arm, changes in study.arms.items()},
        "config": study.config,
        "changes": dict(study.changes),
        "seeds": list(study.seeds),
        "tasks": list(study.tasks),
        "costs": {"instrument": costs.instrument, "machine": costs.machine, "fingerprint": costs.fingerprint()},
        "missing": [run._asdict() for run in studies.runs_of(study) if run not in found],
        "units": {text: budgets.parse(text).unit for text in study.budgets},  # type: ignore[union-attr]
        "budgets": summarize(study, found),
    }
