"""The results of a study: figures of each run, differences over paired seeds, and speed-ups between budgets."""

import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.stats

from bert_fast import BadInput
from bert_fast.compare import runs
from bert_fast.compare import study as studies
from bert_fast.compare.study import Run, Study
from bert_fast.cost import budget as budgets
from bert_fast.cost.accelerators import TPUS
from bert_fast.data import sealed, shards
from bert_fast.data.masking import read_vocab
from bert_fast.data.unigram import unigram_loss
from bert_fast.train import checkpoint
from bert_fast.train.evaluate import eval_batches
from bert_fast.train.report import say
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.step_costs import StepCosts

RESOLVED = 2.5  # smallest |t| at which a difference counts as larger than the noise between seeds; see `critical`
CONFIDENCE = 0.95
LOSSES = ("mlm_loss", "mask_loss", "mlm_accuracy")
UNITS = ("tokens", "flops", "seconds")  # the units in which speed-ups are given
LEAST_SAVING = 0.02  # a smaller saving of FLOPs has no meaningful realised fraction


def figures(study: Study, run: Run, out: pathlib.Path, data: pathlib.Path, costs: StepCosts) -> dict[str, Any] | None:
    """The figures of a run. None if the run has not finished, has no checkpoint, or has a loss that is not finite.

    seconds: reference time of the steps. overhead: compiling, growing the model and saving, by the run's own clock.
    """
    folder = out / run.folder
    if not (folder / "summary.json").exists():
        return None
    summary = sealed.read(folder / "summary.json", f"delete {folder} to train it again", (None,))
    newest = checkpoint.newest(folder / "checkpoints", say)
    if newest is None or not all(math.isfinite(summary["valid"][key]) for key in LOSSES):
        say(f"{folder} has {'no checkpoint' if newest is None else 'a loss that is not finite'}: it is left out")
        return None
    about = checkpoint.about(newest)
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
        if dollars := TPUS[costs.chip].dollars:
            found["usd"] = found["chip_hours"] * dollars
    for task in study.tasks:
        workdir = runs.task_folder(run, out, task)
        if (workdir / runs.FINISHED).exists():
            scored = json.loads((workdir / "results.json").read_text())["tasks"].values()
            found.setdefault("scores", {})[task] = statistics.fmean(one["last"]["score"]["mean"] for one in scored)
    return found


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> dict[str, Any]:
    """The mean difference from the reference, over the seeds that both have. None if they have no seed in common.

    t: the t statistic of the paired differences; None if there are fewer than 2, or if all are equal. half_width: half
    the width of the mean's interval at CONFIDENCE; None if t is None. resolved: whether |t| is at least `critical`.
    """
    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    unknown = {"t": None, "half_width": None, "resolved": False}
    if not differences:
        return {"difference": None, **unknown}
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    if not error:
        return {"difference": mean, **unknown}
    t, seeds = mean / error, len(differences)
    return {
        "difference": mean,
        "t": t,
        "half_width": error * quantile(seeds),
        "resolved": abs(t) >= critical(seeds),
    }


def quantile(seeds: int) -> float:
    """The two-sided critical value of |t| at CONFIDENCE, for a difference over this many seeds."""
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1))


def critical(seeds: int) -> float:
    """The smallest |t| at which a difference over this many seeds is resolved: RESOLVED or the two-sided critical value
    at CONFIDENCE, whichever is larger. With 3 seeds it is 4.3, with 2 it is 12.7.
    """
    return max(RESOLVED, quantile(seeds))


def equivalent(loss: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """The amount at which the reference's final losses reach `loss`. It is interpolated between budgets, linearly in
    the logarithm of the amount.

    curve: (amount, final loss) for each budget. Returns None if the curve has fewer than two budgets, if `loss` is
    outside the curve's losses, or if the curve's loss does not fall with every larger budget.
    """
    amounts, losses = zip(*sorted(curve), strict=True) if curve else ((), ())
    falls = all(later < before for before, later in itertools.pairwise(losses))
    if len(losses) < 2 or not falls or not losses[-1] <= loss <= losses[0]:
        return None
    return math.exp(float(np.interp(-loss, [-final for final in losses], np.log(amounts))))


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
        # One seed is not enough to rank arms.
        complete = [arm for arm in arms if len(arms[arm]["runs"]) == len(study.seeds) > 1]
        ranking = {"loss": sorted(complete, key=lambda arm: arms[arm]["mlm_loss"])}
        for unit in UNITS:
            known = [arm for arm in complete if arms[arm]["speedup"][unit] is not None]
            ranking[unit] = sorted(known, key=lambda arm: -arms[arm]["speedup"][unit])
        result[text] = {"arms": arms, "ranking": ranking}
    return result


def relative(about: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float | None]:
    """FLOPs and seconds per token relative to the first arm, and the realised fraction: time saved over FLOPs saved."""
    flops, seconds = (about[key] / about["tokens"] * dense["tokens"] / dense[key] for key in ("flops", "seconds"))
    realised = (1 - seconds) / (1 - flops) if 1 - flops > LEAST_SAVING else None
    return {"flops_per_token": flops, "seconds_per_token": seconds, "realised": realised}


def speedups(study: Study, text: str, first: str, about: Mapping[str, float], rows_of) -> dict[str, float | None]:
    """For each unit: the amount that the first arm needs to reach this arm's final loss, divided by the amount that
    this arm used. Uses only final losses of whole schedules, never a point inside a schedule.
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


def unigram(settings: PretrainSettings) -> dict[str, float]:
    """The losses of a unigram model on a run's held-out examples: on all predicted words, and on those at [MASK]."""
    data, held_out = settings.data, eval_batches(settings.data, settings.eval)
    train, mask = shards.Split(data.dir, "train"), read_vocab(data.dir).mask
    hidden = [{**b, "weights": b["weights"] * (np.take_along_axis(b["ids"], b["slots"], 1) == mask)} for b in held_out]
    size = settings.model.vocab_size
    return {
        "unigram_loss": unigram_loss(train, size, held_out),
        "unigram_mask_loss": unigram_loss(train, size, hidden),
    }


def collect(
    study: Study,
    out: pathlib.Path,
    data: pathlib.Path,
    costs: StepCosts,
    kept: Mapping[Run, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """All results of a study's folder. kept: records of runs. The folders of these runs are not read."""
    found = {}
    for run in studies.runs_of(study):
        figure = kept[run].figures if run in kept else figures(study, run, out, data, costs)
        if figure is not None:
            found[run] = figure
    if len({figure["fingerprint"] for figure in found.values()}) > 1:
        raise BadInput(f"runs in {out} were evaluated on different examples: choose another --out for other data")
    unigram = next((figure["unigram_loss"] for figure in found.values() if "unigram_loss" in figure), None)
    return {
        **({} if unigram is None else {"unigram_loss": unigram}),
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
