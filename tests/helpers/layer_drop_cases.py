"""Stages and draws for the layer-dropping tests."""

import numpy as np

from bert_fast import bert
from bert_fast.method import Clock, Program, Stage
from bert_fast.plan import whole
from bert_fast.schedule import Schedule

LATE = 10**6  # by this step, theta has reached its final value


def stage_of(depth=12, plan=None, micro_batches=1, norm="pre"):
    model = bert.Config(vocab_size=100, depth=depth, norm=norm)
    program = Program(model, plan or whole(depth), 8, micro_batches, 128, 20, "mlm")
    return Stage("128-tokens", program, 1000, Schedule(1e-3, 1000))


def drawn(method, stage, step, seed=0):
    return method.draw(stage, Clock(step, stage.steps), np.random.default_rng((seed, step)))
