"""Stop requests from Ctrl-C, a scheduler or a closed terminal. A run saves its current step, then stops."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bert_fast.train import report


class Break(BaseException):
    """Raised by a signal inside `StopSignal.breaking`. Not an Exception, so that no library swallows it."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class StopSignal:
    """Inside a `with` block, records the first SIGINT, SIGTERM or SIGHUP instead of ending the process. A second signal
    ends the process.

    SIGHUP is sent when the terminal closes. A process that already ignores SIGHUP, as under nohup, still ignores it.

    With several processes, all of them stop after the same step. then: what the printed message says will happen next.
    """

    def __init__(self, then: str = "saving after this step"):
        self.then = then
        self.received = 0
        self.breaks = False
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
        if self.breaks:
            raise Break(signum)

    @contextlib.contextmanager
    def breaking(self) -> Iterator[None]:
        """Inside the block, a signal raises Break immediately. The block is for long waits between two steps.

        With several processes, a signal does not break a wait: all must stop after the same step.
        """
        self.breaks = jax.process_count() == 1
        try:
            if self.breaks and self.received:
                raise Break(self.received)
            yield
        finally:
            self.breaks = False

    def signum(self, step: int) -> int:
        """The signal received, or 0. With several processes, `of_any` decides."""
        return of_any(step, self.received)[0]


def of_any(step: int, *values: int) -> list[int]:
    """The maximum of each value over all processes. With several processes, only every tenth step is checked; all
    other steps get zeros.
    """
    if jax.process_count() == 1:
        return list(values)
    if step % 10:  # the check waits for all processes
        return [0] * len(values)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.array(values)).max(axis=0).tolist()
