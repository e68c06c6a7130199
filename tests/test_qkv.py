"""Query, key and value are stored as one leaf for the matrix product. `separate` makes three tensors of it."""

import jax
import numpy as np
import pytest

from bert_fast import bert, layers, qkv
from helpers.reference import random_params
from helpers.trunk import POST, equal


def test_columns_are_ordered_by_head():
    q, k, v = (np.full((2, 3), value) + [[0], [10]] for value in (1, 2, 3))
    assert qkv.whole(q, k, v).tolist() == [1] * 3 + [2] * 3 + [3] * 3 + [11] * 3 + [12] * 3 + [13] * 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_join_is_the_inverse_of_separate_and_both_keep_the_dtype(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(POST))
    apart = qkv.in_layers(qkv.separate, params)
    assert qkv.is_separate(apart)
    assert not qkv.is_separate(params)
    assert apart["layers"]["query"]["kernel"].shape == (3, POST.width, 2, 8)
    assert apart["layers"]["value"]["bias"].shape == (3, POST.heads, POST.head_size)
    equal(qkv.in_layers(qkv.join, apart), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(qkv.in_layers(qkv.join, apart))} == {params["embed"]["word"].dtype}
    assert qkv.in_layers(qkv.join, {"embed": 1}) == {"embed": 1}


def test_initial_weights_equal_those_of_three_separate_layers():
    """Initial weights are the same as when query, key and value were three separate leaves."""
    key = jax.random.key(5)
    params = bert.init(POST, key)
    layer_key = jax.random.fold_in(jax.random.split(key, 4)[1], 1)

    class Apart(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, x):
            for name in qkv.NAMES:
                layers.nn.DenseGeneral((2, 8), name=name, kernel_init=layers.nn.initializers.truncated_normal(0.02))(x)

    alone = Apart().init(layer_key, np.zeros((1, POST.width), np.float32))["params"]
    apart = qkv.separate(params["layers"])
    for name in qkv.NAMES:
        expected = alone[name]["kernel"].reshape(POST.width, 2, 8)
        # DenseGeneral draws the kernel as a matrix, which gives the same numbers in the same order.
        np.testing.assert_array_equal(apart[name]["kernel"][1], expected)
