"""The study of the methods: runs one of its parts in a separate clone, and keeps each finished run in the repository.

    python -m experiments.study tier1 --dry_run     prints what is left, and the hours that it takes
    python -m experiments.study tier1               runs what is left; Ctrl-C saves, and the same command continues

Finished runs are in experiments/records/PART, one small file each. Commit them: on another machine the same command
continues from these files alone. All runs of a part come from one commit. The first run records it, and the script
checks it out in runs/study. Text comes from $BERT_FAST_DATA/corpus. On a shared machine, pin the command to one core
(taskset -c 1) to leave the others free. Other work on the machine does not change results, because the seconds of a run
are computed from a table of step costs, which is kept with the records. A part begins with a copy of another part's table
(see PARTS), and adds the costs of its other arms. Measure them on an idle machine: `python -m experiments.study PART --dry_run`. The
parts are configs/studies/PART.py; `python -m experiments.study_pages` and `study_budgets` write the pages.
"""

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from bert_fast.compare import records
from bert_fast.compare.costs import NAME
from experiments import common

ROOT = common.HERE.parent
RECORDS = common.HERE / "records"
VOCABULARY = 1024  # a small one: the model soon learns from neighbouring word pieces, and the head is cheap
# Files of $BERT_FAST_DATA, and the share of documents that is held out. A run reads the small text many times within its
# budget, so more of this text is held out.
TEXTS = {"books": ("corpus/books/*.txt.gz", 0.01), "small": ("corpus/books/valid.txt.gz", 0.65)}


class Part(NamedTuple):
    """A part of the study: its text (in TEXTS), its title on the pages, and the part whose step costs it begins with."""

    text: str
    title: str
    costs: str = "tier1"


PARTS = {
    "tier1_rates": Part("books", "Learning rates"),
    "tier1_rates_mslt": Part("books", "Learning rates of MSLT"),
    "tier1": Part("books", "The main part"),
    "tier2": Part("books", "Smaller budgets"),
    "tier2_larger": Part("books", "Twice the budget", "tier2_growth"),
    "tier2_clock": Part("books", "Errors of the clock"),
    "tier2_epochs": Part("small", "Over 20 epochs of a small text"),
    "tier2_rivals": Part("books", "Rivals"),
    "tier2_growth": Part("books", "Late growth", "tier2_rivals"),
    "tier3": Part("books", "Ablations"),
}


def git(*arguments: str | pathlib.Path) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def commit_of(part: str, kept: Mapping, root: pathlib.Path) -> str:
    """The commit that a part runs from: the commit in its records, or HEAD of the repository if it has no records."""
    found = {record.figures["commit"] for record in kept.values()}
    if len(found) > 1:
        sys.exit(f"error: the records of {part} come from several commits: {', '.join(sorted(found))}")
    return found.pop() if found else git("-C", root, "rev-parse", "HEAD")


def clone(commit: str, root: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A clone of the repository at a commit."""
    made = folder / f"code-{commit[:12]}"
    if not made.exists():
        git("clone", "--quiet", "--no-checkout", root, made)
    git("-C", made, "checkout", "--quiet", "--detach", commit)
    return made


def share_costs(part: pathlib.Path, first: pathlib.Path):
    """Copies the step costs in the folder `first` to a part that has none, so that all parts have equal costs."""
    if (first / NAME).exists() and not (part / NAME).exists():
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(first / NAME, part / NAME)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--dry_run", action="store_true", help="prepare the text, and print what is left")
    parser.add_argument("--processes", type=int, default=0, help="runs at once [one per core]")
    args = parser.parse_args()
    folder, kept = ROOT / "runs/study", RECORDS / args.part
    share_costs(kept, RECORDS / PARTS[args.part].costs)
    code = clone(commit_of(args.part, records.read_all(kept), ROOT), ROOT, folder)

    python, environment = [sys.executable, "-m", "bert_fast"], os.environ | {"PYTHONPATH": str(code)}
    text, held_out = TEXTS[PARTS[args.part].text]
    shards = folder / f"shards-{PARTS[args.part].text}"
    source = f"--source=files:{common.data_root(text) / text}"
    if not (shards / "manifest.json").exists():
        options = [source, f"--out={shards}", f"--vocab_size={VOCABULARY}", f"--valid_fraction={held_out}"]
        if subprocess.run([*python, "prepare", *options], cwd=code, env=environment, check=False).returncode:
            sys.exit(f"error: {shards} could not be prepared")
    flags = [f"--out={folder / args.part}", f"--data={shards}", f"--records={kept}", f"--processes={args.processes}"]
    os.chdir(code)
    # Replaces this process: `subprocess.run` would kill `compare` soon after Ctrl-C, before it has saved.
    os.execve(python[0], [*python, "compare", args.part, *flags, *(["--dry_run"] if args.dry_run else [])], environment)


if __name__ == "__main__":
    main()
