"""Finished runs as small files that a repository can keep. A study continues from them without its run folders.

    RECORDS/costs.json                        the step costs of all runs
    RECORDS/BUDGET/ARM/seed=N.jsonl.gz        a run: a line with its figures, then the rows of its log

All runs in a folder must come from one commit, one table of step costs (to which stages may be added) and the same
held-out examples.
"""

import functools
import gzip
import json
import pathlib
import subprocess
from typing import Any, NamedTuple

import bert_fast
from bert_fast import BadInput
from bert_fast.compare import results
from bert_fast.compare import study as studies
from bert_fast.compare.costs import NAME
from bert_fast.compare.study import Run, Study
from bert_fast.data import shards
from bert_fast.data.files import atomic_write
from bert_fast.train import step_costs
from bert_fast.train.evaluate import fingerprint
from bert_fast.train.log import read_rows
from bert_fast.train.step_costs import StepCosts

SUFFIX = ".jsonl.gz"


class Record(NamedTuple):
    """A finished run. figures: as in results.json, with the run and its conditions (`made_with`). rows: its log."""

    figures: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def run(self) -> Run:
        return Run(*(self.figures[key] for key in Run._fields))


def path_of(folder: pathlib.Path, run: Run) -> pathlib.Path:
    """The file of a run."""
    inside = pathlib.Path(*run.folder.parts[1:])
    return folder / inside.parent / (inside.name + SUFFIX)


def read_all(folder: pathlib.Path) -> dict[Run, Record]:
    """The records of a folder, by run. Raises BadInput for a file that is not a record."""
    found = {}
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        try:
            about, *rows = map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
            record = Record(about, rows)
            found[record.run] = record
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise BadInput(f"{path} is not a run's record: {error}. Restore it, or delete it to run it again") from None
    return found


def commit(*more: str) -> str:
    """The commit of the code that runs; "bert_fast VERSION" if it is not in a git checkout.

    more: paths of other code that runs, as git takes them. Raises BadInput if the checkout has uncommitted changes,
    because then the commit is not the code that runs.
    """
    root = pathlib.Path(bert_fast.__file__).parents[1]

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return done.stdout.strip()

    if git("rev-parse", "--show-toplevel") != str(root):
        return f"bert_fast {bert_fast.__version__}"
    if changed := git("status", "--porcelain", "--", "bert_fast", "configs", *more):
        raise BadInput(
            f"records contain the commit that ran, but {root} has changes ({changed.splitlines()[0].strip()}): commit "
            "them, or run in a clean clone"
        )
    return git("rev-parse", "HEAD")


def write(folder: pathlib.Path, record: Record):
    """Writes a run's file atomically."""
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (record.figures, *record.rows))
    path = path_of(folder, record.run)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, gzip.compress(text.encode(), mtime=0))


class Keeper:
    """The records of a study.

    Raises BadInput if the code has uncommitted changes, or if the step costs in the records differ from those in the
    study's folder. Either folder may have no step costs.
    """

    def __init__(self, folder: pathlib.Path, study: Study, out: pathlib.Path, data: pathlib.Path):
        self.folder, self.study, self.out, self.data = folder, study, out, data
        self.commit = commit()
        self.first = studies.settings_of(study, Run(next(iter(study.arms)), "", study.seeds[0]), data, None)
        self.fingerprint = fingerprint(shards.read_manifest(data), self.first.data, self.first.eval)
        self.share_costs()

    def share_costs(self):
        """Copies the step costs from one folder to the other if only one has them, or if the study has added stages."""
        kept, made = self.folder / NAME, self.out / NAME
        if not kept.exists() and self.read():
            raise BadInput(
                f"{self.folder} has records, but {NAME} is missing, the table of step costs that they were made with: "
                "restore it, or choose another --records"
            )
        if kept.exists() and made.exists():
            if not step_costs.read(kept).curves.items() <= step_costs.read(made).curves.items():
                raise BadInput(f"the step costs in {kept} and {made} differ: choose another --out")
        elif kept.exists():
            atomic_write(made, kept.read_bytes())
        if made.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(kept, made.read_bytes())

    def made_with(self, run: Run) -> dict[str, Any]:
        """The conditions of a run. A record with other values does not belong to this study."""
        config, changes = studies.changes_of(self.study, run, self.data, None)
        changes = {key: value for key, value in changes.items() if key not in ("seed", "budget", "data.dir", "costs")}
        return {
            "config": config,
            "changes": json.loads(json.dumps(changes)),
            "fingerprint": self.fingerprint,
            "costs": self.costs.fingerprint(),
            "commit": self.commit,
        }

    def begin(self, costs: StepCosts) -> dict[Run, Record]:
        """The records so far. Raises BadInput if one of them comes from another study, code or text, or if a step cost
        has changed.
        """
        self.costs = costs
        self.share_costs()
        kept = self.read()
        for run, record in kept.items():
            for key, value in self.made_with(run).items():
                # A table with more stages has another fingerprint; `share_costs` has compared the costs themselves.
                if key != "costs" and record.figures[key] != value:
                    remedy = (
                        f"run in a clone of {record.figures[key]}" if key == "commit" else "choose another --records"
                    )
                    raise BadInput(
                        f"{path_of(self.folder, run)} has {key} {record.figures[key]!r}, this study {value!r}: {remedy}"
                    )
        return kept

    def read(self) -> dict[Run, Record]:
        """The records of the study's runs."""
        wanted = studies.runs_of(self.study)
        return {run: record for run, record in read_all(self.folder).items() if run in wanted}

    def add(self, run: Run):
        """Writes the record of a run that has finished."""
        about = results.figures(self.study, run, self.out, self.data, self.costs)
        if about is not None:
            figures = {**run._asdict(), **about, **self.made_with(run), "machine": self.costs.machine, **self.text}
            write(self.folder, Record(figures, read_rows(self.out / run.folder / "metrics.jsonl")))

    @functools.cached_property
    def text(self) -> dict[str, float]:
        """The number of tokens in the train split, and the losses of a unigram model on the held-out examples."""
        tokens = shards.read_manifest(self.data)["splits"]["train"]["tokens"]
        return {"corpus_tokens": tokens, **results.unigram(self.first)}
