"""The train step: frozen parameters, micro-batches, dropped layers, losses and randomness."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import bert
from bert_fast.plan import Route, edit, pack, whole
from bert_fast.train.step import join, micro_batches, partition, whole_batch
from helpers.steps import CONFIG, PROGRAM, batch_of, dots, step_and_state

MASK = (0, 1, 2, 3, 4)  # special ids
SEED = np.uint32(0)


@pytest.fixture(scope="module")
def params():
    return bert.init(CONFIG, jax.random.key(0))


def test_frozen_layers_have_no_backward_pass(params):
    def count(frozen):
        program = dataclasses.replace(PROGRAM, plan=edit(whole(3), 0, frozen, frozen=True) if frozen else whole(3))
        step, state = step_and_state(program, params)
        return dots(jax.make_jaxpr(step)(state, batch_of(), Route(), 0.1, SEED).jaxpr)

    # A layer has 6 products: qkv, scores, values, output, and two in the feed-forward network. Each product has two
    # more in its backward pass. If the first layer is frozen, the lowest layer that learns needs no gradient of its
    # input, which saves one more product.
    assert count(0) - count(1) == 12 + 1
    assert count(1) - count(2) == 12


def test_frozen_parameters_are_byte_identical_after_steps(params):
    plan = edit(whole(3), 0, 2, frozen=True)
    program = dataclasses.replace(PROGRAM, plan=plan, frozen_paths=("embed/", "mlm/norm"))
    step, state = step_and_state(program, params)
    step = jax.jit(step)
    for seed in range(3):
        state, _ = step(state, batch_of(seed), Route(), 0.1, SEED)
    after = join(state.params, state.frozen)
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), params, after)
    assert jax.tree.all(same["embed"])
    assert jax.tree.all(same["mlm"]["norm"])
    kernels = params["layers"]["qkv"]["kernel"], after["layers"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernels[0][:2], kernels[1][:2])
    assert (kernels[0][2] != kernels[1][2]).any()
    moments = jax.tree.leaves(state.opt_state)
    assert sum(leaf.size for leaf in moments) < 2.1 * sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_join_inverts_partition(params):
    for frozen, patterns in ((0, ()), (2, ("embed/word",)), (1, ("embed/", "mlm/"))):
        plan = edit(whole(3), 0, frozen, frozen=True) if frozen else whole(3)
        learns, fixed = partition(params, dataclasses.replace(PROGRAM, plan=plan, frozen_paths=patterns))
        joined = join(learns, fixed)
        assert jax.tree.structure(joined) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_two_micro_batches_hold_every_example_once_and_take_alternate_examples():
    batch = {"ids": np.arange(24).reshape(8, 3)}
    split = micro_batches(batch, 2)
    np.testing.assert_array_equal(split["ids"][:, :, 0] // 3, [[0, 2, 4, 6], [1, 3, 5, 7]])
    np.testing.assert_array_equal(whole_batch(split)["ids"], batch["ids"])


def test_each_micro_batch_runs_its_own_layers(params):
    program = dataclasses.replace(PROGRAM, micro_batches=2)
    scale_ML = np.array([[1, 0, 2], [0, 1, 2]], np.float32)
    plan, route = pack(program.plan, scale_ML)
    step, state = step_and_state(dataclasses.replace(program, plan=plan), params)
    batch = batch_of() | {"weights": np.ones((4, 2), np.float32)}
    _, metrics = jax.jit(step)(state, batch, route, 0.1, SEED)
    losses = []
    for m in range(2):
        one, one_route = pack(whole(3), scale_ML[m : m + 1])
        half = {key: value[m::2] for key, value in batch.items()}
        x_BSD = bert.encode(CONFIG, params, {}, half, one, jax.tree.map(lambda r: r[0], one_route), None)
        losses.append(bert.losses(CONFIG, params, {}, x_BSD, half).mlm_BP.mean())
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-6)


def test_dropped_layers_get_a_gradient_of_zero_and_still_decay(params):
    # As in the reference code of progressive layer dropping: no gradient, but weight decay at every step.
    plan, route = pack(whole(3), np.array([[1, 0, 1]], np.float32))
    step, state = step_and_state(dataclasses.replace(PROGRAM, plan=plan), params)
    state, _ = jax.jit(step)(state, batch_of(), route, 0.1, SEED)
    kernel, before = state.params["layers"]["qkv"]["kernel"], params["layers"]["qkv"]["kernel"]
    np.testing.assert_allclose(kernel[1], before[1] * (1 - 0.1 * 0.01), rtol=1e-6)
    assert np.abs(kernel[0] - before[0]).max() > 0.01


def test_loss_is_the_weighted_mean_over_predictions(params):
    step, state = step_and_state(PROGRAM, params)
    batch = batch_of()
    _, metrics = jax.jit(step)(state, batch, Route(), 0.1, SEED)
    x_BSD = bert.encode(CONFIG, params, {}, batch, whole(3), Route(), None)
    ce_BP = bert.losses(CONFIG, params, {}, x_BSD, batch).mlm_BP
    expected = float((ce_BP * batch["weights"]).sum() / batch["weights"].sum())
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["mlm_sum"] / metrics["predictions"]) == pytest.approx(expected, rel=1e-6)


def test_losses_at_mask_tokens_are_also_summed_separately(params):
    step, state = step_and_state(
        dataclasses.replace(PROGRAM, model=dataclasses.replace(CONFIG, special_ids=MASK)), params
    )
    batch = batch_of()
    batch["ids"][0, 2] = batch["ids"][1, 5] = batch["ids"][2, 3] = MASK[-1]  # the third [MASK] is not predicted
    batch["weights"] = np.float32([[0.5, 1], [1, 2], [1, 1], [0, 0]])
    _, metrics = jax.jit(step)(state, batch, Route(), 0.1, SEED)
    x_BSD = bert.encode(CONFIG, params, {}, batch, whole(3), Route(), None)
    ce_BP = bert.losses(CONFIG, params, {}, x_BSD, batch).mlm_BP
    assert float(metrics["masks"]) == 2.5
    assert float(metrics["mask_sum"]) == pytest.approx(float(0.5 * ce_BP[0, 0] + 2 * ce_BP[1, 1]), rel=1e-6)


def test_batch_without_predictions_gives_a_finite_loss(params):
    step, state = step_and_state(PROGRAM, params)
    batch = batch_of() | {"weights": np.zeros((4, 2), np.float32)}
    state, metrics = jax.jit(step)(state, batch, Route(), 0.1, SEED)
    assert float(metrics["loss"]) == 0
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), state.params))


def test_randomness_is_a_function_of_seed_and_step(params):
    program = dataclasses.replace(PROGRAM, model=dataclasses.replace(CONFIG, dropout=0.5))
    step, state = step_and_state(program, params)
    step = jax.jit(step)
    loss = lambda state: float(step(state, batch_of(), Route(), 0.0, SEED)[1]["loss"])  # noqa: E731
    assert loss(state) == loss(state)
    assert loss(state) != loss(state._replace(step=state.step + 1))


@pytest.mark.slow
def test_gradient_of_the_residual_stream_is_summed_once():
    # If each use recomputed the sum over the layers above, the step time would grow with the depth squared.
    def sums(depth):
        model = dataclasses.replace(CONFIG, norm="pre", depth=depth)
        program = dataclasses.replace(PROGRAM, model=model, plan=whole(depth))
        step, state = step_and_state(program, bert.init(model, jax.random.key(0)))
        text = jax.jit(step).lower(state, batch_of(), Route(), 0.1, SEED).compile().as_text()
        return len(re.findall(r" = f32\[4,8,\d+\]\S* add\(", text))

    assert sums(9) - sums(6) == sums(6) - sums(3) > 0
