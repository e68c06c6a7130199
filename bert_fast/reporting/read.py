"""Reads what a report shows: run folders, the folder of a study, and the scores of fine-tuning."""

import dataclasses
import gzip
import json
import math
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bert_fast import BadInput
from bert_fast.compare import study as studies
from bert_fast.data import sealed
from bert_fast.method import Stage
from bert_fast.train import step_costs
from bert_fast.train.description import stage_from_json
from bert_fast.train.log import read_rows
from bert_fast.train.step_costs import StepCosts

ROWS = "rows.jsonl.gz"


@dataclasses.dataclass(frozen=True)
class LoggedStage:
    """A stage at its place in the run. stage: None if its program is not known yet."""

    name: str
    begin: int
    end: int
    stage: Stage | None


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """A pre-training run, finished or not. In a study, runs of one arm differ in budget and seed."""

    label: str
    arm: str
    budget: str
    seed: int | None
    rows: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    spans: Sequence[LoggedStage] = ()
    summary: Mapping[str, Any] | None = None
    costs: StepCosts | None = None

    @property
    def methods(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """(name, arguments) of each method."""
        names = [name.strip() for name in self.config.get("methods", "").split(",") if name.strip()]
        return tuple((name, dict(self.config.get(name, {}))) for name in names)

    def split(self, name: str) -> list[Mapping[str, Any]]:
        return [row for row in self.rows if row["split"] == name]

    @property
    def last(self) -> Mapping[str, Any]:
        return self.rows[-1]

    @property
    def held_out(self) -> Mapping[str, Any] | None:
        """The newest held-out row."""
        found = self.split("valid")
        return found[-1] if found else None

    @property
    def planned_steps(self) -> int:
        return max([span.end for span in self.spans], default=0)


@dataclasses.dataclass(frozen=True)
class ReportContent:
    """Everything that a report shows.

    study: the content of a study's results.json. scores: the content of each results.json of fine-tuning, by name.
    """

    title: str
    runs: Sequence[LoggedRun]
    study: Mapping[str, Any] | None = None
    scores: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    is_study: bool = False


def read(paths: Sequence[str | pathlib.Path]) -> ReportContent:
    """Reads runs, fine-tuning folders and at most one study. Raises BadInput if a path is none of these."""
    if not paths:
        raise BadInput("give run folders, or the folder of a study: bert-fast report runs/mini")
    folders = list({pathlib.Path(path).resolve(): pathlib.Path(path) for path in paths}.values())  # each once
    kinds = [kind_of(folder) for folder in folders]
    names = labels(folders)
    if "study" in kinds and ("run" in kinds or kinds.count("study") > 1):
        raise BadInput(f"{folders[kinds.index('study')]} is a study: report it alone, or give the folders of its runs")
    scores: dict[str, Mapping[str, Any]] = {}
    runs: list[LoggedRun] = []
    for folder, kind, name in zip(folders, kinds, names, strict=True):
        if kind == "scores":
            scores[name] = read_json(folder / "results.json")
        elif kind == "run":
            runs.append(read_run(folder, name))
            if not runs[-1].rows:
                raise BadInput(f"{folder} has no rows in metrics.jsonl yet: wait for the run's first log row")
    if "study" in kinds:
        return read_study(folders[kinds.index("study")], scores)
    return ReportContent(" and ".join(names) if len(names) < 3 else f"{len(names)} runs", runs, scores=scores)


def kind_of(folder: pathlib.Path) -> str:
    """What a folder holds: "run", "study" or the "scores" of fine-tuning. Raises BadInput if it is none of these."""
    if (folder / "metrics.jsonl").is_file() or (folder / "stages.json").is_file():
        return "run"
    if (folder / "results.json").is_file():
        found = read_json(folder / "results.json")
        if "budgets" in found:
            return "study"
        if "tasks" in found:
            return "scores"
    if any((folder / studies.FOLDER).glob("*/*/seed=*/metrics.jsonl")) or (folder / ROWS).is_file():
        return "study"
    why = "is not a run folder" if folder.is_dir() else "does not exist"
    inside = sorted(path.parent.name for path in folder.glob("*/metrics.jsonl"))[:3]
    remedy = f"; did you mean {', '.join(str(folder / name) for name in inside)}?" if inside else ""
    raise BadInput(
        f"{folder} {why}: expected the folder of a pretrain run (metrics.jsonl), of a comparison or of a finetune "
        f"(results.json){remedy}"
    )


def labels(folders: Sequence[pathlib.Path]) -> list[str]:
    """A short name for each folder: its last part, or as much of its path as distinguishes it from the others."""
    whole = [folder.resolve() for folder in folders]
    names = [folder.name for folder in whole]
    if len(set(names)) == len(names):
        return names
    shared = os.path.commonpath(whole)
    return [os.path.relpath(folder, shared) for folder in whole]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The content of a JSON file. Raises BadInput if it is damaged."""
    return sealed.read(path, "restore it, or delete it", (None,))


def read_run(folder: pathlib.Path, label: str, arm: str = "", budget: str = "", seed: int | None = None) -> LoggedRun:
    """The content of a run's folder. What the run has not written yet is left out. Raises BadInput if a file is
    damaged.
    """
    rows = sorted(read_rows(folder / "metrics.jsonl"), key=lambda row: row["step"])
    optional = {
        name: read_json(folder / f"{name}.json") if (folder / f"{name}.json").is_file() else None
        for name in ("config", "stages", "summary")
    }
    spans = spans_of((optional["stages"] or {"stages": []})["stages"], rows)
    costs = step_costs.read(folder / "costs.json") if (folder / "costs.json").is_file() else None
    return LoggedRun(
        label, arm or label, budget, seed, rows, optional["config"] or {}, spans, optional["summary"], costs
    )


def spans_of(stages: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> tuple[LoggedStage, ...]:
    """The stages of a stages.json, with the steps at which they began and ended.

    A search may end before its last planned step; then its end is read from the rows. The result is empty if an older
    version wrote the stages.
    """
    spans: list[LoggedStage] = []
    begin = 0
    for tree in stages:
        end = begin + tree["steps"]
        if tree["ask_every"]:
            own = [row["step"] for row in rows if row["stage"] == tree["name"]]
            if own and any(row["stage"] != tree["name"] and row["step"] > own[-1] for row in rows):
                end = min(end, own[-1])
        try:
            stage = None if tree["program"] is None else stage_from_json(dict(tree))
        except (TypeError, KeyError):
            return ()
        spans.append(LoggedStage(tree["name"], begin, end, stage))
        begin = end
    return tuple(spans)


def read_study(folder: pathlib.Path, scores: Mapping[str, Mapping[str, Any]]) -> ReportContent:
    """A study's folder, finished or not. Raises BadInput if none of its runs has written a row."""
    path = folder / "results.json"
    results = read_json(path) if path.is_file() else None
    runs, found = [], dict(scores)
    folders = runs_of(folder, results)
    names = names_of([run for run, _ in folders])
    for run, inside in folders:
        read_it = read_run(inside, names[run], *run)
        if read_it.rows:
            runs.append(read_it)
        for task in sorted((inside / "tasks").glob("*/results.json")):
            found[f"{names[run]}: {task.parent.name}"] = read_json(task)
    if (folder / ROWS).is_file():  # runs that exist only as records
        here = {(run.arm, run.budget, run.seed) for run in runs}
        runs += [run for run in packed_runs(folder / ROWS) if (run.arm, run.budget, run.seed) not in here]
    if not runs:
        raise BadInput(f"{folder} has no run with rows yet: wait for the first log row of the comparison")
    return ReportContent(folder.resolve().name, runs, results, found, is_study=True)


def names_of(runs: Collection[studies.Run]) -> dict[studies.Run, str]:
    """The name of each run on the page. It leaves out the budget if all runs have the same one."""
    several = len({run.budget for run in runs}) > 1
    return {run: ", ".join([run.arm, *([run.budget] if several else []), f"seed {run.seed}"]) for run in runs}


def runs_of(folder: pathlib.Path, results: Mapping[str, Any] | None) -> list[tuple[studies.Run, pathlib.Path]]:
    """The run folders of a study that exist, in the order of its results. Without results, they are sorted by budget,
    then by arm with "dense" first.
    """
    if results is not None:
        every = [
            studies.Run(arm, budget, seed)
            for budget in results["budgets"]
            for arm in results["arms"]
            for seed in results["seeds"]
        ]
        return [(run, folder / run.folder) for run in every if (folder / run.folder).is_dir()]
    found = []
    for inside in sorted((folder / studies.FOLDER).glob("*/*/seed=*")):
        budget, arm, seed = inside.parts[-3:]
        found.append((studies.Run(arm, budget.replace("=", ":", 1), int(seed.removeprefix("seed="))), inside))
    dense_first = sorted(found, key=lambda one: (one[0].budget, one[0].arm != "dense"))
    return dense_first


def packed_runs(path: pathlib.Path) -> list[LoggedRun]:
    """The runs of a rows.jsonl.gz, without their plans and configs. Raises BadInput if it is damaged."""
    runs: dict[studies.Run, list[dict[str, Any]]] = {}
    try:
        with gzip.open(path, "rt") as file:
            for line in file:
                row = json.loads(line)
                runs.setdefault(studies.Run(row["arm"], row["budget"], row["seed"]), []).append(row)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise BadInput(f"{path} cannot be read ({error}): make it again with the command compare") from error
    names = names_of(runs)
    return [LoggedRun(names[run], *run, rows=rows) for run, rows in runs.items()]


def warnings_of(content: ReportContent) -> list[str]:
    """Warnings that a reader needs before comparing the numbers."""
    runs, found = content.runs, []
    prints: dict[str, list[str]] = {}
    for run in runs:
        if run.held_out is not None:
            prints.setdefault(str(run.held_out.get("fingerprint")), []).append(run.label)
    if len(prints) > 1:
        groups = "; ".join(f"{', '.join(names)} ({fingerprint})" for fingerprint, names in prints.items())
        found.append(
            f"The held-out losses are not comparable. The runs were evaluated on different examples or masks: {groups}."
        )
    for run in runs:
        if run.summary is None and run.planned_steps > run.last["step"]:
            found.append(f"{run.label} is not finished: step {run.last['step']:,} of {run.planned_steps:,}.")
        bad = [row["step"] for row in run.rows if not math.isfinite(row.get("mlm_loss", 0.0))]
        if bad:
            found.append(f"{run.label} has a loss that is not finite, first at step {bad[0]:,}. Charts leave it out.")
    if content.is_study and content.study is None:
        found.append("The comparison has not written its results yet, so there is no table of differences.")
    if content.study is not None and content.study["missing"]:
        missing = ", ".join(f"{run['arm']} ({run['budget']}, seed {run['seed']})" for run in content.study["missing"])
        found.append(f"Not finished, and not in the table: {missing}.")
    return found
