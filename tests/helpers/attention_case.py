"""Random inputs for attention, for any backend."""

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import dropout
from bert_fast.attention import attend

KEY = jax.random.key(0)


class Case:
    """Random inputs for attention: in each example, two documents and then padding."""

    def __init__(self, rows, length, heads, queries, keys, joined=1, rate=0.1, dtype="float32"):
        rng = np.random.default_rng(0)
        self.product_BNW = jnp.asarray(rng.normal(size=(rows, length, 3 * heads * 64)), dtype)
        self.bias_W = jnp.asarray(0.1 * rng.normal(size=3 * heads * 64), jnp.float32)
        self.weights_BQA = jnp.asarray(rng.normal(size=(rows, queries, heads * 64)), dtype)
        of = length // joined
        each = np.repeat([1, 2, 0], [of // 2, of // 4, of - of // 2 - of // 4])
        row = (joined * each + np.arange(joined)[:, None]).reshape(-1)
        self.segments_BN = jnp.asarray(np.tile(row, (rows, 1)), jnp.int32)
        self.draws = dropout.draws(KEY, rows * joined)
        self.arguments = {"queries": queries, "keys": keys, "head_size": 64, "rate": rate}

    def run(self, asked: str):
        """(output, gradient with respect to `product_BNW`, gradient with respect to `bias_W`)."""

        def out(product_BNW, bias_W):
            return attend(product_BNW, bias_W, self.segments_BN, draws=self.draws, asked=asked, **self.arguments)

        out_BQA, pull = jax.vjp(out, self.product_BNW, self.bias_W)
        return out_BQA, *pull(self.weights_BQA)
