"""A small model and its coefficients, for the EarlyBERT tests. Axes: as in methods/early_bert.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import bert
from bert_fast.dropout import draws
from bert_fast.method import Program, Stage
from bert_fast.plan import Route, whole
from bert_fast.schedule import Schedule
from helpers.reference import random_batch

CONFIG = bert.Config(60, 3, 16, 4, 4, 20, 16, dropout=0.0, attention_dropout=0.0)
PROGRAM = Program(CONFIG, whole(3), 4, 1, 8, 2, "mlm")
FIRST = Stage("first", PROGRAM, 200, Schedule(1e-3, 200, 20))
UNEVEN = dataclasses.replace(CONFIG, heads=(2, 4, 3), mlp_dim=(20, 7, 12))


def scaled(params, c_LH, c_LF):
    layers = {**params["layers"], "head_scale": jnp.float32(c_LH), "neuron_scale": jnp.float32(c_LF)}
    return {**params, "layers": layers}


def random_coefficients(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(config.depth, max(widths)) for widths in (config.heads_L, config.mlp_dim_L)]
    return [rng.normal(0.9, 0.3, shape).astype(np.float32) for shape in shapes]


def leave_search(method, params, state, model=CONFIG, initial=None, key=None):
    """Draws the ticket. Returns (slim parameters, stage, state). initial: the initial parameters; default `params`."""
    stage = dataclasses.replace(FIRST, program=dataclasses.replace(PROGRAM, model=model))
    old = dataclasses.replace(stage, name="search")
    new = dataclasses.replace(stage, data="restart")
    key = jax.random.key(0) if key is None else key
    first = params if initial is None else initial
    params, moments, state, new = method.enter(params, state, old, new, lambda: first, key)
    assert moments is None
    return params, new, state


def quantile_rule(c_LU, ratio, together):
    """Which units the released finetune/run_glue_earlybert_draw_and_train.py would keep, computed in float64."""
    c_LU = c_LU.astype(np.float64)
    return c_LU > np.quantile(c_LU, ratio, axis=None if together else -1, keepdims=True)


BATCH = random_batch(CONFIG, 2, 8, 3)
NORMS = [CONFIG, dataclasses.replace(CONFIG, norm="pre")]


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, key=None):
    found = None if key is None else draws(key, 2)
    x_BSD = bert.encode(config, params, {}, BATCH, whole(config.depth), Route(), found)
    return bert.predict(config, params, {}, x_BSD, BATCH["slots"])[..., : config.vocab_size]
