"""A run's log: rows in `metrics.jsonl` (the source of truth), handed on to the sinks, and printed progress."""

import json
import pathlib
import sys
import time
from collections.abc import Sequence

import tqdm

from bert_fast import BadInput
from bert_fast.data.files import atomic_write
from bert_fast.train import sinks


class MetricWriter:
    """Writes `metrics.jsonl`, one JSON object per line, flushed line by line. The sinks get the same rows."""

    def __init__(self, workdir: pathlib.Path, after_step: int, to: Sequence[sinks.Sink] = ()):
        """Opens the file and drops rows later than `after_step`, which a resumed run writes again.

        If a row is damaged, raises BadInput and leaves the file unchanged.
        """
        self.path, self.sinks = workdir / "metrics.jsonl", to
        kept = [row for row in read_rows(self.path) if row["step"] <= after_step]
        atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.file = self.path.open("a", buffering=1)

    def write(self, row: dict):
        self.file.write(json.dumps(row) + "\n")
        for sink in self.sinks:
            sink.write(row)

    def close(self):
        self.file.close()
        sinks.close(self.sinks)


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a `metrics.jsonl`. Skips an incomplete last line, which a killed run may leave.

    Raises BadInput if any other line is not a row.
    """
    if not path.is_file():
        return []
    *lines, unended = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in lines]
    if None in rows:
        number = rows.index(None) + 1
        raise BadInput(
            f'{path}, line {number}: expected a JSON object with "step" and "split", got {lines[number - 1][:60]!r}. '
            "Restore the file, or delete that line: only that row is lost"
        )
    return [row for row in (*rows, _row(unended)) if row is not None]


def _row(line: bytes) -> dict | None:
    """The row in a line, or None if it is damaged."""
    try:
        row = json.loads(line.decode())
    except ValueError:  # JSONDecodeError and UnicodeDecodeError
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("split"), str)
    return row if whole else None


ENOUGH = 20  # steps from which the time left can be estimated; the first ones wait for compilation


class Progress:
    """On a terminal, a bar with the time left; elsewhere, a line every `interval` seconds."""

    def __init__(self, total: int, done: int, shown: bool = True, interval: float = 10.0):
        """For a run at step `done` of `total`. Prints nothing unless `shown`."""
        self.total, self.done, self.shown, self.interval = total, done, shown, interval
        self.first, self.began = done, time.monotonic()
        self.said, self.bar = self.began, None
        if shown and sys.stderr.isatty():
            self.bar = tqdm.tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)

    def update(self, done: int, numbers: dict[str, float]):
        """Shows that the run is at step `done`, with `numbers` next to it."""
        text = "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        if self.bar is not None:
            self.bar.update(done - self.done)
            if text:
                self.bar.set_postfix_str(text)
        elif self.shown and (now := time.monotonic()) - self.said > self.interval:
            new = done - self.first
            left = clock((self.total - done) * (now - self.began) / new) + " left" if new >= ENOUGH else ""
            self.say("  ".join(part for part in (f"step {done}/{self.total}", text, left) if part))
            self.said = now
        self.done = done

    def say(self, line: str):
        """Prints a line without breaking the bar."""
        if self.shown:
            tqdm.tqdm.write(line, file=sys.stderr)

    def close(self):
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """A duration in readable units: 42 s, 3 min 05 s, 2 h 10 min and, from 48 hours, 3 d 4 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 step, 2,000 steps."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
