"""The query, key and value projections of a layer are stored as one leaf, so that one product computes all three.

The columns of this leaf are ordered by head: query, key and value of head 0, then those of head 1, and so on. So a
model with fewer heads uses a prefix of the columns, and a mesh can split the columns between heads. Code that treats
query, key and value separately converts the layers of parameters, gradients and moments with `separate` and `join`.

Axes: as in layers.py; W = 3 H E, all columns.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

NAMES = ("query", "key", "value")


def separate(layers):
    """`layers` with `query`, `key` and `value` in place of `qkv`: kernels [L, D, H, E], biases [L, H, E].

    `layers` is a stack, or a single layer without the axis L. If it has no `qkv`, it is returned unchanged.
    """
    layers = dict(layers)
    if "qkv" not in layers:
        return layers
    head_size = layers["attention_output"]["kernel"].shape[-2]
    three: dict[str, dict] = {name: {} for name in NAMES}
    for leaf, array_W in layers.pop("qkv").items():
        for name, part_HE in zip(NAMES, parts(array_W, head_size), strict=True):
            three[name][leaf] = part_HE
    return {**layers, **three}


def join(layers):
    """The inverse of `separate`."""
    layers = dict(layers)
    if NAMES[0] not in layers:
        return layers
    three = [layers.pop(name) for name in NAMES]
    return {**layers, "qkv": {leaf: whole(*(one[leaf] for one in three)) for leaf in three[0]}}


def is_separate(tree) -> bool:
    """Whether a tree of parameters has `query`, `key` and `value`, like checkpoints before format 5."""
    return NAMES[0] in tree.get("layers", {})


def in_layers(change: Callable, tree):
    """A tree of parameters with `change` (`separate` or `join`) applied to its layers, if it has any."""
    return {**tree, "layers": change(tree["layers"])} if "layers" in tree else tree


def parts(array_W, head_size: int):
    """Query, key and value, each [..., H, E], from a leaf or activations [..., W]."""
    array_H3E = by_head(array_W, head_size)
    return tuple(array_H3E[..., index, :] for index in range(3))


def by_head(array_W, head_size: int):
    """[..., W] as [..., H, 3, E]."""
    return array_W.reshape(*array_W.shape[:-1], array_W.shape[-1] // (3 * head_size), 3, head_size)


def columns(array_W, head_size: int, which: slice):
    """Only some of query, key and value: [..., H * len(which) * E]."""
    chosen = by_head(array_W, head_size)[..., which, :]
    return chosen.reshape(*array_W.shape[:-1], math.prod(chosen.shape[-3:]))


def with_zeros(array_BNC, head_size: int, which: slice):
    """The inverse of `columns`, with zeros in the columns that it leaves out: [B, N, W]."""
    count = len(range(3)[which])
    array_BNHCE = array_BNC.reshape(*array_BNC.shape[:2], -1, count, head_size)
    padding = [(0, 0)] * 3 + [(which.start, 3 - which.stop), (0, 0)]
    return jnp.pad(array_BNHCE, padding).reshape(*array_BNC.shape[:2], -1)


def whole(query_HE, key_HE, value_HE):
    """The inverse of `parts`."""
    stack = np.stack if isinstance(query_HE, np.ndarray) else jnp.stack
    *lead, heads, head_size = query_HE.shape
    return stack([query_HE, key_HE, value_HE], -2).reshape(*lead, heads * 3 * head_size)
