"""The layers of BERT as Flax Linen modules, and the shape of a model.

Axes: B examples, S tokens of an example, Q queries (tokens that are updated), K keys (tokens that are
attended to), P prediction slots, L layers, H heads, E size of a head, D width, F hidden width of the
feed-forward network, V rows of the embedding table, T token types.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def gelu(x):
    """x times the standard normal CDF (erf form): same shape and type.

    The gradient is computed from x alone. Otherwise three arrays as wide as the feed-forward network
    are kept for the backward pass, and on a CPU writing them takes longer than recomputing them.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def _gelu_backward(x, dy):
    x = jax.lax.optimization_barrier(x)  # otherwise the compiler reuses the forward pass's erf, and so keeps it
    density = jnp.exp(-0.5 * x * x) * np.sqrt(0.5 / np.pi).astype(x.dtype)
    return (dy * (0.5 * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype))) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

ACTIVATIONS = {"gelu": gelu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of a model. Defaults are BERT-base's (Devlin et al. 2019, and its released `bert_config.json`).

    `heads` and `mlp_dim` are one number, or one per layer if layers differ. The stacked parameters are
    then as wide as the widest layer, and each layer reads only its own number of leading heads and neurons.
    """

    vocab_size: int
    depth: int = 12
    width: int = 768
    heads: int | tuple[int, ...] = 12
    head_size: int = 64
    mlp_dim: int | tuple[int, ...] = 3072
    max_len: int = 512
    type_count: int = 2
    norm: str = "post"  # LayerNorm after each residual sum; "pre": before each branch and once at the end
    embed_norm: bool = True  # LayerNorm on the embeddings
    activation: str = "gelu"
    tied: bool = True  # the MLM head predicts with the embedding table; False: with its own table
    pooler: bool = False  # the [CLS] layer and its next-sentence head
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    residual_init_std: float = 0.02  # for the two matrices that write to the residual stream
    norm_eps: float = 1e-12
    dtype: str = "float32"  # of activations; parameters, softmax, LayerNorm statistics and losses are float32
    special_ids: tuple[int, ...] = (0, 100, 101, 102, 103)  # [PAD] [UNK] [CLS] [SEP] [MASK]

    @property
    def table_rows(self) -> int:
        """Vocabulary size, padded to a multiple of 128 (a TPU register's lanes). Padded ids are never predicted."""
        return -(-self.vocab_size // 128) * 128

    @property
    def heads_L(self) -> tuple[int, ...]:
        return self.heads if isinstance(self.heads, tuple) else (self.heads,) * self.depth

    @property
    def mlp_dim_L(self) -> tuple[int, ...]:
        return self.mlp_dim if isinstance(self.mlp_dim, tuple) else (self.mlp_dim,) * self.depth

    @property
    def widths_L(self) -> list[tuple[int, int]]:
        """Heads and neurons of each layer."""
        return list(zip(self.heads_L, self.mlp_dim_L, strict=True))

    def with_widths(self, heads_L: Sequence[int], mlp_dim_L: Sequence[int]) -> "Config":
        """The model with these heads and neurons per layer, as one number if all layers agree."""
        heads, mlp_dim = (n_L[0] if len(set(n_L)) == 1 else tuple(n_L) for n_L in (heads_L, mlp_dim_L))
        return dataclasses.replace(self, heads=heads, mlp_dim=mlp_dim)


@jax.custom_vjp
def residual(x):
    """x itself; its gradient is written to memory once.

    In a pre-LN model the gradient of the residual stream is a sum over all branches above, and XLA for CPU (jax
    0.10.2) recomputes that sum at each use. This took a third of a step's time with 12 layers at BERT-base widths and
    half with slim ones, and grows with the square of the depth. XLA does not fuse across a conditional; an
    optimization_barrier is removed before fusion. Doing the same for x itself costs more time than it saves.
    """
    return x


def _residual_backward(_, dx):
    def alone(dx):
        return jax.lax.cond(jax.lax.optimization_barrier(np.bool_(True)), lambda dx: dx, jnp.negative, dx)

    return (jax.lax.platform_dependent(dx, cpu=alone, default=lambda dx: dx),)


residual.defvjp(lambda x: (x, None), _residual_backward)


def drawn(shape: Sequence[int], rate: float, key):
    """Which entries a dropout of `rate` keeps, bool; None where it keeps all: key is None, or the rate 0.

    Each entry is decided by 16 random bits, two by one draw of the generator: half of its work, and
    the rate is met within 1e-5. Raises OverflowError for a rate so small that 16 bits cannot tell it from 0.
    """
    if key is None or rate == 0:
        return None
    keep, width = np.uint32(np.uint16(round((1 - rate) * 2**16))), shape[-1]  # uint16 raises the OverflowError
    bits = jax.random.bits(key, (*shape[:-1], -(-width // 2)), jnp.uint32)
    return jnp.concatenate([(bits & 0xFFFF) < keep, (bits >> 16) < keep], axis=-1)[..., :width]


def scaled(x, rate: float, kept):
    """x where it is kept, scaled up by what is lost, and zero elsewhere; unchanged where `kept` is None."""
    return x if kept is None else jnp.where(kept, x * (2**16 / round((1 - rate) * 2**16)), 0).astype(x.dtype)


def dropout(x, rate: float, key):
    """x with a share of `rate` of its entries zeroed and the others scaled up; unchanged where key is None."""
    return scaled(x, rate, drawn(x.shape, rate, key))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q_BQHE, k_BKHE, v_BKHE, allowed_BQK, rate: float, key):
    """Softmax attention of each head over the allowed keys: [B, Q, H, E]; dropout of `rate` where key is given.

    A query without any key gets the mean of all values; nothing may depend on it (as on padding), since its gradient
    is not held back from queries and keys.

    Its gradient is written out so that the probabilities are kept in the type of the activations, and nothing else of
    that size: what is derived otherwise keeps float32 logits, and sums over the keys in the backward pass. That sum is
    the one over E of the output times its gradient (Dao et al. 2022, arXiv 2205.14135, appendix B.2).
    """
    return _attend(q_BQHE, k_BKHE, v_BKHE, allowed_BQK, rate, key)[0]


def _attend(q_BQHE, k_BKHE, v_BKHE, allowed_BQK, rate: float, key):
    q_BQHE = q_BQHE * q_BQHE.shape[-1] ** -0.5
    logits_BHQK = jnp.einsum("BQHE,BKHE->BHQK", q_BQHE, k_BKHE, preferred_element_type=jnp.float32)
    # Finite: with minus infinity a row without any key would be NaN.
    logits_BHQK = jnp.where(allowed_BQK[:, None], logits_BHQK, -0.7 * np.finfo(np.float32).max)
    probs_BHQK = jax.nn.softmax(logits_BHQK).astype(v_BKHE.dtype)
    kept_BHQK = drawn(probs_BHQK.shape, rate, key)
    out_BQHE = jnp.einsum("BHQK,BKHE->BQHE", scaled(probs_BHQK, rate, kept_BHQK), v_BKHE)
    return out_BQHE, (q_BQHE, k_BKHE, v_BKHE, probs_BHQK, kept_BHQK, out_BQHE)


def _attend_backward(rate: float, residuals, dout_BQHE):
    q_BQHE, k_BKHE, v_BKHE, probs_BHQK, kept_BHQK, out_BQHE = residuals
    dv_BKHE = jnp.einsum("BHQK,BQHE->BKHE", scaled(probs_BHQK, rate, kept_BHQK), dout_BQHE)
    dprobs_BHQK = jnp.einsum("BQHE,BKHE->BHQK", dout_BQHE, v_BKHE, preferred_element_type=jnp.float32)
    mean_BQH = jnp.sum(dout_BQHE.astype(jnp.float32) * out_BQHE.astype(jnp.float32), axis=-1)
    dlogits_BHQK = scaled(dprobs_BHQK, rate, kept_BHQK) - jnp.swapaxes(mean_BQH, 1, 2)[..., None]
    dlogits_BHQK = (probs_BHQK.astype(jnp.float32) * dlogits_BHQK).astype(q_BQHE.dtype)
    dq_BQHE = jnp.einsum("BHQK,BKHE->BQHE", dlogits_BHQK, k_BKHE) * q_BQHE.shape[-1] ** -0.5
    dk_BKHE = jnp.einsum("BHQK,BQHE->BKHE", dlogits_BHQK, q_BQHE)
    return dq_BQHE, dk_BKHE, dv_BKHE, None, None


attend.defvjp(_attend, _attend_backward)


def apply(module: nn.Module, params: Mapping[str, Any], *args) -> Any:
    """Output of `module` with the parameters `params`."""
    return module.apply({"params": params}, *args)


def keys_of(key, count: int):
    """`count` keys derived from `key`; all None if `key` is None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


class LayerNorm(nn.LayerNorm):
    """Flax's LayerNorm. It subtracts float32 statistics from x of any type, which needs JAX's standard promotion."""

    __call__ = jax.numpy_dtype_promotion("standard")(nn.LayerNorm.__call__)


def layer_norm(config: Config, name: str | None = None):
    """LayerNorm over the width, with statistics in float32."""
    return LayerNorm(epsilon=config.norm_eps, dtype=config.dtype, use_fast_variance=True, name=name)


class Linear(nn.Module):
    """`x . kernel + bias`: contracts the last `contract` axes of x; the new axes have the sizes `to`."""

    config: Config
    to: tuple[int, ...]
    contract: int = 1
    residual: bool = False

    @nn.compact
    def __call__(self, x):
        config = self.config
        of = x.shape[x.ndim - self.contract :]
        std = config.residual_init_std if self.residual else config.init_std
        # Truncated at two standard deviations, like `create_initializer` of google-research/bert.
        kernel = self.param("kernel", nn.initializers.truncated_normal(std), (*of, *self.to))
        bias = self.param("bias", nn.initializers.zeros_init(), self.to)
        axes = (tuple(range(x.ndim - self.contract, x.ndim)), tuple(range(self.contract)))
        if kernel.dtype != config.dtype:
            # A separate array: otherwise the TPU compiler repeats the cast in every product.
            kernel = jax.lax.optimization_barrier(kernel.astype(config.dtype))
        y = jax.lax.dot_general(x, kernel, (axes, ((), ())))
        return y + jnp.expand_dims(bias.astype(config.dtype), tuple(range(y.ndim - bias.ndim)))


class Embed(nn.Module):
    """Sum of word, position and token-type embeddings: [B, S, D]."""

    config: Config

    @nn.compact
    def __call__(self, batch, key):
        config = self.config
        table = nn.initializers.truncated_normal(config.init_std)
        word_VD = self.param("word", table, (config.table_rows, config.width))
        position_SD = self.param("position", table, (config.max_len, config.width))
        type_TD = self.param("type", table, (config.type_count, config.width))
        x_BSD = word_VD[batch["ids"]] + position_SD[batch["positions"]] + type_TD[batch["types"]]
        x_BSD = layer_norm(config, "norm")(x_BSD) if config.embed_norm else x_BSD.astype(config.dtype)
        return dropout(x_BSD, config.dropout, key)


class Block(nn.Module):
    """One encoder layer: x_BQD, updated by attention to y_BKD and a feed-forward network.

    `scale` multiplies both residual branches; None leaves them unscaled.
    """

    config: Config
    heads: int
    mlp_dim: int

    @nn.compact
    def __call__(self, x_BQD, y_BKD, allowed_BQK, scale, key):
        config = self.config
        pre = config.norm == "pre"
        probs_key, attention_key, mlp_key = keys_of(key, 3)
        attention_norm, mlp_norm = layer_norm(config, "attention_norm"), layer_norm(config, "mlp_norm")

        def add(x_BQD, branch_BQD, key):
            branch_BQD = dropout(branch_BQD, config.dropout, key)
            return x_BQD + (branch_BQD if scale is None else branch_BQD * scale.astype(branch_BQD.dtype))

        def attention(x_BQD, y_BKD):
            q, k, v = (
                Linear(config, (self.heads, config.head_size), name=name)(z)
                for name, z in (("query", x_BQD), ("key", y_BKD), ("value", y_BKD))
            )
            a_BQHE = attend(q, k, v, allowed_BQK, config.attention_dropout, probs_key)
            return Linear(config, (config.width,), contract=2, residual=True, name="attention_output")(a_BQHE)

        def mlp(x_BQD):
            h_BQF = ACTIVATIONS[config.activation](Linear(config, (self.mlp_dim,), name="mlp_hidden")(x_BQD))
            return Linear(config, (config.width,), residual=True, name="mlp_output")(h_BQF)

        if pre:
            normed_BKD = attention_norm(y_BKD)
            normed_BQD = normed_BKD if y_BKD is x_BQD else attention_norm(x_BQD)
            x_BQD = residual(add(x_BQD, attention(normed_BQD, normed_BKD), attention_key))
            return add(x_BQD, mlp(mlp_norm(x_BQD)), mlp_key)
        x_BQD = attention_norm(add(x_BQD, attention(x_BQD, y_BKD), attention_key))
        return mlp_norm(add(x_BQD, mlp(x_BQD), mlp_key))


class MlmHead(nn.Module):
    """Logits over the table's rows at the given vectors: [..., V], float32, padded ids at minus infinity."""

    config: Config

    @nn.compact
    def __call__(self, x_BPD, word_VD):
        config = self.config
        x_BPD = ACTIVATIONS[config.activation](Linear(config, (config.width,), name="dense")(x_BPD))
        x_BPD = layer_norm(config, "norm")(x_BPD)
        bias_V = self.param("bias", nn.initializers.zeros_init(), (config.table_rows,))
        bias_V = jnp.where(np.arange(config.table_rows) < config.vocab_size, bias_V, -jnp.inf)
        logits_BPV = jnp.einsum("BPD,VD->BPV", x_BPD, word_VD.astype(config.dtype), preferred_element_type=jnp.float32)
        return logits_BPV + bias_V[None, None]


class NextHead(nn.Module):
    """Logits of "B follows A" and "B is random" from the [CLS] vector: [B, 2], float32."""

    config: Config

    @nn.compact
    def __call__(self, x_BD):
        pooled_BD = jnp.tanh(Linear(self.config, (self.config.width,), name="pooler")(x_BD))
        return Linear(self.config, (2,), name="next")(pooled_BD).astype(jnp.float32)
