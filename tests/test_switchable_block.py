"""The layers that progressive layer dropping draws compute the paper's switchable block.

A plan either gathers the layers that run, or skips the other layers with `cond`. Both give the same results.

Axes: as in layer_drop.py and bert.py.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_fast import qkv
from bert_fast.method import Method
from bert_fast.methods.layer_drop import make
from bert_fast.plan import Span, edit, pack, whole
from bert_fast.train import optim
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.step import TrainState, make_step, partition
from helpers import reference
from helpers.layer_drop_cases import LATE, drawn, stage_of
from helpers.steps import PROGRAM, batch_of, step_and_state
from helpers.trunk import BATCH, PRE, close, equal, layers_of, program_of, run


def switchable_encoder(config, params, batch, gate_L, keep_L):
    """Hidden states in float64, by the paper's equations:

    h_i = x_i + G_i / p_i SelfAttn(LN_1(x_i)), x_{i+1} = h_i + G_i / p_i FFN(LN_2(h_i)). A LayerNorm follows the last
    layer.
    """
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    embed, eps = params["embed"], config.norm_eps
    x_BSD = embed["word"][batch["ids"]] + embed["position"][batch["positions"]] + embed["type"][batch["types"]]
    x_BSD = reference.norm(x_BSD, embed["norm"], eps)
    allowed_BQK = batch["segments"][:, :, None] == batch["segments"][:, None, :]

    def self_attention(layer, z_BSD):
        q, k, v = (np.einsum("BSD,DHE->BSHE", z_BSD, layer[name]["kernel"]) + layer[name]["bias"] for name in qkv.NAMES)
        logits_BHQK = np.einsum("BQHE,BKHE->BHQK", q, k) / math.sqrt(config.head_size)
        weights_BHQK = reference.softmax(np.where(allowed_BQK[:, None], logits_BHQK, -1e30))
        output = layer["attention_output"]
        return np.einsum("BHQK,BKHE,HED->BQD", weights_BHQK, v, output["kernel"]) + output["bias"]

    def feed_forward(layer, z_BSD):
        h_BSF = reference.gelu(z_BSD @ layer["mlp_hidden"]["kernel"] + layer["mlp_hidden"]["bias"])
        return h_BSF @ layer["mlp_output"]["kernel"] + layer["mlp_output"]["bias"]

    for i, (gate, keep) in enumerate(zip(gate_L, keep_L, strict=True)):
        layer = qkv.separate(jax.tree.map(lambda leaf: leaf[i], params["layers"]))  # noqa: B023
        h_BSD = x_BSD + gate / keep * self_attention(layer, reference.norm(x_BSD, layer["attention_norm"], eps))
        x_BSD = h_BSD + gate / keep * feed_forward(layer, reference.norm(h_BSD, layer["mlp_norm"], eps))
    return reference.norm(x_BSD, params["final_norm"], eps)


@pytest.mark.parametrize(
    ("variant", "gate_L"),
    [("paper", (1, 1, 1)), ("paper", (1, 0, 1)), ("paper", (0, 0, 0)), ("deepspeed", (1, 0, 1))],
)
def test_drawn_layers_compute_the_switchable_block(variant, gate_L):
    method, stage, params = make(variant=variant), stage_of(depth=3), reference.random_params(PRE)
    draws = (drawn(method, stage, LATE + n)[0] for n in range(1000))
    scale_L = next(scale_L for scale_L in draws if tuple(scale_L != 0) == tuple(map(bool, gate_L)))
    _, x_BSD, grads = run(PRE, params, scale_L=scale_L)
    keep_L = 1 - np.array([1, 2, 3]) / 3 * 0.5  # the released code divides by this, but draws with other probabilities
    expected_BSD = switchable_encoder(PRE, params, BATCH, gate_L, keep_L)
    real_BS = BATCH["segments"] != 0
    close(np.asarray(x_BSD)[real_BS], expected_BSD[real_BS])
    for i, gate in enumerate(gate_L):
        nonzero = [bool(np.any(leaf)) for leaf in jax.tree.leaves(layers_of(grads, i)["layers"])]
        assert all(nonzero) if gate else not any(nonzero), i


def test_theta_of_one_is_plain_pre_ln_bit_for_bit():
    config = dataclasses.replace(PRE, dropout=0.1, attention_dropout=0.1)
    params, stage = reference.random_params(config), stage_of(depth=3)
    plain = run(config, params, seed=0)
    equal(run(config, params, scale_L=drawn(make(theta=1.0), stage, LATE)[0], seed=0), plain)
    equal(run(config, params, scale_L=drawn(make(), stage, 0)[0], seed=0), plain)  # theta starts at 1


@pytest.mark.slow
def test_a_span_may_run_no_layer():
    params = reference.random_params(PRE)
    plan = (Span(0, 1), Span(1, 3, queries=8, keys=8))
    loss, x_BSD, grads = run(PRE, params, plan, [0, 1.5, 2])
    shallow, above = dataclasses.replace(PRE, depth=2), (Span(0, 2, queries=8, keys=8),)
    close((loss, x_BSD, layers_of(grads, 1, 2)), run(shallow, layers_of(params, 1, 2), above, [1.5, 2]))
    equal(layers_of(grads, 0)["layers"], jax.tree.map(np.zeros_like, layers_of(grads, 0)["layers"]))
    # The whole model may also run no layer. The embeddings and the final LayerNorm still get gradients.
    *_, grads = run(PRE, params, plan, [0, 0, 0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["layers"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves((grads["embed"], grads["final_norm"])))


def test_dropped_boundary_layer_still_passes_on_the_kept_tokens():
    # This is a plan of token dropping. Layer dropping drops its boundary: the layer that attends to all tokens, but
    # updates only the kept ones.
    config = dataclasses.replace(PRE, depth=4)
    params = reference.random_params(config)
    plan = edit(edit(edit(whole(4), 1, 3, queries=8), 2, 3, keys=8), 3, 4, queries=None)
    loss, x_BSD, grads = run(config, params, plan, [1.1, 0, 1.6, 2])
    without = (Span(0, 1), Span(1, 2, queries=8, keys=8), Span(2, 3))
    expected = run(dataclasses.replace(config, depth=3), layers_of(params, 0, 2, 3), without, [1.1, 1.6, 2])
    close((loss, x_BSD, layers_of(grads, 0, 2, 3)), expected)


def test_frozen_layers_may_be_dropped_too():
    def run_partly_frozen(config, params, below, scale_L):
        plan = edit(whole(config.depth), 0, below, frozen=True)
        learns, frozen = partition(params, program_of(config, plan))
        return run(config, learns, plan, scale_L, frozen=frozen)

    params = reference.random_params(PRE)
    shallow, kept = dataclasses.replace(PRE, depth=2), layers_of(params, 0, 2)
    close(run_partly_frozen(PRE, params, 2, [1.2, 0, 2]), run_partly_frozen(shallow, kept, 1, [1.2, 2]))


def test_gather_and_cond_agree_over_micro_batches():
    # Dropout is on: a layer's masks depend on its index in the model, not on its index among the layers that run.
    model = dataclasses.replace(PROGRAM.model, depth=2, norm="pre", dropout=0.1, attention_dropout=0.1)
    params, optimizer = reference.random_params(model), optax.identity()
    scale_ML = np.array([[4 / 3, 0], [0, 2]])
    assert any((drawn(make(), stage_of(2, micro_batches=2), LATE + n) == scale_ML).all() for n in range(100))

    def step(plan):
        """(gradients, metrics)."""
        packed, route = pack(plan, scale_ML)
        program = dataclasses.replace(PROGRAM, model=model, plan=packed, micro_batches=2)
        state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), ())
        step = jax.jit(make_step(Method(), optimizer, PRETRAINING), static_argnames="program")
        after, metrics = step(state, batch_of(), route, 1.0, np.uint32(0), program=program)
        return jax.tree.map(lambda a, b: a - b, params, after.params), metrics

    close(step(edit(whole(2), 0, 2, cond=True)), step(whole(2)))


def test_moments_and_weights_of_dropped_layers_decay_without_a_gradient():
    model = dataclasses.replace(PROGRAM.model, norm="pre")
    params, rng, rate = reference.random_params(model), np.random.default_rng(1), 0.1
    plan, route = pack(whole(3), np.array([[1.2, 0, 2.0]]))
    step, state = step_and_state(dataclasses.replace(PROGRAM, model=model, plan=plan), params)

    def is_moments(node):
        return isinstance(node, optim.Moments)

    def with_history(part):
        noise = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), (part.mu, part.nu))
        return optim.Moments(part.count + 1, *noise)

    before = state._replace(
        opt_state=jax.tree.map(lambda part: with_history(part) if is_moments(part) else part, state.opt_state,
                               is_leaf=is_moments)
    )  # fmt: skip
    after, _ = jax.jit(step)(before, batch_of(), route, rate, np.uint32(0))

    def of_dropped_layer(state):
        (moments,) = filter(is_moments, jax.tree.leaves(state.opt_state, is_leaf=is_moments))
        stacks = (state.params["layers"], moments.mu["layers"], moments.nu["layers"])
        return [np.asarray(stack["qkv"]["kernel"][1], np.float64) for stack in stacks]

    (w, m, v), (w_after, m_after, v_after) = of_dropped_layer(before), of_dropped_layer(after)
    np.testing.assert_allclose(m_after, 0.9 * m, rtol=1e-6)
    np.testing.assert_allclose(v_after, 0.999 * v, rtol=1e-6)
    adam = m_after / (1 - 0.9**2) / (np.sqrt(v_after / (1 - 0.999**2)) + 1e-6)
    np.testing.assert_allclose(w_after, w - rate * (adam + 0.01 * w), rtol=1e-4, atol=1e-6)
