"""Accelerated BERT pre-training: one trunk, one train loop, methods as small files."""

import pathlib
import signal
import sys
import time

STARTED = time.monotonic()  # of this process, as near as the package knows
__version__ = "0.1.0"


class BadInput(Exception):
    """What the user gave cannot be used.

    The message names the thing, the value it had, what was expected and the remedy; the commands
    print it without a traceback and exit with 2.
    """


class Interrupted(Exception):
    """A signal asked the work to stop, and it has saved; `exit_code` is 128 and its number, as in shells."""

    def __init__(self, signum: int, saved: str):
        super().__init__(f"stopped by {signal.Signals(signum).name}; {saved}")
        self.exit_code = 128 + signum


def python() -> str:
    """This interpreter as one would type it here: for commands that are printed to be typed."""
    path = pathlib.Path(sys.executable)
    return str(path.relative_to(pathlib.Path.cwd())) if path.is_relative_to(pathlib.Path.cwd()) else str(path)
