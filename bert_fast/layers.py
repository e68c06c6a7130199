"""The layers of BERT as Flax Linen modules, and the shape of a model.

Axes: B examples, S tokens of an example, Q queries (tokens that are updated), K keys (tokens that are
attended to), N tokens that are updated, attended to or both, P prediction slots, L layers, H heads, E size of a head,
D width, W = 3 H E, F hidden width of the feed-forward network, V rows of the embedding table, T token types.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import qkv
from bert_fast.activations import ACTIVATIONS
from bert_fast.attention import attend
from bert_fast.cross_entropy import fused
from bert_fast.dropout import dropout


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of a model. Defaults are BERT-base's (Devlin et al. 2019, and its released `bert_config.json`).

    `heads` and `mlp_dim` are one number, or one per layer if layers differ. The stacked parameters are
    then as wide as the widest layer. A layer with n heads reads only the first n heads; the same holds for neurons.
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
    attention: str = "auto"  # a backend of attention/, or "auto": the fastest for the device
    recompute: str = "none"  # what the backward pass recomputes instead of storing it: none, attention or block
    dtype: str = "float32"  # of activations; parameters, softmax, LayerNorm statistics and losses are float32
    special_ids: tuple[int, ...] = (0, 100, 101, 102, 103)  # [PAD] [UNK] [CLS] [SEP] [MASK]

    def portable(self) -> "Config":
        """This model for other shapes and machines than training's: a kernel that was asked for becomes "auto"."""
        return self if self.attention == "plain" else dataclasses.replace(self, attention="auto")

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
        """The model with these heads and neurons per layer, each as one number if all layers are equal."""
        heads, mlp_dim = (n_L[0] if len(set(n_L)) == 1 else tuple(n_L) for n_L in (heads_L, mlp_dim_L))
        return dataclasses.replace(self, heads=heads, mlp_dim=mlp_dim)


@jax.custom_vjp
def residual(x):
    """x itself; its gradient is written to memory once.

    In a pre-LN model the gradient of the residual stream is a sum over all branches above, and XLA for CPU (jax
    0.10.2) recomputes that sum at each use. With 12 layers, this took a third of a step's time at BERT-base widths, and
    half of it with slim (pruned) layers. The cost grows with the square of the depth. So the gradient passes through a
    conditional, because XLA does not fuse across one. (XLA removes an optimization_barrier before it fuses.) Doing the
    same for x itself costs more time than it saves.
    """
    return x


def _residual_backward(_, dx):
    def alone(dx):
        return jax.lax.cond(jax.lax.optimization_barrier(np.bool_(True)), lambda dx: dx, jnp.negative, dx)

    return (jax.lax.platform_dependent(dx, cpu=alone, default=lambda dx: dx),)


residual.defvjp(lambda x: (x, None), _residual_backward)


def apply(module: nn.Module, params: Mapping[str, Any], *args) -> Any:
    """Output of `module` with the parameters `params`."""
    return module.apply({"params": params}, *args)


class LayerNorm(nn.LayerNorm):
    """Flax's LayerNorm. It subtracts float32 statistics from x of any type, which needs JAX's standard promotion."""

    __call__ = jax.numpy_dtype_promotion("standard")(nn.LayerNorm.__call__)


def layer_norm(config: Config, name: str | None = None):
    """LayerNorm over the width, with statistics in float32."""
    return LayerNorm(epsilon=config.norm_eps, dtype=config.dtype, use_fast_variance=True, name=name)


def product(x, kernel, dtype: str):
    """`x . kernel`: contracts the last axis of x with all axes of the kernel except the last."""
    kernel = kernel.reshape(x.shape[-1], -1)
    if kernel.dtype != dtype:
        # A separate array: otherwise the TPU compiler repeats the cast in every product.
        kernel = jax.lax.optimization_barrier(kernel.astype(dtype))
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def plus(y, bias):
    """y with a bias added to its last axis, in y's type."""
    return y + jnp.expand_dims(bias.astype(y.dtype), tuple(range(y.ndim - 1)))


class Linear(nn.Module):
    """`x . kernel + bias`: [..., to]. The kernel has shape [*of, to]. The product of the sizes in `of` is the size of
    x's last axis.
    """

    config: Config
    to: int
    of: tuple[int, ...] = ()  # (): the size of the last axis of x
    residual: bool = False

    @nn.compact
    def __call__(self, x):
        config = self.config
        std = config.residual_init_std if self.residual else config.init_std
        # Truncated at two standard deviations, like `create_initializer` of google-research/bert.
        kernel = self.param("kernel", nn.initializers.truncated_normal(std), (*(self.of or x.shape[-1:]), self.to))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.to,))
        return plus(product(x, kernel, config.dtype), bias)


class DrawKey(nn.Module):
    """The key from which the first parameter of a module with this name is drawn."""

    @nn.compact
    def __call__(self):
        return self.make_rng("params")


