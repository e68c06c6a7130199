"""One train step on a small model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import bert
from bert_fast.method import Method, Program
from bert_fast.plan import whole
from bert_fast.train import optim
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.step import TrainState, make_step, partition

CONFIG = bert.Config(100, 3, 16, 2, 8, 32, 16, dropout=0.0, attention_dropout=0.0)
PROGRAM = Program(CONFIG, whole(3), 4, 1, 8, 2, "mlm")


def batch_of(seed=0, batch_size=4):
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(5, 100, (batch_size, 8)),
        "types": np.zeros((batch_size, 8), int),
        "positions": np.tile(np.arange(8), (batch_size, 1)),
        "segments": np.ones((batch_size, 8), int),
        "slots": np.tile([2, 5], (batch_size, 1)),
        "labels": rng.integers(5, 100, (batch_size, 2)),
        "weights": np.array(rng.random((batch_size, 2)) < 0.7, np.float32),
        "cls": np.zeros(batch_size, int),
    }


def step_and_state(program, params, name="adamw"):
    optimizer = optim.make(optim.Optimizer(name, 0.9, 0.999, 1e-6, 0.01, True, 1.0))
    learns, frozen = partition(params, program)
    state = TrainState(jnp.zeros((), jnp.int32), learns, frozen, optimizer.init(learns), ())
    return functools.partial(make_step(Method(), optimizer, PRETRAINING), program=program), state


def dots(jaxpr) -> int:
    """Number of matrix products in a jaxpr and everything it calls."""
    count = 0
    for eqn in jaxpr.eqns:
        count += eqn.primitive.name == "dot_general"
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            count += dots(inner) if hasattr(inner, "eqns") else 0
    return count
