"""Injects faults, and counts what became of them: detected, survived, or a defect.

    python -m experiments.faults [--short] [--only=NAME,...] [--workdir=runs/faults]

The fault types are functions in experiments/fault_types/. Each outcome is written to WORKDIR/outcomes.jsonl at once. So
an interrupted campaign continues if you give its command again. Fault number n of a type is the same in every campaign.
--short injects a tenth of the faults, at least one of each type, and writes no page. The exit code is 1 if there is a
defect. Writes experiments/faults.md.
"""

import collections
import contextlib
import dataclasses
import importlib
import io
import json
import os
import pathlib
import platform
import random
import shutil
import sys
from collections.abc import Iterable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from bert_fast.__main__ import main as bert_fast
from experiments import common
from experiments.fault_types import DETECTED, FAULTS, SURVIVED, VERDICTS, Bench, Fault

MODULES = ("flips", "bad_inputs", "processes")  # in experiments/fault_types/
STORM = common.HERE / "storm.json"  # written by experiments/storm.py
WORDS = "the a dog cat river bank sleeps runs over under quick lazy brown fox day night".split()


@dataclasses.dataclass(frozen=True)
class Record:
    """The outcome of fault `number` of a type."""

    name: str
    number: int
    verdict: str
    detail: str


def make_bench(folder: pathlib.Path) -> Bench:
    """The things that faults are injected into: a small corpus, its shards, a run of 20 steps, and its export."""
    bench = Bench(*(folder / name for name in ("corpus", "shards", "run", "exported", "scratch")))
    done = folder / "bench.done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        bench.corpus.mkdir(parents=True)
        rng = random.Random(0)
        documents = [". ".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(12)) + "." for _ in range(200)]
        (bench.corpus / "a.txt").write_text("\n\n".join(documents))
        for argv in (
            ["prepare", f"--source=files:{bench.corpus}/a.txt", f"--out={bench.shards}", "--vocab_size=100"],
            ["pretrain", "--config=bert:size=tiny,objective=mlm,debug", f"--workdir={bench.run}"]
            + [f"--config.data.dir={bench.shards}", "--config.checkpoint.every=10"],
            ["export", f"--checkpoint={bench.run}", f"--out={bench.exported}"],
        ):
            with contextlib.redirect_stdout(io.StringIO()):
                if code := bert_fast(argv):
                    sys.exit(f"error: the bench cannot be made: {' '.join(argv)} ended with exit code {code}")
        done.touch()
    return bench


def campaign(faults: Iterable[Fault], bench: Bench, path: pathlib.Path, share: float = 1.0) -> list[Record]:
    """Injects the faults that have no outcome in the file `path` yet, and adds their outcomes to the file.

    Returns the outcomes of all faults.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    records = {(record.name, record.number): record for record in (Record(**json.loads(line)) for line in lines)}
    found = []
    with path.open("a", buffering=1) as file:
        for fault in faults:
            for number in range(max(1, min(3, fault.times // 10), round(share * fault.times))):
                if (record := records.get((fault.name, number))) is None:
                    shutil.rmtree(bench.scratch, ignore_errors=True)
                    bench.scratch.mkdir()
                    outcome = fault.inject(bench, random.Random(f"{fault.name} {number}"))
                    record = Record(fault.name, number, *outcome)
                    file.write(json.dumps(dataclasses.asdict(record)) + "\n")
                found.append(record)
            mine = collections.Counter(record.verdict for record in found if record.name == fault.name)
            print(f"{fault.name}: " + ", ".join(f"{count} {verdict}" for verdict, count in mine.items()), flush=True)
    return found


def defects(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.verdict not in (DETECTED, SURVIVED)]


def page(records: list[Record]) -> str:
    """The page of a campaign: the verdicts on each type of fault, and the first defect of each type."""
    names = list(dict.fromkeys(record.name for record in records))
    count = collections.Counter((record.name, record.verdict) for record in records)
    rows = [
        [name, sum(record.name == name for record in records), *(count[name, v] for v in VERDICTS)] for name in names
    ]
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    lines = [
        "# Faults\n",
        f"Written by `experiments/faults.py` on {platform.machine()} {platform.system()}, Python {platform.python_version()}. "
        "Detected: an error message says what is wrong and what to do. Survived: the result is the same as without the fault, or the changed input is valid. "
        "The other columns are defects: a wrong result without an error, lost work, a traceback, a command that does not end "
        "within two minutes (a training run: 15 minutes), and an unfinished output under its final name.\n",
        f"| fault | tried | {' | '.join(VERDICTS)} |",
        "|---|" + "---|" * (len(VERDICTS) + 1),
        *(f"| {' | '.join(f'`{cell}`' if n == 0 else f'{cell:,}' for n, cell in enumerate(row))} |" for row in rows),
    ]
    if wrong := defects(records):
        shown = [next(record for record in wrong if record.name == name) for name in {r.name: 0 for r in wrong}]
        lines += ["\n## Defects\n", "The first of each type:\n"]
        lines += [f"- `{record.name}` {record.number}, {record.verdict}: {record.detail!r}" for record in shown]
    if STORM.exists():
        lines += ["\n## Kills of one run\n", storm(json.loads(STORM.read_text()))]
    return "\n".join(lines) + "\n"


def storm(found: dict) -> str:
    """A sentence about what `experiments/storm.py` found."""
    same = "the same arrays and rows, bit for bit, as" if found["same"] else "**different arrays or rows from**"
    return (
        f"A run of {found['steps']:,} steps with all four methods was killed {found['kills']:,} times, on average "
        f"{found['mean']:g} s after each start (`experiments/storm.py`). It ended with {same} a run that was not killed. Steps "
        f"that were not lost took {found['goodput']:.0%} of the wall time."
    )


def main(argv: list[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--short", action="store_true", help="a tenth of the faults, and no page")
    parser.add_argument("--only", default="", help="names of fault types, separated by commas")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/faults"))
    args = parser.parse_args(argv)
    for module in MODULES:
        importlib.import_module(f"experiments.fault_types.{module}")
    names = common.chosen(args.only, ",", FAULTS, "fault type") if args.only else list(FAULTS)
    bench = make_bench(args.workdir.resolve() / "bench")
    share = 0.1 if args.short else 1.0
    records = campaign([FAULTS[name] for name in names], bench, args.workdir / "outcomes.jsonl", share)
    wrong = defects(records)
    if args.short or args.only:
        print(page(records))
    else:
        common.write_page("faults", page(records))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
