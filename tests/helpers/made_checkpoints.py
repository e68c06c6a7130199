"""Small states, and their descriptions, for tests of checkpoints."""

import jax
import jax.numpy as jnp

from bert_fast.bert import Config
from bert_fast.data import vocab
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.schedule import Schedule
from bert_fast.train.description import Description
from bert_fast.train.step import TrainState

WORDS = vocab.parse("\n".join(vocab.SPECIAL).encode(), "vocab.txt", False, None)
STAGE = Stage("s", Program(Config(100, depth=3), whole(3), 8, 2, 16, 3, "mlm"), 10, Schedule(1e-3, 10))


def state_of(step: int) -> TrainState:
    params = {"layers": {"kernel": jnp.arange(12.0).reshape(3, 4) + step}, "embed": {"word": jnp.ones((4, 2))}}
    moments = {"count": jnp.array(step, jnp.int32), "mu": jax.tree.map(jnp.copy, params)}
    return TrainState(jnp.array(step, jnp.int32), params, {}, moments, ())


def described(step: int, **more) -> Description:
    return Description(step=step, stage=STAGE, vocab=WORDS, **more)
