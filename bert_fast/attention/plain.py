"""Attention in plain JAX: the reference for the kernels, and what runs on a CPU.

Axes: as in layers.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import dropout, qkv


def attend(product_BNW, bias_W, segments_BN, salts_2BN, shape, joined: int):
    """See `attention.attend`."""
    q_BQHE, k_BKHE, v_BKHE, allowed_BQK = heads_of(product_BNW, bias_W, segments_BN, shape)
    salts_2BQ = None if salts_2BN is None else salts_2BN[..., : shape.queries]
    out_BQHE: Any = of_heads(q_BQHE, k_BKHE, v_BKHE, allowed_BQK, salts_2BQ, shape.rate, joined)
    return out_BQHE.reshape(*out_BQHE.shape[:2], -1)


def heads_of(product_BNW, bias_W, segments_BN, shape):
    """Queries, keys and values of each head, and which keys each query may attend to: bool [B, Q, K]."""
    product_BNW = product_BNW + bias_W.astype(product_BNW.dtype)[None, None]
    q_BNHE, k_BNHE, v_BNHE = qkv.parts(product_BNW, shape.head_size)
    allowed_BQK = segments_BN[:, : shape.queries, None] == segments_BN[:, None, : shape.keys]
    return q_BNHE[:, : shape.queries], k_BNHE[:, : shape.keys], v_BNHE[:, : shape.keys], allowed_BQK


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def of_heads(q_BQHE, k_BKHE, v_BKHE, allowed_BQK, salts_2BQ, rate: float, joined: int = 1):
    """Softmax attention of each head over the allowed keys: [B, Q, H, E].

    A query without an allowed key gets the mean of all values. Nothing may depend on that output: its
    gradient would reach the queries and keys, although the output does not depend on them.

    The gradient is written by hand. It keeps only one array of the size of the logits: the probabilities, in the type
    of the activations. JAX's own gradient keeps float32 logits, and its backward pass sums each probability times its
    gradient over the keys. Here, the output times its gradient is summed over E. The two sums are equal (Dao et al.
    2022, arXiv 2205.14135, appendix B.2).
    """
    return _forward(q_BQHE, k_BKHE, v_BKHE, allowed_BQK, salts_2BQ, rate, joined)[0]


def dropped(x_BHQK, salts_2BQ, rate: float, joined: int):
    """Probabilities, or their gradients, after dropout; unchanged if there are no salts."""
    if salts_2BQ is None:
        return x_BHQK
    _, heads, _, keys = x_BHQK.shape
    index_HQK = dropout.index_of(np.arange(heads)[:, None, None], np.arange(keys)[None, None] % (keys // joined))
    kept_BHQK = dropout.kept(salts_2BQ[:, :, None, :, None], index_HQK[None], rate)
    return jnp.where(kept_BHQK, x_BHQK * np.asarray(1 / (1 - rate), x_BHQK.dtype), 0).astype(x_BHQK.dtype)


def _forward(q_BQHE, k_BKHE, v_BKHE, allowed_BQK, salts_2BQ, rate: float, joined: int):
    q_BQHE = q_BQHE * q_BQHE.shape[-1] ** -0.5
    logits_BHQK = jnp.einsum("BQHE,BKHE->BHQK", q_BQHE, k_BKHE, preferred_element_type=jnp.float32)
    # Masked logits are finite, because minus infinity would give NaN for a query without an allowed key.
    logits_BHQK = jnp.where(allowed_BQK[:, None], logits_BHQK, -0.7 * np.finfo(np.float32).max)
    probs_BHQK = jax.nn.softmax(logits_BHQK).astype(v_BKHE.dtype)
    out_BQHE = jnp.einsum("BHQK,BKHE->BQHE", dropped(probs_BHQK, salts_2BQ, rate, joined), v_BKHE)
    return out_BQHE, (q_BQHE, k_BKHE, v_BKHE, probs_BHQK, salts_2BQ, out_BQHE)


def _backward(rate: float, joined: int, residuals, dout_BQHE):
    q_BQHE, k_BKHE, v_BKHE, probs_BHQK, salts_2BQ, out_BQHE = residuals
    dv_BKHE = jnp.einsum("BHQK,BQHE->BKHE", dropped(probs_BHQK, salts_2BQ, rate, joined), dout_BQHE)
    dprobs_BHQK = jnp.einsum("BQHE,BKHE->BHQK", dout_BQHE, v_BKHE, preferred_element_type=jnp.float32)
    mean_BQH = jnp.sum(dout_BQHE.astype(jnp.float32) * out_BQHE.astype(jnp.float32), axis=-1)
    dlogits_BHQK = dropped(dprobs_BHQK, salts_2BQ, rate, joined) - jnp.swapaxes(mean_BQH, 1, 2)[..., None]
    dlogits_BHQK = (probs_BHQK.astype(jnp.float32) * dlogits_BHQK).astype(q_BQHE.dtype)
    dq_BQHE = jnp.einsum("BHQK,BKHE->BQHE", dlogits_BHQK, k_BKHE) * q_BQHE.shape[-1] ** -0.5
    dk_BKHE = jnp.einsum("BHQK,BQHE->BKHE", dlogits_BHQK, q_BQHE)
    return dq_BQHE, dk_BKHE, dv_BKHE, None, None


of_heads.defvjp(_forward, _backward)
