"""A thread that ends the process if it waits too long for a step, an input, a save or another process."""

import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from bert_fast.data.workers import kill_loaders, loaders

EXIT_CODE = 4
STATES = {"T": "stopped (by SIGSTOP or Ctrl-Z)", "Z": "dead", "D": "waiting for a disk"}  # man 5 proc, stat


@dataclasses.dataclass(frozen=True)
class Limits:
    """The longest waits, in seconds; 0: no limit.

    step: for the devices to finish a step. input: for the next batch. save: for a checkpoint to be written. evaluate:
    for one evaluation. collective: for the other processes, at a point that all must reach. compile: for a step to be
    compiled.
    """

    step: float = 1800.0
    input: float = 600.0
    save: float = 1800.0
    evaluate: float = 3600.0
    collective: float = 600.0
    compile: float = 0.0


@dataclasses.dataclass
class Wait:
    kind: str
    what: str
    seconds: float = 0.0


class Watchdog:
    """Times the waits of the main thread and of the thread that saves, inside a `with` block.

    Time counts only while the watchdog's thread also runs. So if a process is suspended with all of its threads, that
    time does not count as waiting.
    """

    def __init__(
        self,
        limits: Limits,
        name: str,
        sign: pathlib.Path | None = None,
        tell: Callable[[str], None] = lambda message: None,
        tick: float = 1.0,
    ):
        """name: this process's name, for messages. sign: a file that is touched while the process lives. tell: called
        with the message before the process ends. tick: seconds between checks.
        """
        self.limits, self.name, self.sign, self.tell, self.tick = limits, name, sign, tell, tick
        self.now: dict[int, Wait] = {}  # by thread
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    @contextlib.contextmanager
    def waiting(self, kind: str, what: str) -> Iterator[None]:
        """Marks the block as a wait of this kind (a field of Limits). Waits inside it are timed separately."""
        thread = threading.get_ident()
        outer, self.now[thread] = self.now.get(thread), Wait(kind, what)
        try:
            yield
        finally:
            if outer is None:
                del self.now[thread]
            else:
                self.now[thread] = outer

    def watch(self):
        last = time.monotonic()
        while not self.over.wait(self.tick):
            passed, last = time.monotonic() - last, time.monotonic()
            if self.sign is not None:
                with contextlib.suppress(OSError):
                    os.utime(self.sign)
            for wait in tuple(self.now.values()):
                wait.seconds += min(passed, 2 * self.tick)
                if 0 < (limit := getattr(self.limits, wait.kind)) < wait.seconds:
                    self.end(wait, limit)

    def end(self, wait: Wait, limit: float):
        """Prints the stacks of all threads to standard error, then ends the process and its data workers."""
        workers = "".join(f"; data worker {child.pid} is {state(child.pid)}" for child in loaders())
        message = (
            f"{self.name} has waited {wait.seconds:.0f} s for {wait.what}{workers}. The limit is "
            f"--config.watchdog.{wait.kind}={limit:g} seconds (0: none). The same command continues from the newest "
            "checkpoint"
        )
        print(f"\nerror: {message}\nThe stacks of all threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        self.tell(message)
        leave(EXIT_CODE)


def leave(code: int):
    """Ends the process immediately, from any thread, together with its worker processes, even stopped ones."""
    kill_loaders()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def state(pid: int | None) -> str:
    """What a process is doing, as text."""
    try:
        letter = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # not Linux, or the process has ended
        return "running or gone"
    return STATES.get(letter, "running")
