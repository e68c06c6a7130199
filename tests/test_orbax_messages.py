"""Orbax's own reports of a failed save or restore are dropped, because the run reports the error. All other messages
are shown.
"""

import logging
import sys
import types
from typing import Any

import pytest

from bert_fast.train import orbax_messages


@pytest.fixture
def shown(monkeypatch):
    """The unraisable exceptions that are still shown."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    orbax_messages.silence()
    orbax_messages.silence()  # a second call changes nothing
    return found


def test_only_exceptions_about_a_closed_event_loop_are_dropped(shown):
    errors = RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("Event loop is closed")
    hook: Any = sys.unraisablehook
    for error in errors:
        hook(types.SimpleNamespace(exc_type=type(error), exc_value=error))
    assert [unraisable.exc_value for unraisable in shown] == list(errors[1:])


@pytest.mark.parametrize(("path", "error", "kept"), [("orbax", True, 0), ("orbax", False, 1), ("clu", True, 1)])
def test_only_tracebacks_that_orbax_logs_are_dropped(shown, caplog, path, error, kept):
    logger, trace = logging.getLogger("absl"), (ValueError, ValueError("full"), None) if error else None
    logger.handle(logger.makeRecord("absl", logging.ERROR, f"/x/{path}/y.py", 1, "a save failed", (), trace))
    assert len(caplog.records) == kept