class Qkv(nn.Module):
    """Queries, keys and values of all heads before their bias is added: ([B, N, W], the bias [W]); see qkv.py.

    queries: how many of the N tokens, from the first, need a query. keys: how many need a key and a value. All other
    entries are zero and are not computed. draw_keys: the random keys from which the weights of query, key and value are
    initialised.
    """

    config: Config
    heads: int

    @nn.compact
    def __call__(self, x_BND, queries: int, keys: int, draw_keys=None):
        config = self.config

        def drawn(key):
            shape = (config.width, self.heads, config.head_size)
            init = nn.initializers.truncated_normal(config.init_std)
            return qkv.whole(*(init(each, shape) for each in draw_keys or [key] * 3))

        kernel_DW = self.param("kernel", drawn)
        bias_W = self.param("bias", nn.initializers.zeros_init(), kernel_DW.shape[1:])
        both = min(queries, keys)  # tokens that need a query, a key and a value
        product_BNW = product(x_BND[:, :both], kernel_DW, config.dtype)
        if queries != keys:
            which = slice(0, 1) if queries > keys else slice(1, 3)
            kernel_DC = qkv.columns(kernel_DW, config.head_size, which)
            rest_BNC = product(x_BND[:, both:], kernel_DC, config.dtype)
            rest_BNW = qkv.with_zeros(rest_BNC, config.head_size, which)
            product_BNW = jnp.concatenate([product_BNW, rest_BNW], axis=1)
        return product_BNW, bias_W


class Embed(nn.Module):
    """Sum of word, position and token-type embeddings: [B, S, D]."""

    config: Config

    @nn.compact
    def __call__(self, batch, draws):
        config = self.config
        table = nn.initializers.truncated_normal(config.init_std)
        word_VD = self.param("word", table, (config.table_rows, config.width))
        position_SD = self.param("position", table, (config.max_len, config.width))
        type_TD = self.param("type", table, (config.type_count, config.width))
        x_BSD = word_VD[batch["ids"]] + position_SD[batch["positions"]] + type_TD[batch["types"]]
        x_BSD = layer_norm(config, "norm")(x_BSD) if config.embed_norm else x_BSD.astype(config.dtype)
        return dropout(x_BSD, config.dropout, draws)


class Block(nn.Module):
    """One encoder layer: x_BQD, updated by attention to other tokens and a feed-forward network.

    z_BND, segments_BN: all tokens that are updated or attended to, N = max(Q, K). The first Q are those of x_BQD;
    the first K are attended to. `scale` multiplies both residual branches; None leaves them unscaled.
    """

    config: Config
    heads: int
    mlp_dim: int
    keys: int

    @nn.compact
    def __call__(self, x_BQD, z_BND, segments_BN, scale, draws):
        config = self.config
        pre = config.norm == "pre"
        of_probs, of_attention, of_mlp = (draws and draws.of(part) for part in range(3))
        attention_norm, mlp_norm = layer_norm(config, "attention_norm"), layer_norm(config, "mlp_norm")

        def add(x_BQD, branch_BQD, draws):
            branch_BQD = dropout(branch_BQD, config.dropout, draws)
            return x_BQD + (branch_BQD if scale is None else branch_BQD * scale.astype(branch_BQD.dtype))

        def attention(z_BND):
            draw_keys = [DrawKey(name=name)() for name in qkv.NAMES] if self.is_initializing() else None
            queries = x_BQD.shape[1]
            product_BNW, bias_W = Qkv(config, self.heads, name="qkv")(z_BND, queries, self.keys, draw_keys)
            attend_ = functools.partial(
                attend,
                queries=queries,
                keys=self.keys,
                head_size=config.head_size,
                rate=config.attention_dropout,
                asked=config.attention,
            )
            if config.recompute == "attention":
                attend_ = jax.checkpoint(attend_)
            a_BQA = attend_(product_BNW, bias_W, segments_BN, draws=of_probs)
            split = (self.heads, config.head_size)
            return Linear(config, config.width, split, residual=True, name="attention_output")(a_BQA)

        def mlp(x_BQD):
            h_BQF = ACTIVATIONS[config.activation](Linear(config, self.mlp_dim, name="mlp_hidden")(x_BQD))
            return Linear(config, config.width, residual=True, name="mlp_output")(h_BQF)

        if pre:
            x_BQD = residual(add(x_BQD, attention(attention_norm(z_BND)), of_attention))
            return add(x_BQD, mlp(mlp_norm(x_BQD)), of_mlp)
        x_BQD = attention_norm(add(x_BQD, attention(z_BND), of_attention))
        return mlp_norm(add(x_BQD, mlp(x_BQD), of_mlp))


class MlmHead(nn.Module):
    """Logits over the table's rows for the given vectors: [B, P, V], float32. Padded ids get minus infinity.

    If labels [B, P] are given, returns the results of `cross_entropy.fused` instead, each [B, P].
    """

    config: Config

    @nn.compact
    def __call__(self, x_BPD, word_VD, labels_BP=None):
        config = self.config
        x_BPD = ACTIVATIONS[config.activation](Linear(config, config.width, name="dense")(x_BPD))
        x_BPD = layer_norm(config, "norm")(x_BPD)
        bias_V = self.param("bias", nn.initializers.zeros_init(), (config.table_rows,))
        bias_V = jnp.where(np.arange(config.table_rows) < config.vocab_size, bias_V, -jnp.inf)
        if labels_BP is not None:
            found = fused(x_BPD.reshape(-1, config.width), word_VD, bias_V, labels_BP.reshape(-1))
            return tuple(x_T.reshape(labels_BP.shape) for x_T in found)
        logits_BPV = jnp.einsum("BPD,VD->BPV", x_BPD, word_VD.astype(config.dtype), preferred_element_type=jnp.float32)
        return logits_BPV + bias_V[None, None]


class NextHead(nn.Module):
    """Logits of "B follows A" and "B is random" from the [CLS] vector: [B, 2], float32."""

    config: Config

    @nn.compact
    def __call__(self, x_BD):
        pooled_BD = jnp.tanh(Linear(self.config, self.config.width, name="pooler")(x_BD))
        return Linear(self.config, 2, name="next")(pooled_BD).astype(jnp.float32)
