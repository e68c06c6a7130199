"""Optimizers compared with optax, and with NumPy written from the papers and the reference code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_fast import BadInput, qkv
from bert_fast.schedule import Schedule
from bert_fast.train import optim

ADAMW = optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, True, 0.0)


@pytest.fixture(scope="module")
def trees():
    """Parameters with a stack of three layers, and a gradient for each of four steps."""
    rng = np.random.default_rng(0)
    shapes = {
        "embed": {"word": (5, 4), "norm": {"scale": (4,)}},
        "layers": {
            "qkv": {"kernel": (3, 4, 3 * 4), "bias": (3, 3 * 4)},
            "attention_output": {"kernel": (3, 2, 2, 4)},
            "coefficient": (3, 2),
        },
    }

    def tree():
        draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
        return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))

    return tree(), [tree() for _ in range(4)]


def after(settings, params, grads, learning_rate=0.01):
    optimizer = optim.make(settings)
    state = optimizer.init(params)
    for grad in grads:
        direction, state = optimizer.update(grad, state, params)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
    return params


def close(one, other, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 2e-6, "atol": 1e-7} | tolerance)), one, other
    )


def test_adamw_with_bias_correction_equals_optax(trees):
    params, grads = trees
    reference = optax.adamw(0.01, eps=1e-6, weight_decay=0.01, mask=optim.decayed)
    state, expected = reference.init(params), params
    for grad in grads:
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer power
            updates, state = reference.update(grad, state, expected)
        expected = optax.apply_updates(expected, updates)
    close(after(ADAMW, params, grads), expected)


def test_adamw_without_bias_correction_equals_the_released_bert_optimizer(trees):
    params, grads = trees
    got = after(dataclasses.replace(ADAMW, bias_correction=False), params, grads)

    def expected(path, w, *gs):  # AdamWeightDecayOptimizer.apply_gradients
        w, m, v = np.array(w), 0.0, 0.0
        for g in map(np.array, gs):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            update = m / (np.sqrt(v) + 1e-6)
            if path[-1].key in ("word", "kernel"):
                update = update + 0.01 * w
            w = w - 0.01 * update
        return w

    close(got, jax.tree_util.tree_map_with_path(expected, params, *grads))


EPS_FIRST = dataclasses.replace(ADAMW, eps_before_correction=True, weight_decay=0.0)


def test_update_with_epsilon_before_the_correction_equals_that_of_keras_fairseq_and_transformers(trees):
    params, grads = trees
    settings = dataclasses.replace(
        EPS_FIRST, eps=0.1
    )  # an epsilon as large as the gradients, so that its place matters

    def expected(w, *gs):
        w, m, v = np.array(w, np.float64), 0.0, 0.0
        for t, g in enumerate(map(np.array, gs), 1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            alpha = 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            w = w - alpha * m / (np.sqrt(v) + 0.1)
        return w

    wanted = jax.tree.map(expected, params, *grads)
    close(after(settings, params, grads), wanted, rtol=1e-5, atol=1e-6)
    other = after(dataclasses.replace(settings, eps_before_correction=False), params, grads)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), other, wanted))) > 1e-3


@pytest.mark.parametrize(("step", "times"), [(1, 32), (100, 3)])
def test_epsilon_before_the_correction_has_32_times_the_effect_in_step_1_and_3_times_in_step_100(step, times):
    """With a constant gradient of 1, the direction is 1 / (1 + the effective epsilon)."""
    params = {"layer": {"kernel": jnp.zeros(1)}}

    def effective_epsilon(settings):
        optimizer = optim.make(dataclasses.replace(settings, eps=1e-2, weight_decay=0.0))
        state, direction = optimizer.init(params), params
        for _ in range(step):
            direction, state = optimizer.update({"layer": {"kernel": jnp.ones(1)}}, state, params)
        return 1 / float(direction["layer"]["kernel"][0]) - 1

    assert round(effective_epsilon(EPS_FIRST) / effective_epsilon(ADAMW)) == times


def test_place_of_epsilon_does_not_matter_without_bias_correction(trees):
    params, grads = trees
    plain = dataclasses.replace(ADAMW, bias_correction=False, eps=0.1)
    first = dataclasses.replace(plain, eps_before_correction=True)
    close(after(first, params, grads), after(plain, params, grads), rtol=0, atol=0)


def test_lamb_has_a_trust_ratio_per_layer_but_none_for_biases_norms_and_coefficients(trees):
    params, grads = trees
    got = after(dataclasses.replace(ADAMW, name="lamb"), params, grads)

    def expected(path, w, *gs):  # arXiv 1904.00962, algorithm 2, with the identity as phi
        def one_tensor(w, gs, matrix):
            w, m, v = np.array(w), 0.0, 0.0
            for t, g in enumerate(map(np.array, gs), 1):
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                r = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
                if matrix:
                    r = r + 0.01 * w
                    r = r * np.linalg.norm(w) / np.linalg.norm(r)
                w = w - 0.01 * r
            return w

        matrix = path[-1].key in ("word", "kernel")
        if path[0].key == "layers":
            return np.stack([one_tensor(w[i], [g[i] for g in gs], matrix) for i in range(3)])
        return one_tensor(w, gs, matrix)

    # Query, key and value are separate tensors.
    params, got, *grads = (qkv.in_layers(qkv.separate, tree) for tree in (params, got, *grads))
    close(got, jax.tree_util.tree_map_with_path(expected, params, *grads), rtol=1e-5, atol=1e-6)


def test_trust_ratio_is_one_if_a_norm_is_zero(trees):
    params, _ = trees
    zeros = jax.tree.map(jnp.zeros_like, params)
    direction, _ = optim.scale_by_trust_ratio().update(params, (), zeros)
    close(direction, params)
    direction, _ = optim.scale_by_trust_ratio().update(zeros, (), params)
    close(direction, zeros)


def test_gradients_are_clipped_by_their_global_norm(trees):
    params, grads = trees
    norm = float(optax.tree.norm(grads[0]))
    scaled = jax.tree.map(lambda g: g * (0.5 / norm), grads[0])
    close(after(dataclasses.replace(ADAMW, clip_norm=0.5), params, grads[:1]), after(ADAMW, params, [scaled]))


def test_unknown_optimizer_is_refused():
    with pytest.raises(BadInput, match="lamb"):
        optim.make(dataclasses.replace(ADAMW, name="lam"))


def test_moments_are_changed_and_counts_are_kept(trees):
    params, grads = trees
    optimizer = optim.make(ADAMW)
    _, state = optimizer.update(grads[0], optimizer.init(params), params)
    changed = optim.change_moments(state, params, lambda moment: jax.tree.map(lambda m: m * 0 + 7, moment))
    moments = next(node for node in jax.tree.leaves(changed, is_leaf=lambda n: isinstance(n, optim.Moments))
                   if isinstance(node, optim.Moments))  # fmt: skip
    assert int(moments.count) == 1
    assert all((leaf == 7).all() for leaf in jax.tree.leaves((moments.mu, moments.nu)))


def test_linear_decay_after_the_warmup_counts_from_step_0():
    schedule = Schedule(peak=1e-4, steps=1_000_000, warmup_steps=10_000)
    assert schedule(0) == 0
    assert schedule(5_000) == pytest.approx(5e-5)
    assert schedule(10_000) == pytest.approx(0.99e-4)  # create_optimizer in BERT's code has the same small drop
    assert schedule(500_000) == pytest.approx(5e-5)
    assert schedule(1_000_000) == schedule(2_000_000) == 0


def test_decay_from_the_end_of_the_warmup_has_no_jump():
    schedule = Schedule(peak=1.0, steps=100, warmup_steps=20, decay_from="warmup", end=0.2)
    assert schedule(20) == 1.0
    assert schedule(60) == pytest.approx(0.6)
    assert schedule(100) == pytest.approx(0.2)


def test_polynomial_and_constant_decay():
    assert Schedule(1.0, 100, decay="polynomial", power=2.0)(50) == pytest.approx(0.25)
    assert Schedule(1.0, 100, decay="constant", warmup_steps=10)(99) == 1.0


def test_exponential_decay_has_the_values_of_the_bing_bert_recipe():
    schedule = Schedule(peak=1e-3, steps=200_000, warmup_steps=4_000, decay="exponential", rate=0.99, interval=1000)
    values = [schedule(step) for step in (50_000, 100_000, 200_000)]
    np.testing.assert_allclose(values, [6.3e-4, 3.8e-4, 1.39e-4], rtol=5e-3)


def test_a_warm_up_below_one_is_a_share_of_the_steps():
    schedule = Schedule(1.0, 1_000_000, warmup_steps=0.01)
    assert schedule.warmup == 10_000
    assert dataclasses.replace(schedule, steps=305).warmup == 3
    assert Schedule(1.0, 300, warmup_steps=20).warmup == 20
    assert [Schedule(1.0, 100, warmup_steps=0.1)(step) for step in (0, 5, 10)] == [0.0, 0.5, 0.9]
