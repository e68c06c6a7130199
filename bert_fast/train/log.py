"""A run's log: rows in `metrics.jsonl` (the source of truth), and printed progress. The sinks get the same rows.

A row is a line of JSON. Its last key, `seal`, is a checksum of the rest of the row (see `sealed`).
"""

import json
import pathlib
import sys
import time
import zlib
from collections.abc import Sequence

import numpy as np
import tqdm

from bert_fast import BadInput
from bert_fast.data.files import atomic_write, sync
from bert_fast.train import sinks

SEAL = "seal"  # the last key of a row


class MetricWriter:
    """Writes `metrics.jsonl`, one JSON object per line, flushed line by line. The sinks get the same rows."""

    def __init__(
        self, workdir: pathlib.Path, after_step: int, to: Sequence[sinks.Sink] = (), expected: int | None = None
    ):
        """Opens the file and drops rows later than `after_step`, which a resumed run writes again.

        expected: number of rows up to `after_step`; None if unknown. If the file has another number, or a row is
        damaged, raises BadInput and leaves the file unchanged. If the file is missing, begins a new one and prints a
        line that says so.
        """
        self.path, self.sinks = workdir / "metrics.jsonl", to
        kept = rows_until(self.path, after_step)
        if expected and not self.path.is_file():
            gone = f"{self.path} is missing, with its {counted(expected, 'row')} up to step {after_step}"
            tqdm.tqdm.write(f"{gone}: starting a new one", file=sys.stderr)
        elif expected is not None and len(kept) != expected:
            raise BadInput(
                f"{self.path} has {counted(len(kept), 'row')} up to step {after_step}, but the checkpoint of that step "
                f"counted {expected}: restore the file, or move it away to begin a new one here"
            )
        self.open(kept)

    def open(self, kept: list[dict]):
        self.count = len(kept)
        atomic_write(self.path, "".join(map(sealed, kept)).encode())
        self.file = self.path.open("a", buffering=1)

    def go_back(self, step: int):
        """Drops the file's rows that are later than this step. The sinks keep these rows, and also get the new ones."""
        self.file.close()
        self.open(rows_until(self.path, step))

    def write(self, row: dict):
        self.count += 1
        self.file.write(sealed(row))
        for sink in self.sinks:
            sink.write(row)

    def to_disk(self):
        """Returns once the rows written so far survive a power failure. Any thread may call it."""
        sync(self.path)

    def close(self):
        self.file.close()
        sinks.close(self.sinks)


def sealed(row: dict) -> str:
    """The line of a row, with its seal: the CRC-32 of the line without the seal, in hex."""
    line = json.dumps(row)
    return f'{line[:-1]}, "seal": "{zlib.crc32(line.encode()):08x}"}}\n'


def rows_until(path: pathlib.Path, step: int) -> list[dict]:
    """The rows of a `metrics.jsonl` up to this step. Raises BadInput like `read_rows`."""
    return [row for row in read_rows(path) if row["step"] <= step]


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a `metrics.jsonl`. Skips an incomplete last line, which a killed run may leave.

    Raises BadInput if any other line is not a row as it was written. Files of earlier versions have no seals.
    """
    if not path.is_file():
        return []
    *lines, unended = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in lines]
    if not _is_beginning(unended):
        rows.append(_row(unended))
    has_seals = any(row is not None and SEAL in row for row in rows)
    for number, row in enumerate(rows, 1):
        if row is None or (has_seals and row.pop(SEAL, None) is None):
            line = [*lines, unended][number - 1]
            raise BadInput(
                f'{path}, line {number}: expected a JSON object with "step" and "split", as the run wrote it, got '
                f"{line[:60]!r}. Restore the file; or delete that line, whose row is then lost"
            )
    return rows  # pyright: ignore[reportReturnType]  # none of them is None


def _row(line: bytes) -> dict | None:
    """The row in a line, with its seal if it has one. None if the line is damaged."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):  # ValueError: also JSONDecodeError and UnicodeDecodeError
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("split"), str)
    if whole and SEAL in row and sealed({key: row[key] for key in row if key != SEAL}).encode() != line + b"\n":
        return None
    return row if whole else None


def _is_beginning(line: bytes) -> bool:
    """Whether a line is empty, or may be the beginning of an incomplete row."""
    try:
        _, end = json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return True
    return not end


ENOUGH = 20  # steps needed to estimate the time left; the first ones wait for compilation


class Progress:
    """On a terminal, a bar with the time left; elsewhere, a line every `interval` seconds."""

    def __init__(self, total: int, done: int, shown: bool = True, interval: float = 10.0, noun: str = "step"):
        """For a run at step `done` of `total`. Prints nothing unless `shown`.

        All steps count as equal work until `follow` is called. noun: what is counted, if not steps.
        """
        self.total, self.done, self.shown, self.interval, self.noun = total, done, shown, interval, noun
        self.first, self.began = done, time.monotonic()
        self.said, self.bar, self.course = self.began, None, [(0, 0.0), (total, float(total))]
        if shown and sys.stderr.isatty():
            form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
            self.bar = tqdm.tqdm(total=total, initial=done, unit=noun, dynamic_ncols=True, bar_format=form)

    def follow(self, course: Sequence[tuple[int, float]]):
        """From now on, estimates the time left from `course`.

        course: (step, work up to that step) at the start of the run and at the end of each stage.
        """
        self.course, self.total = list(course), course[-1][0]
        if self.bar is not None:
            self.bar.total = self.total

    def left(self, done: int, now: float) -> str:
        """The time left, as text; "" until it can be estimated."""
        if done - self.first < ENOUGH:
            return ""
        steps, work = zip(*self.course, strict=True)
        first, at, end = np.interp([self.first, done, self.total], steps, work)
        return clock((end - at) * (now - self.began) / max(at - first, 1e-300)) + " left"

    def update(self, done: int, numbers: dict[str, float]):
        """Shows that the run is at step `done`, with `numbers` next to it."""
        parts, now = [f"{key} {value:.4g}" for key, value in numbers.items()], time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str("  ".join(filter(None, [*parts, self.left(done, now)])), refresh=False)
            self.bar.update(done - self.done)
        elif self.shown and now - self.said > self.interval:
            self.say("  ".join(filter(None, [f"{self.noun} {done}/{self.total}", *parts, self.left(done, now)])))
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
