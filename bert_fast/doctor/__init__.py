"""Checks a machine before a run is started on it: the command `doctor`.

    machine.py    devices, memory, clock, other processes
    software.py   versions of packages
    storage.py    disk, or bucket
    training.py   shards, one compiled step, one save and restore

A check is a function that returns a `Result`. To add one, write it and list it in `examine`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

from bert_fast import BadInput

PASS, FAIL, SKIP = "pass", "fail", "skip"


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a check. remedy: what to do; only for a failure."""

    name: str
    verdict: str
    found: str
    remedy: str = ""


def passed(name: str, found: str) -> Result:
    return Result(name, PASS, found)


def failed(name: str, found: str, remedy: str) -> Result:
    return Result(name, FAIL, found, remedy)


def skipped(name: str, found: str) -> Result:
    return Result(name, SKIP, found)


def examine(data: str, place: str) -> Iterator[Result]:
    """The result of each check, as soon as it is known.

    data: a shards folder, or "". place: where runs will be stored: a folder, or the URL of a bucket.
    """
    from bert_fast.doctor import machine, software, storage, training

    folder = pathlib.Path(place) if "://" not in place else None
    yield from (_safely(check) for check in (software.python, software.requirements, software.accelerator))
    devices = _safely(machine.devices)
    yield devices
    yield from (_safely(check) for check in (machine.memory, machine.others))
    yield _safely(functools.partial(storage.disk, folder) if folder else functools.partial(storage.bucket, place))
    yield _safely(functools.partial(machine.clock, folder))
    yield _safely(functools.partial(training.shards, data))
    for name, check in (("step", training.step), ("checkpoint", functools.partial(training.checkpoint, folder))):
        usable = devices.verdict == PASS
        yield _safely(check) if usable else skipped(name, "there are no usable devices")


def _safely(check: Callable[[], Result]) -> Result:
    """The result of a check. A check that raises has failed."""
    name = getattr(check, "func", check).__name__
    try:
        return check()
    except BadInput as error:
        return failed(name, str(error), "do what the message says")
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return failed(
            name, f"{type(error).__name__}: {lines[0]}", "this should not happen: the message names the cause"
        )


def line_of(result: Result) -> str:
    """A result as a line of a table, with its remedy below it."""
    line = f"{result.verdict:<5} {result.name:<13} {result.found}"
    return f"{line}\n{'':<20}{result.remedy}" if result.remedy else line
