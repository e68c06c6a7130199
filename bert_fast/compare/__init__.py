"""Compares runs honestly: equal budgets, equal seeds, and differences that are larger than the noise.

    study.py     what is compared: arms, seeds, budgets, tasks
    costs.py     the table of step costs that all runs share
    runs.py      trains the unfinished runs, several at once
    records.py   finished runs as small files that a repository can keep
    results.py   reads the finished runs; statistics over seeds
    page.py      the results as Markdown

The command is `compare`.
"""

import contextlib
import dataclasses
import gzip
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from bert_fast.data.files import atomic_json, atomic_write, check_output, hold


def compare(
    name: str,
    folder: str,
    data: str = "",
    processes: int = 0,
    dry_run: bool = False,
    changes: Mapping[str, Any] | None = None,
    records_folder: str = "",
) -> dict[str, Any]:
    """Runs a study, or its remaining runs, and writes results.md, results.json and rows.jsonl.gz to its folder.

    name: a shipped study or a file. changes: new values of `budgets` or `task_data`. records_folder: each finished run
    is kept there as a small file, and is not repeated (records.py). Returns the results; "failed" has the error of each
    failed run. If no run has finished, there is only "failed". Raises BadInput before the first run if the study cannot
    be run, and Interrupted after a signal, once the results so far are written.
    """
    from bert_fast.compare import records, runs, study
    from bert_fast.train.report import say

    made, out = dataclasses.replace(study.load(name), **(changes or {})), pathlib.Path(folder).resolve()
    study.check(made)
    check_output(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    busy = f"another comparison is running in {out}: wait for it to finish, or choose another --out"
    with contextlib.closing(hold(out / ".lock", busy)):
        shards = runs.shards_of(made, out, data).resolve()
        study.refuse_incomparable(made, shards)
        at_once = processes or runs.processes_for(made, shards)
        keep = records.Keeper(pathlib.Path(records_folder).resolve(), made, out, shards) if records_folder else None
        costs = runs.make_costs(name, made, out, shards, one_core=at_once > 1)
        kept = keep.begin(costs) if keep else {}
        # A record without the scores of a task that was added later does not count as finished.
        kept = {run: one for run, one in kept.items() if one.figures.get("scores", {}).keys() >= set(made.tasks)}
        planned = runs.plan(made, out, shards, costs)
        say(runs.describe(planned, made, costs, at_once, kept))
        failed, found = {}, {}
        if not dry_run:
            try:
                failed = runs.train(made, planned, out, shards, at_once, kept, keep.add if keep else None)
            finally:
                found = write(pathlib.Path(name).stem, made, out, shards, costs, keep.read() if keep else {})
    return {**found, "failed": failed}


def write(name: str, study, out: pathlib.Path, shards: pathlib.Path, costs, kept: Mapping) -> dict[str, Any]:
    """Writes the results of the runs that have finished, and returns them; {} if there are none."""
    from bert_fast.compare import page, results
    from bert_fast.compare.study import FOLDER, runs_of
    from bert_fast.train.log import read_rows
    from bert_fast.train.report import say

    found = results.collect(study, out, shards, costs, kept)
    if len(found["missing"]) == len(runs_of(study)):
        return {}
    atomic_json(out / "results.json", found)
    atomic_write(out / "results.md", page.markdown(found, name).encode())
    rows = [
        json.dumps({**run._asdict(), **row}) + "\n"
        for run in runs_of(study)
        for row in (kept[run].rows if run in kept else read_rows(out / run.folder / "metrics.jsonl"))
    ]
    atomic_write(out / "rows.jsonl.gz", gzip.compress("".join(rows).encode(), mtime=0))
    say(f"wrote {out}/results.md, results.json and rows.jsonl.gz; the runs are in {out / FOLDER}")
    return found
