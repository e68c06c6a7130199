"""Keeps Orbax's own reports of a failed save or restore off the screen. The run reports the error, in one message.

When a disk is full, Orbax logs several tracebacks from its threads, and TensorStore prints another for each array
whose event loop has been closed meanwhile. The error itself is raised where the checkpoint is written.
"""

import logging
import sys
from collections.abc import Callable


def not_from_orbax(record: logging.LogRecord) -> bool:
    """Whether a record is anything but an exception that Orbax logs."""
    return "/orbax/" not in record.pathname or not record.exc_info


class WithoutClosedLoops:
    """A hook for exceptions that nobody can catch. It drops those that TensorStore raises about closed event loops."""

    def __init__(self, shown: Callable):
        self.shown = shown

    def __call__(self, unraisable, /):
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            self.shown(unraisable)


def silence():
    """Drops the reports described above from now on. Every other message and exception is shown as before."""
    logging.getLogger("absl").addFilter(not_from_orbax)
    if not isinstance(sys.unraisablehook, WithoutClosedLoops):
        sys.unraisablehook = WithoutClosedLoops(sys.unraisablehook)
