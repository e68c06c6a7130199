"""EarlyBERT's coefficients and their penalty, compared with NumPy code written from the paper.

Axes: as in methods/early_bert.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import bert, qkv
from bert_fast.attention.plain import dropped
from bert_fast.dropout import draws
from bert_fast.layers import Block, apply
from bert_fast.methods.early_bert import make
from bert_fast.plan import whole
from bert_fast.train import optim
from helpers import reference
from helpers.early_bert_cases import BATCH, CONFIG, NORMS, UNEVEN, logits, random_coefficients, scaled
from helpers.reference import random_params


def of_norm(config):
    return config.norm


@pytest.mark.parametrize("config", NORMS, ids=of_norm)
def test_coefficients_of_one_change_nothing(config):
    config = dataclasses.replace(config, dropout=0.1, attention_dropout=0.1)
    plain = random_params(config)
    method = make()
    params, _ = method.init(plain, config)
    seen, _ = method.weights(params)
    assert jax.tree.structure(seen) == jax.tree.structure(plain)
    key = jax.random.key(1)
    assert np.array_equal(logits(config, seen, key), logits(config, plain, key))


def coefficient_layer(config, params, x_SD, c_H, c_F, mask_HQK):
    """A post-LN layer with coefficients. They are applied where the released code applies them:

    attention_probs = dropout(softmax(scores)) * c, intermediate = gelu(dense(x)) * c (`slimming_coef` in
    modeling_bert.py).
    """
    out_SD, params = np.zeros_like(x_SD), qkv.separate(params)
    for h in range(config.heads):
        q_SE, k_SE, v_SE = (x_SD @ params[name]["kernel"][:, h] + params[name]["bias"][h] for name in qkv.NAMES)
        probs_QK = reference.softmax(q_SE @ k_SE.T / np.sqrt(config.head_size)) * mask_HQK[h]
        out_SD += (probs_QK * c_H[h]) @ v_SE @ params["attention_output"]["kernel"][h]
    out_SD += params["attention_output"]["bias"]
    x_SD = reference.norm(x_SD + out_SD, params["attention_norm"], config.norm_eps)
    h_SF = reference.gelu(x_SD @ params["mlp_hidden"]["kernel"] + params["mlp_hidden"]["bias"]) * c_F
    out_SD = h_SF @ params["mlp_output"]["kernel"] + params["mlp_output"]["bias"]
    return reference.norm(x_SD + out_SD, params["mlp_norm"], config.norm_eps)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_scaling_the_output_kernels_equals_scaling_after_dropout_and_after_gelu(rate):
    config = dataclasses.replace(CONFIG, depth=1, attention_dropout=rate)
    method = make()
    params, _ = method.init(random_params(config), config)
    c_LH, c_LF = random_coefficients(config)
    seen = jax.tree.map(lambda leaf: leaf[0], method.weights(scaled(params, c_LH, c_LF))[0]["layers"])
    x_BSD = np.random.default_rng(1).standard_normal((1, 6, config.width)).astype(np.float32)
    found = draws(jax.random.key(2), 1)
    got = jax.jit(lambda x: apply(Block(config, 4, 20, 6), seen, x, x, np.ones((1, 6), int), None, found))(x_BSD)
    mask_HQK = np.asarray(dropped(jnp.ones((1, 4, 6, 6)), found.of(0).salts(6) if rate else None, rate, 1))[0]
    assert (mask_HQK == 0).any() == (rate > 0)
    plain = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), params["layers"])
    expected = coefficient_layer(config, plain, x_BSD[0].astype(float), c_LH[0], c_LF[0], mask_HQK)
    np.testing.assert_allclose(got[0], expected, rtol=1e-4, atol=1e-5)


def without(params, head_L):
    """The parameters without head `head_L[i]` of layer i, by np.delete."""
    axes = {("query", "kernel"): 1, ("key", "kernel"): 1, ("value", "kernel"): 1, ("attention_output", "kernel"): 0}
    axes |= {(name, "bias"): 0 for name in qkv.NAMES}

    def drop(path, leaf):
        names = tuple(key.key for key in path)
        if names[0] != "layers" or names[1:] not in axes:
            return leaf
        return np.stack([np.delete(of, j, axes[names[1:]]) for of, j in zip(leaf, head_L, strict=True)])

    apart = qkv.in_layers(qkv.separate, params)
    return qkv.in_layers(qkv.join, jax.tree_util.tree_map_with_path(drop, apart))


@pytest.mark.parametrize("config", NORMS, ids=of_norm)
def test_a_coefficient_of_zero_equals_removing_the_head(config):
    plain = random_params(config)
    method = make()
    c_LH, c_LF = np.ones((3, 4)), np.ones((3, 20))
    c_LH[np.arange(3), [2, 0, 3]] = 0
    seen, _ = method.weights(scaled(plain, c_LH, c_LF))
    three = dataclasses.replace(config, heads=3)
    _, expected = reference.forward(three, without(plain, [2, 0, 3]), BATCH, whole(3))
    np.testing.assert_allclose(logits(config, seen), expected, rtol=1e-4, atol=1e-5)


def test_penalty_is_the_weighted_sum_of_absolute_coefficients():
    method = make(head_penalty=1e-3, neuron_penalty=2e-4)
    params, _ = method.init(random_params(UNEVEN), UNEVEN)
    assert float(method.weights(params)[1]) == pytest.approx(1e-3 * 9 + 2e-4 * 39, rel=1e-6)  # padding costs nothing
    c_LH, c_LF = random_coefficients(UNEVEN)
    c_LH[0, 1] = c_LF[2, 5] = 0
    c_LF[1, 3] *= -1
    params = scaled(params, c_LH, c_LF)
    penalty, gradient = jax.value_and_grad(lambda params: method.weights(params)[1])(params)
    expected = 1e-3 * np.abs(c_LH.astype(float)).sum() + 2e-4 * np.abs(c_LF.astype(float)).sum()
    assert float(penalty) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(gradient["layers"]["head_scale"], np.float32(1e-3) * np.sign(c_LH))
    np.testing.assert_array_equal(gradient["layers"]["neuron_scale"], np.float32(2e-4) * np.sign(c_LF))


def test_penalty_of_bert_base_starts_at_3_70():
    base = bert.Config(vocab_size=128)
    params = bert.shapes(base)
    params, _ = make().init(params, base)
    coefficients = {name: params["layers"][name] for name in ("head_scale", "neuron_scale")}
    outputs = {name: {"kernel": np.ones((12, 1, 1, 1)[:n])} for name, n in (("attention_output", 4), ("mlp_output", 3))}
    _, penalty = make().weights({"layers": {**coefficients, **outputs}})
    assert float(penalty) == pytest.approx(1e-4 * (144 + 36_864), rel=1e-6)


def test_trees_without_coefficients_are_returned_unchanged():
    plain = random_params(CONFIG)
    for tree in (plain, {"embed": plain["embed"]}, {}):
        seen, penalty = make().weights(tree)
        assert seen is tree
        assert penalty == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_coefficients_are_float32_in_a_model_of_any_type(dtype):
    params, _ = make().init(random_params(CONFIG), dataclasses.replace(CONFIG, dtype=dtype))
    assert params["layers"]["head_scale"].dtype == params["layers"]["neuron_scale"].dtype == jnp.float32
    assert params["layers"]["head_scale"].shape == (3, 4)
    assert params["layers"]["neuron_scale"].shape == (3, 20)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_coefficients_neither_decay_nor_have_a_trust_ratio(name):
    params, _ = make().init(random_params(CONFIG), CONFIG)
    params = {"layers": {name: params["layers"][name] for name in ("head_scale", "neuron_scale", "mlp_output")}}
    moved = jax.tree.map(jnp.ones_like, params)
    for decay in (0.0, 10.0):
        optimizer = optim.make(optim.Optimizer(name, 0.9, 0.999, 0.0, decay, True, 0.0))
        direction, _ = optimizer.update(moved, optimizer.init(params), params)
        # With bias correction, Adam's first direction for a gradient of one is one.
        np.testing.assert_allclose(direction["layers"]["head_scale"], 1, rtol=1e-5)
        np.testing.assert_allclose(direction["layers"]["neuron_scale"], 1, rtol=1e-5)
    assert np.abs(direction["layers"]["mlp_output"]["kernel"] - 1).max() > 0.1
