"""A request to stop, from Ctrl-C or a scheduler, that waits until the step under way is saved."""

import signal
import threading
from typing import Any

import jax

from bert_fast.train import report


class StopSignal:
    """While entered, SIGINT and SIGTERM are remembered instead of killing; a second one kills as usual.

    Where there are several processes all of them stop after the same step. `then`: what the user is told will happen.
    """

    def __init__(self, then: str = "saving after this step"):
        self.then = then
        self.received = 0
        self.before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_):
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def _handle(self, signum, frame):
        del frame
        self.received = signum
        report.say(f"\n{signal.Signals(signum).name}: {self.then} (again to stop at once)")
        for other, handler in self.before.items():
            signal.signal(other, handler)

    def signum(self, step: int) -> int:
        """The signal that came, 0 for none; where there are several processes, that of any, asked every tenth step."""
        if jax.process_count() == 1:
            return self.received
        if step % 10:  # asking waits for all of them
            return 0
        from jax.experimental import multihost_utils

        return int(multihost_utils.process_allgather(self.received).max())
