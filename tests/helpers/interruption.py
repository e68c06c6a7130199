"""A run that is interrupted at a given step."""

import signal

import pytest

from bert_fast import Interrupted
from bert_fast.train import engine
from helpers.small_runs import run


def interrupted(config, workdir, at_step, monkeypatch):
    """Trains until SIGTERM arrives at the end of step `at_step`."""
    train_step = engine.Engine.train_step

    def stopping(self):
        train_step(self)
        if self.step == at_step:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "train_step", stopping)
        with pytest.raises(Interrupted) as stopped:
            run(config, workdir)
    assert stopped.value.exit_code == 143
