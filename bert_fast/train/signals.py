"""Stop requests from Ctrl-C, a scheduler or a closed terminal. A run saves its current step, then stops."""

import signal
import threading
from typing import Any

import jax

from bert_fast.train import report


class StopSignal:
    """Records SIGINT, SIGTERM and SIGHUP inside a `with` block, instead of ending the process. A second signal ends it.

    SIGHUP comes when the terminal closes. It stays ignored if the process ignores it, as under nohup.

    With several processes, all of them stop after the same step. `then`: what the printed message says comes next.
    """

    def __init__(self, then: str = "saving after this step"):
        self.then = then
        self.received = 0
        self.before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                    continue
                self.before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_):
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def _handle(self, signum, frame):
        del frame
        self.received = signum
        report.say(f"\n{signal.Signals(signum).name}: {self.then} (repeat to stop at once)")
        for other, handler in self.before.items():
            signal.signal(other, handler)

    def signum(self, step: int) -> int:
        """The signal received, or 0. With several processes, the signal of any of them, checked every tenth step."""
        if jax.process_count() == 1:
            return self.received
        if step % 10:  # the check waits for all processes
            return 0
        from jax.experimental import multihost_utils

        return int(multihost_utils.process_allgather(self.received).max())
