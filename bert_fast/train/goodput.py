"""Where the wall time of a run went, over all of its processes, and the share that made progress."""

import pathlib
import time

from bert_fast.train.counters import Counters, total


def last_sign(path: pathlib.Path) -> float:
    """When the run's previous process last touched this file, in seconds since 1970. 0 if there is no such file."""
    return path.stat().st_mtime if path.is_file() else 0.0


def begin(counters: Counters, began: float, folder: pathlib.Path | None, sign: float, restored: float):
    """Counts the time of a new process up to now, and the time since the checkpoint. Starts the clock's first lap.

    began: when the new process began, on the monotonic clock. folder: the checkpoint that it continues from. sign: the
    previous process's last sign of life. The steps between the checkpoint and this sign are lost. After the sign,
    nothing ran. If the previous process did not wait for the checkpoint, it took steps while the checkpoint was
    written; these steps are lost too. restored: seconds spent on restoring.
    """
    now = time.monotonic()
    if folder is not None and counters.saved_at:
        start, times = time.time() - (now - began), counters.times
        # When the folder's last file was created. If that is after the last sign of life, the folder is a copy.
        written = min(folder.stat().st_mtime, sign) if counters.waited else 0.0
        saved = min(max(written, counters.saved_at), start)
        died = min(max(sign, saved), start)
        times["save_seconds"] += max(saved - counters.saved_at, 0.0)
        times["wasted_seconds"] += died - saved
        times["idle_seconds"] += start - died
    counters.times["restore_seconds"] += restored
    counters.times["idle_seconds"] += now - began - restored
    counters.mark = now


def summary(counters: Counters) -> dict[str, float]:
    """The run's wall time in seconds, and the share of it spent in steps that were not lost."""
    wall = total(counters.times)
    steps = counters.times["seconds"] - counters.times["input_seconds"]
    return {"wall_seconds": round(wall, 3), "goodput": steps / wall if wall else 0.0}
