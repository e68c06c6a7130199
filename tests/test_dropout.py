"""Dropout masks: their rate, their independence, and what they depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bert_fast import dropout
from bert_fast.dropout import Draws, draws

KEY = jax.random.key(0)


def mask(found: Draws, positions: int, entries: int, rate: float = 0.5) -> np.ndarray:
    """Which entries are kept: [B, S, D]."""
    ones = jnp.ones((len(found.examples_B), positions, entries))
    return np.asarray(dropout.dropout(ones, rate, found)) != 0


def bias(mask, p: float) -> float:
    """How far the share of true entries in `mask` is from p, in standard deviations."""
    return (mask.mean() - p) * np.sqrt(mask.size / (p * (1 - p)))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_kept_entries_are_scaled_and_the_others_zero(rate):
    x = np.random.default_rng(0).normal(size=(4, 64, 96)).astype(np.float32) + 3
    y = np.asarray(dropout.dropout(x, rate, draws(KEY, 4)))
    np.testing.assert_allclose(y[y != 0], (x / (1 - rate))[y != 0], rtol=1e-6)
    assert abs(bias(y == 0, rate)) < 4


def test_without_draws_or_rate_nothing_changes():
    x = jnp.ones((2, 3, 4))
    assert dropout.dropout(x, 0.5, None) is x
    assert dropout.dropout(x, 0.0, draws(KEY, 2)) is x


def test_the_gradient_sees_the_mask_of_the_forward_pass():
    x = jnp.ones((4, 8, 32))
    y, pull = jax.vjp(lambda x: dropout.dropout(x, 0.3, draws(KEY, 4)), x)
    np.testing.assert_array_equal(pull(x)[0], y)


def test_an_examples_mask_does_not_depend_on_the_rest_of_the_batch_or_on_joined_rows():
    found = draws(KEY, 8)
    whole = mask(found, 6, 10)
    part = mask(found._replace(examples_B=found.examples_B[jnp.array([5, 2])]), 6, 10)
    np.testing.assert_array_equal(part, whole[[5, 2]])
    joined = dropout.dropout(jnp.ones((4, 12, 10)), 0.5, found) != 0
    np.testing.assert_array_equal(joined.reshape(8, 6, 10), whole)


def test_parts_examples_positions_and_keys_have_different_masks():
    found = draws(KEY, 2)
    others = [found.of(0), found.of(1), found.of(10_000), found.of(0).of(0), found.of(0).of(1), found.of(1).of(0)]
    masks = [mask(each, 2, 64) for each in (found, *others, draws(jax.random.key(1), 2))]
    rows = np.concatenate([each.reshape(4, 64) for each in masks])
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_a_traced_part_number_gives_the_same_mask_as_a_constant():
    found = draws(KEY, 2)
    traced = jax.jit(lambda part: mask_of(found.of(part)))(jnp.int32(3))
    np.testing.assert_array_equal(traced, mask_of(found.of(3)))


def mask_of(found: Draws):
    return dropout.dropout(jnp.ones((2, 4, 8)), 0.5, found)


def test_heads_of_attention_do_not_share_indices():
    index = dropout.index_of(np.arange(12)[:, None], np.arange(512))
    assert len(np.unique(index)) == 12 * 512


def chi_square(masks: np.ndarray, lag: tuple[int, ...]) -> float:
    """The p-value of a test that each decision in an array is independent of the one at a distance of `lag`."""
    first = masks[tuple(slice(0, size - step) for size, step in zip(masks.shape, lag, strict=True))]
    second = masks[tuple(slice(step, None) for step in lag)]
    table = np.bincount(2 * first.ravel() + second.ravel(), minlength=4).reshape(2, 2)
    return scipy.stats.chi2_contingency(table, correction=False).pvalue


@pytest.mark.slow
def test_28_million_decisions_have_the_right_rate_and_no_correlation():
    """Rate within 1e-4, and independence over entries, positions, examples, parts, steps and seeds.

    If decisions are independent, each p-value is uniform. Then all of 60 p-values exceed 1e-5 with probability 0.9994.
    """
    rate = 0.1
    found: list[np.ndarray] = []
    for seed in range(2):
        for step in range(2):
            key = jax.random.fold_in(jax.random.key(seed), step)
            parts = [draws(key, 8).of(layer).of(use) for layer in range(3) for use in range(3)]
            found.append(np.stack([mask(part, 128, 768, rate).astype(np.int8) for part in parts]))
    masks = np.stack(found).reshape(2, 2, 3, 3, 8, 128, 768)  # seed, step, layer, use, example, position, entry
    assert masks.size > 2.8e7
    assert abs(masks.mean() - (1 - rate)) < 1e-4
    values = []
    for axis, size in enumerate(masks.shape):
        for step in {1, 2, 3, 7, 16, 64, 128} & set(range(1, size)):
            values.append(chi_square(masks, tuple(step if other == axis else 0 for other in range(masks.ndim))))
    for diagonal in ((0, 0, 0, 0, 0, 1, 1), (0, 0, 0, 0, 1, 1, 0), (0, 0, 1, 1, 0, 0, 0), (0, 1, 0, 0, 1, 0, 0)):
        values.append(chi_square(masks, diagonal))
    assert min(values) > 1e-5, sorted(values)[:5]
    # Counts of the 256 patterns of eight neighbouring decisions.
    bits = (masks.reshape(-1, 8) @ (1 << np.arange(8))).astype(np.uint8)
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)
    expected = len(bits) * (1 - rate) ** ones * rate ** (8 - ones)
    assert scipy.stats.chisquare(np.bincount(bits, minlength=256), expected, sum_check=False).pvalue > 1e-5
