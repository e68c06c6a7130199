"""What a run waits for between its operations. The watchdog follows each wait, and a signal may end it."""

import contextlib
import pathlib
from collections.abc import Iterator

from bert_fast.train import agreement
from bert_fast.train.signals import StopSignal, of_any
from bert_fast.train.watchdog import Limits, Watchdog

WAITS = {
    "input": "the input of step",
    "compile": "the program of step",
    "step": "the devices, before step",
    "evaluate": "the evaluation before step",
    "save": "the checkpoint to be written before step",
    "collective": "the other processes before step",
}
BREAKABLE = ("input", "compile")  # a signal may end these waits: the state of the run is consistent in them


class Waiting:
    """Watches the waits of a run's main thread, and records stop signals, inside a `with` block."""

    def __init__(self, limits: Limits, sign: pathlib.Path | None):
        """sign: a file that is touched every second, as a sign of life."""
        self.stop = StopSignal()
        self.watchdog = Watchdog(limits, agreement.own_name(), sign, agreement.tell)

    def __enter__(self):
        self.watchdog.__enter__()
        self.stop.__enter__()
        return self

    def __exit__(self, *details):
        self.stop.__exit__(*details)
        self.watchdog.__exit__(*details)

    @contextlib.contextmanager
    def until(self, kind: str, step: int) -> Iterator[None]:
        """Marks the block as a wait of this kind (see WAITS). Raises Break if a signal arrives and may end the wait
        (see BREAKABLE).
        """
        breaks = self.stop.breaking() if kind in BREAKABLE else contextlib.nullcontext()
        with self.watchdog.waiting(kind, f"{WAITS[kind]} {step}"), breaks:
            yield

    def asked(self, step: int, save: bool) -> tuple[int, bool]:
        """The stop signal that any process has received, or 0, and whether any process asks for a save."""
        with self.until("collective", step + 1):
            signum, asked = of_any(step, self.stop.received, int(save))
        return signum, bool(asked)
