"""Stop requests: which signals are recorded, and what the process does with them afterwards."""

import signal

import pytest

from bert_fast.train.signals import StopSignal


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_recorded_and_the_former_handler_comes_back(signum):
    seen = []
    before = signal.signal(signum, lambda *_: seen.append("former handler"))
    try:
        with StopSignal() as stop:
            signal.raise_signal(signum)
            assert (stop.received, seen) == (signum, [])
            signal.raise_signal(signum)  # a second signal goes to the former handler
            assert seen == ["former handler"]
        signal.raise_signal(signum)
        assert len(seen) == 2
    finally:
        signal.signal(signum, before)


def test_a_closed_terminal_does_not_stop_a_process_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)
