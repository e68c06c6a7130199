"""Dropout by a hash: whether an entry is kept depends only on the seed, the step, the example, and the entry's place
in the model and in the sequence.

So a run draws the same masks with any backend, mesh, number of micro-batches and kernel, and the backward pass
recomputes a mask instead of reading it. `bits` needs about ten integer operations per entry, which compilers fuse into
the surrounding operation. JAX's generator needs about a hundred, and a separate array.

Axes: B examples, S positions, D entries at a position.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# An integer hash with little bias: each bit of the input flips each bit of the output with a probability near 1/2
# (lowbias32, Chris Wellons 2018, nullprogram.com/blog/2018/07/31).
FIRST, SECOND = 0x7FEB352D, 0x846CA68B
GOLDEN = 0x9E3779B9  # 2^32 divided by the golden ratio: spreads small numbers
HEAD = np.int32(1 << 16)  # distance between the indices of neighbouring heads; above the number of keys in any row


def hashed(x):
    """Hashes each number of a uint32 array."""
    x = (x ^ (x >> 16)) * np.uint32(FIRST)
    x = (x ^ (x >> 15)) * np.uint32(SECOND)
    return x ^ (x >> 16)


def spread(number):
    """Maps small whole numbers to uint32 numbers that differ in many bits."""
    return jnp.asarray(number).astype(jnp.uint32) * np.uint32(GOLDEN)


class Draws(NamedTuple):
    """What dropout masks depend on, for a whole step or for one part of the model.

    words: uint32 [2], from the seed, the step and the part. examples_B: each example's index in the whole batch.
    """

    words: Any
    examples_B: Any

    def of(self, part) -> "Draws":
        """The draws of a part of the model, such as a layer, by its number (which may be traced)."""
        return self._replace(words=hashed(self.words + spread(part)))

    def salts(self, seq_len: int):
        """Two random words for every position, uint32 [2, B, S]. With 64 bits together, two positions of a run are
        unlikely to have the same words.
        """
        words_2B1 = hashed(self.words[:, None, None] + spread(self.examples_B)[None, :, None])
        return hashed(words_2B1 + spread(np.arange(seq_len))[None, None])


def draws(key, batch_size: int) -> Draws:
    """The draws of a batch, from a JAX key."""
    return Draws(jax.random.bits(key, (2,), jnp.uint32), jnp.arange(batch_size))


def bits(first, second, index):
    """A random int32 for each index at a position with the salts `first` and `second`. All three are int32 arrays that
    broadcast together.

    The last shift of `hashed` is left out: it changes only low bits, which hardly affect a comparison with a threshold.
    The result is signed, because TPUs cannot compare unsigned numbers.
    """
    x = index + first
    x = (x ^ jax.lax.shift_right_logical(x, jnp.full_like(x, 16))) * np.int32(FIRST) ^ second
    return (x ^ jax.lax.shift_right_logical(x, jnp.full_like(x, 15))) * np.uint32(SECOND).astype(np.int32)


def threshold(rate: float) -> np.int32:
    """Entries whose bits are at least this are kept: a share of 1 - rate."""
    return np.int32(round(rate * 2**32) - 2**31)


def kept(salts, index, rate: float):
    """Which entries are kept: bool, with the shape to which `index` and `salts[0]` broadcast."""
    first, second = (jax.lax.bitcast_convert_type(salt, jnp.int32) for salt in salts)
    return bits(first, second, index) >= threshold(rate)


def index_of(head, key):
    """The index of an attention probability among those of its query: int32. `head` and `key` broadcast together."""
    return HEAD * np.asarray(head, np.int32) + np.asarray(key, np.int32)


def dropout(x, rate: float, draws: Draws | None) -> Any:
    """x, with a share `rate` of its entries zeroed and the others scaled up; unchanged without draws. x is [B, S, D] or
    [B, D], or [B/n, n S, D] if n examples are joined in a row.
    """
    if draws is None or rate == 0:
        return x
    positions = int(np.prod(x.shape[:-1])) // len(draws.examples_B)
    return _dropout(x, draws.salts(positions).reshape(2, *x.shape[:-1]), rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x, salts, rate: float):
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.where(kept(salts[..., None], index, rate), x * np.asarray(1 / (1 - rate), x.dtype), 0).astype(x.dtype)


_dropout.defvjp(
    lambda x, salts, rate: (_dropout(x, salts, rate), salts), lambda rate, salts, dy: (_dropout(dy, salts, rate), None)
)
