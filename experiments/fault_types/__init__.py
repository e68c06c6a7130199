"""Types of faults for `experiments/faults.py`. Each is one function.

A fault type is a function `(bench, rng) -> Outcome` with the decorator `@fault`. It draws one fault from `rng`, injects
it into a file of the bench or into a copy, and returns what became of it. It leaves the bench as it found it. To add a
module with fault types, list it in `MODULES` of `experiments/faults.py`.
"""

import contextlib
import dataclasses
import io
import pathlib
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.__main__ import main

# Good outcomes: an error with a remedy; the same result as without the fault, or input that could be used.
DETECTED, SURVIVED = "detected", "survived"
# Defects: a wrong result without an error; lost work; a traceback instead of a message; a process that never ends; an
# unfinished output under its final name.
SILENT, LOST, TRACEBACK, HUNG, PARTIAL = "silent", "lost", "traceback", "hung", "partial"
VERDICTS = (DETECTED, SURVIVED, SILENT, LOST, TRACEBACK, HUNG, PARTIAL)
PATIENCE = 120  # seconds for one fault


class Outcome(NamedTuple):
    """What became of a fault, and what was injected and seen."""

    verdict: str
    detail: str


class Bench(NamedTuple):
    """What faults are injected into. scratch: an empty folder for each fault."""

    corpus: pathlib.Path
    shards: pathlib.Path
    run: pathlib.Path
    exported: pathlib.Path
    scratch: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault type. times: how often it is injected in the full campaign."""

    name: str
    inject: Callable[[Bench, random.Random], Outcome]
    times: int


FAULTS: dict[str, Fault] = {}


def fault(times: int, name: str = ""):
    """Lists a function as a fault type, under its own name or the given one."""

    def listed(inject: Callable[[Bench, random.Random], Outcome]):
        FAULTS[name or inject.__name__] = Fault(name or inject.__name__, inject, times)
        return inject

    return listed


class Hung(BaseException):
    """Raised if a fault is not handled in time. No other code catches it."""


@contextlib.contextmanager
def time_limit(seconds: int = PATIENCE) -> Iterator[None]:
    """Raises Hung in the main thread after `seconds`."""

    def stop(*_):
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(what: str, act: Callable[[], object], expected: object = None) -> Outcome:
    """How `act` responds to a fault: it raises BadInput or returns. If it returns, it must return `expected`."""
    try:
        with time_limit():
            found = act()
    except BadInput as error:
        return Outcome(DETECTED, f"{what}: {error}")
    except Hung:
        return Outcome(HUNG, what)
    except Exception:
        return Outcome(TRACEBACK, f"{what}\n{traceback.format_exc(limit=-3)}")
    return Outcome(SURVIVED if found == expected else SILENT, what)


def command(bench: Bench, *argv: str) -> Outcome:
    """How a command line responds to bad input. `OUT` in it stands for a path that does not exist yet.

    Exit code 0: the input could be used. Other exit codes: it could not, and the command must say why and leave nothing
    that looks finished.
    """
    out = bench.scratch / "out"
    argv = tuple(arg.replace("OUT", str(out)) for arg in argv)
    said, what = io.StringIO(), " ".join(argv)
    try:
        with time_limit(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = main(list(argv))
    except Hung:
        return Outcome(HUNG, what)
    except BaseException:
        return Outcome(TRACEBACK, f"{what}\n{traceback.format_exc(limit=-3)}")
    if code == 0:
        return Outcome(SURVIVED, what)
    left = [path.name for path in out.rglob("*") if path.suffix in (".partial", ".part")] if out.is_dir() else []
    finished = [name for name in ("manifest.json", "config.json", "model.safetensors") if (out / name).exists()]
    if left or finished:
        return Outcome(PARTIAL, f"{what}: left {', '.join(left + finished)}")
    lines = said.getvalue().strip().splitlines() or [""]
    if not any(line.startswith("error: ") for line in lines) or "Traceback" in said.getvalue():
        return Outcome(TRACEBACK, f"{what}: exit code {code}, {lines[-1]}")
    return Outcome(DETECTED, f"{what}: {next(line for line in lines if line.startswith('error: '))}")


def flipped(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The content with one bit flipped, and which bit it is."""
    at = rng.randrange(8 * len(content))
    broken = bytearray(content)
    broken[at // 8] ^= 1 << at % 8
    return bytes(broken), f"bit {at % 8} of byte {at // 8}"


@contextlib.contextmanager
def replaced(path: pathlib.Path, content: bytes) -> Iterator[None]:
    """Gives a file different content inside the `with` block."""
    before = path.with_name(path.name + ".before")
    shutil.copy2(path, before)
    try:
        path.write_bytes(content)
        yield
    finally:
        before.replace(path)
