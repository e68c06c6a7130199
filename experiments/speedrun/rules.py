"""The tracks of the speedrun, and its README.md, which contains the rules and a table of the records."""

import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import scipy.stats

HERE = pathlib.Path(__file__).parent
P = 0.01  # a record's p must be below this
LEAST = 3  # fewest runs in a record


class Track(NamedTuple):
    """target: held-out loss in nats; None: the first record sets it. seq_len: tokens per held-out example."""

    machine: str
    text: str
    target: float | None
    seq_len: int


TRACKS = {
    "tiny": Track("one core of a CPU", "public-domain books, 1,024 word pieces (experiments/study.py)", None, 64),
    "base": Track("one GPU of a named model", "Wikipedia and books, the 30,522 word pieces of uncased BERT", None, 128),
}


def read() -> list[dict[str, Any]]:
    """The records, oldest first."""
    return [json.loads(path.read_text()) for path in sorted((HERE / "records").glob("*.json"))]


def chance(record: Mapping[str, Any], target: float) -> float:
    """The p of a one-sided t-test: how probable losses this low are if their mean is not below the target."""
    losses = [run["mlm_loss"] for run in record["runs"]]
    return float(scipy.stats.ttest_1samp(losses, target, alternative="less").pvalue)


def row(record: Mapping[str, Any]) -> str:
    losses, seconds = ([run[key] for run in record["runs"]] for key in ("mlm_loss", "seconds"))
    target, p = TRACKS[record["track"]].target, "-"
    stands = False
    if target is not None and len(losses) > 1:
        value = chance(record, target)
        p, stands = f"{value:.1g}", value < P and len(losses) >= LEAST
    cells = [
        record["date"], record["track"], f"[{record['entry']}]({record['entry']}.py)",
        f"{statistics.fmean(seconds):.1f} ± {statistics.stdev(seconds):.1f}" if len(seconds) > 1 else f"{seconds[0]:.1f}",
        f"{statistics.fmean(losses):.4f}", str(len(losses)), p, "yes" if stands else "no",
        f"`{record['commit'][:12]}`",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def page() -> str:
    """README.md."""
    tracks = [
        f"| {name} | {track.machine} | {track.text} | {track.target or 'set by the first record'} | {track.seq_len} |"
        for name, track in TRACKS.items()
    ]
    rows = [row(record) for record in read()]
    return f"""# Speedrun

How fast can a BERT learn? An entry is a config. Its score is the time until the held-out loss is below the target of a track.

    python -m experiments.study tier1 --dry_run          makes the text of the track `tiny`
    python -m experiments.speedrun baseline --track=tiny --data=runs/study/shards-books --runs=5
    python -m experiments.speedrun --page                writes this page

## Rules

1. **The text is fixed.** All entries of a track train on the same shards, in any order, with the same vocabulary. A
   record contains the fingerprint of its shards.
2. **The held-out text is fixed and scored in full**: every example of the valid split, with the same masks, and with
   every layer and token active. The score is the mean cross-entropy of the predicted words in nats. It is computed
   once, after the last step. Training on the held-out text is not allowed.
3. **Time is the time of the training steps**, including waiting for input. Timing starts after a warm-up that compiles
   the programs, on made-up text with the same vocabulary. Compiling, evaluating and saving do not count. The machine
   runs nothing else, and the record names it.
4. **A record is significant**: at least {LEAST} seeds, and p < {P} in a one-sided t-test that the mean loss is below
   the target. Seeds are 0, 1, 2 and so on, without gaps.
5. **Anything else may change**: architecture, optimizer, schedule, lengths, masks in training, methods, precision.
6. **The reader's time counts too.** A few lines that save a few per cent are welcome. Many lines that save little are
   not.
7. A record is a pull request with the entry, its file in `records/`, and what was tried without success.

Times from different machines are never compared. So whoever submits an entry also runs the current record on the same
machine.

## Tracks

| track | machine | text | target (nats) | tokens per held-out example |
|---|---|---|---|---|
{chr(10).join(tracks)}

## Records

| date | track | entry | seconds | loss (nats) | seeds | p | record | commit |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""
