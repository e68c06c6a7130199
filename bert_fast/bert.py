"""BERT: the trunk that every method shares. Which layers and tokens of it work is said by `plan.py`.

Axes: B examples, S tokens of a row, Q tokens that are updated, K tokens that are attended to,
P prediction slots, X tokens that are left alone, L layers, R layers that run in this step, H heads,
E size of a head, D width, F hidden width of the feed-forward network, V rows of the embedding table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_fast.plan import Plan, Route, frozen_depth

Params = Mapping[str, Any]
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype))),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of a model. Defaults are BERT-base's (Devlin et al. 2019, and its released `bert_config.json`).

    `heads` and `hidden` are one number, or one a layer where layers differ: the stacked parameters
    are then as wide as the widest layer, and each layer reads its first so many heads and neurons.
    """

    vocab_size: int
    depth: int = 12
    width: int = 768
    heads: int | tuple[int, ...] = 12
    head_size: int = 64
    hidden: int | tuple[int, ...] = 3072
    max_len: int = 512
    type_count: int = 2
    norm: str = "post"  # LayerNorm after each residual sum, or "pre": before each branch and once at the end
    embed_norm: bool = True  # LayerNorm on the embeddings
    activation: str = "gelu"
    pooler: bool = False  # the [CLS] layer and the next-sentence head on it
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    residual_init_std: float = 0.02  # of the two matrices that write to the residual stream
    norm_eps: float = 1e-12
    dtype: str = "float32"  # of activations; parameters, softmax, LayerNorm statistics and losses are float32

    @property
    def table_rows(self) -> int:
        """The vocabulary padded to a multiple of 128, the lanes of a TPU register. Padded ids are never predicted."""
        return -(-self.vocab_size // 128) * 128

    @property
    def heads_L(self) -> tuple[int, ...]:
        return self.heads if isinstance(self.heads, tuple) else (self.heads,) * self.depth

    @property
    def hidden_L(self) -> tuple[int, ...]:
        return self.hidden if isinstance(self.hidden, tuple) else (self.hidden,) * self.depth


def dropout(x, rate: float, key):
    """x with a share of `rate` of its entries zeroed and the others scaled up; unchanged where key is None.

    Decided on 16 random bits an entry, not 32: half of the generator's work, and the rate is still
    met within 1e-5.
    """
    if key is None or rate == 0:
        return x
    keep = round((1 - rate) * 2**16)
    kept = jax.random.bits(key, x.shape, jnp.uint16) < keep
    return jnp.where(kept, x * (2**16 / keep), 0).astype(x.dtype)


def attend(q_BQHE, k_BKHE, v_BKHE, allowed_BQK, rate: float, key):
    """Softmax attention of each head over the allowed keys: [B, Q, H, E]; dropout where key is given."""
    if key is None or rate == 0:
        return jax.nn.dot_product_attention(q_BQHE, k_BKHE, v_BKHE, mask=allowed_BQK[:, None])
    scale = q_BQHE.shape[-1] ** -0.5
    logits_BHQK = jnp.einsum("BQHE,BKHE->BHQK", q_BQHE * scale, k_BKHE, preferred_element_type=jnp.float32)
    # Finite, as in dot_product_attention: with -inf a row without any key would be NaN.
    logits_BHQK = jnp.where(allowed_BQK[:, None], logits_BHQK, -0.7 * np.finfo(np.float32).max)
    probs_BHQK = dropout(jax.nn.softmax(logits_BHQK).astype(v_BKHE.dtype), rate, key)
    return jnp.einsum("BHQK,BKHE->BQHE", probs_BHQK, v_BKHE)


def keys_of(key, count: int):
    """So many keys from one, or so many times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def layer_norm(config: Config, name: str):
    """LayerNorm over the width, statistics in float32."""
    return nn.LayerNorm(epsilon=config.norm_eps, dtype=config.dtype, use_fast_variance=False, name=name)


class Linear(nn.Module):
    """`x . kernel + bias` over the last `contract` axes of x, to axes of the given sizes."""

    config: Config
    to: tuple[int, ...]
    contract: int = 1
    residual: bool = False

    @nn.compact
    def __call__(self, x):
        config = self.config
        of = x.shape[x.ndim - self.contract :]
        std = config.residual_init_std if self.residual else config.init_std
        # Truncated at two deviations, as `create_initializer` of google-research/bert.
        kernel = self.param("kernel", nn.initializers.truncated_normal(std), (*of, *self.to))
        bias = self.param("bias", nn.initializers.zeros_init(), self.to)
        axes = (tuple(range(x.ndim - self.contract, x.ndim)), tuple(range(self.contract)))
        y = jax.lax.dot_general(x, kernel.astype(config.dtype), (axes, ((), ())))
        return y + bias.astype(config.dtype)


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
    """One encoder layer: x_BQD updated, by attention to y_BKD and a feed-forward network.

    `scale` multiplies both residual branches (None: they are left alone).
    """

    config: Config
    heads: int
    hidden: int

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
            h_BQF = ACTIVATIONS[config.activation](Linear(config, (self.hidden,), name="mlp_hidden")(x_BQD))
            return Linear(config, (config.width,), residual=True, name="mlp_output")(h_BQF)

        if pre:
            normed_BKD = attention_norm(y_BKD)
            normed_BQD = normed_BKD if y_BKD is x_BQD else attention_norm(x_BQD)
            x_BQD = add(x_BQD, attention(normed_BQD, normed_BKD), attention_key)
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
        return logits_BPV + bias_V


class NextHead(nn.Module):
    """Logits of "B follows A" and "B is random" from the [CLS] vector: [B, 2], float32."""

    config: Config

    @nn.compact
    def __call__(self, x_BD):
        pooled_BD = jnp.tanh(Linear(self.config, (self.config.width,), name="pooler")(x_BD))
        return Linear(self.config, (2,), name="next")(pooled_BD).astype(jnp.float32)


def init(config: Config, key) -> Params:
    """Fresh parameters, float32; those of the layers are stacked: `[L, ...]`.

    Layer i depends on (key, i) alone, so a deeper model begins with the same lower layers.
    """
    row = {name: jnp.zeros((1, 1), jnp.int32) for name in ("ids", "positions", "types")}
    x_BSD = jnp.zeros((1, 1, config.width), config.dtype)
    embed_key, layers_key, mlm_key, next_key = jax.random.split(key, 4)
    block = Block(config, max(config.heads_L), max(config.hidden_L))

    def layer(index):
        return block.init(jax.random.fold_in(layers_key, index), x_BSD, x_BSD, jnp.ones((1, 1, 1), bool), None, None)

    embed = Embed(config).init(embed_key, row, None)["params"]
    params = {
        "embed": embed,
        "layers": jax.vmap(layer)(jnp.arange(config.depth))["params"],
        "mlm": MlmHead(config).init(mlm_key, x_BSD, embed["word"])["params"],
    }
    if config.norm == "pre":
        params["final_norm"] = layer_norm(config, "final_norm").init(mlm_key, x_BSD)["params"]
    if config.pooler:
        params["next"] = NextHead(config).init(next_key, x_BSD[:, 0])["params"]
    return params


def narrow(layer: Params, heads: int, hidden: int) -> Params:
    """One layer's parameters with only its first so many heads and neurons."""

    def first(name, kernel, bias):
        return {"kernel": layer[name]["kernel"][kernel], "bias": layer[name]["bias"][bias]}

    everything, heads_, hidden_ = slice(None), slice(heads), slice(hidden)
    return {
        **layer,
        **{name: first(name, (everything, heads_), heads_) for name in ("query", "key", "value")},
        "attention_output": first("attention_output", heads_, everything),
        "mlp_hidden": first("mlp_hidden", (everything, hidden_), hidden_),
        "mlp_output": first("mlp_output", hidden_, everything),
    }


def cut(stack: Params, sizes: list[int]) -> list[Params]:
    """A stack cut into stacks of so many layers.

    By one split: the gradient of a slice pads and adds the whole stack, once for each slice.
    """
    leaves, treedef = jax.tree.flatten(stack)
    return [treedef.unflatten(piece) for piece in zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)]


def running(params: Params, frozen: Params, plan: Plan, route: Route) -> list[list[tuple]]:
    """For each span, (parameters, index, scale) of every layer that runs in it; scale is None without a route."""
    below = [span.stop - span.start for span in plan if span.frozen]
    above = [span.stop - span.start for span in plan if not span.frozen]
    pieces = (cut(frozen["layers"], below) if below else []) + (cut(params["layers"], above) if above else [])
    runs, at = [], 0
    for span, piece in zip(plan, pieces, strict=True):
        count = span.stop - span.start
        indices, scales = range(span.start, span.stop), [None] * count
        if route.scale_R is not None:
            listed = slice(at, at + (count if span.run is None else span.run))
            scales, at = list(route.scale_R[listed]), listed.stop
            if len(scales) < count:
                indices = list(route.layers_R[listed])
                chosen_R = route.layers_R[listed] - span.start
                piece = jax.tree.map(lambda leaf: leaf.at[chosen_R].get(unique_indices=True), piece)  # noqa: B023
        singles = cut(piece, [1] * len(scales)) if scales else []
        layers = [jax.tree.map(lambda leaf: leaf[0], single) for single in singles]
        runs.append(list(zip(layers, indices, scales, strict=True)))
    return runs


def merge(params: Params, frozen: Params) -> Params:
    """One tree of two that share no leaf."""
    both = {**frozen, **params}
    for name in frozen.keys() & params.keys():
        both[name] = merge(params[name], frozen[name])
    return both


def encode(config: Config, params: Params, frozen: Params, batch, plan: Plan, route: Route, key):
    """Hidden states of the last layer: [B, S, D].

    `params` learn and `frozen` do not: `frozen["layers"]` are the lowest layers, `params["layers"]`
    those above, and every other leaf is in one of the two. Dropout is off where key is None.
    Attention is allowed between tokens of equal `segments`; padding (0) sees padding, so that no row
    of the softmax is ever empty.
    """
    embed_key, layers_key = keys_of(key, 2)
    outside = merge(
        {name: leaf for name, leaf in params.items() if name != "layers"},
        {name: leaf for name, leaf in frozen.items() if name != "layers"},
    )
    x_BSD = Embed(config).apply({"params": outside["embed"]}, batch, embed_key)
    if frozen_depth(plan):  # below a layer that does not learn nothing does, whatever else the embeddings are used for
        x_BSD = jax.lax.stop_gradient(x_BSD)
    segments_BS = batch["segments"]
    for span, layers in zip(plan, running(params, frozen, plan, route), strict=True):
        shapes = list(zip(config.heads_L, config.hidden_L, strict=True))[span.start : span.stop]
        if len(layers) < len(shapes) and len(set(shapes)) > 1:
            raise ValueError(f"layers of {span} differ in width, so which of them run cannot be traced: use cond")
        x_BQD, idle_BXD = (x_BSD, None) if span.rows is None else jnp.split(x_BSD, [span.rows], axis=1)

        for (layer, index, scale), (heads, hidden) in zip(layers, shapes, strict=False):

            def update(x_BQD, layer, scale, layer_key, shape=(heads, hidden), span=span, idle_BXD=idle_BXD):
                y_BKD = x_BQD
                if span.rows != span.keys:
                    y_BKD = x_BQD if idle_BXD is None else jnp.concatenate([x_BQD, idle_BXD], axis=1)
                    y_BKD = y_BKD[:, : span.keys]
                allowed_BQK = segments_BS[:, : span.rows, None] == segments_BS[:, None, : span.keys]
                params = {"params": narrow(layer, *shape)}
                return Block(config, *shape).apply(params, x_BQD, y_BKD, allowed_BQK, scale, layer_key)

            layer_key = None if key is None else jax.random.fold_in(layers_key, index)
            if span.cond and scale is not None:
                # Checkpointed, or reverse mode carries every residual of the branch through the conditional.
                stay = lambda x_BQD, *_: x_BQD  # noqa: E731
                x_BQD = jax.lax.cond(scale != 0, jax.checkpoint(update), stay, x_BQD, layer, scale, layer_key)
            else:
                x_BQD = update(x_BQD, layer, scale, layer_key)
        x_BSD = x_BQD if idle_BXD is None else jnp.concatenate([x_BQD, idle_BXD], axis=1)
    if config.norm == "pre":
        x_BSD = layer_norm(config, None).apply({"params": outside["final_norm"]}, x_BSD)
    return x_BSD


class Losses(NamedTuple):
    """Cross-entropies in nats, float32: of each prediction slot, and of each example's next-sentence label or None."""

    mlm_BP: Any
    correct_BP: Any  # the label had the largest logit
    next_B: Any
    next_correct_B: Any


def predict(config: Config, params: Params, frozen: Params, x_BSD, slots_BP):
    """MLM logits at the given positions: [B, P, V], minus infinity at padded ids."""
    x_BPD = jnp.take_along_axis(x_BSD, slots_BP[..., None], axis=1)
    head = merge(params.get("mlm", {}), frozen.get("mlm", {}))
    word_VD = merge(params.get("embed", {}), frozen.get("embed", {}))["word"]
    return MlmHead(config).apply({"params": head}, x_BPD, word_VD)


def losses(config: Config, params: Params, frozen: Params, x_BSD, batch) -> Losses:
    """What each prediction of the batch costs; nothing is weighted or averaged yet."""
    logits_BPV = predict(config, params, frozen, x_BSD, batch["slots"])
    correct_BP = logits_BPV.argmax(-1) == batch["labels"]
    mlm_BP = cross_entropy(logits_BPV, batch["labels"])
    if "next" not in batch:
        return Losses(mlm_BP, correct_BP, None, None)
    head = merge(params.get("next", {}), frozen.get("next", {}))
    cls_BD = jnp.take_along_axis(x_BSD, batch["cls"][:, None, None], axis=1)[:, 0]
    logits_B2 = NextHead(config).apply({"params": head}, cls_BD)
    return Losses(mlm_BP, correct_BP, cross_entropy(logits_B2, batch["next"]), logits_B2.argmax(-1) == batch["next"])


def cross_entropy(logits, labels):
    """-log softmax(logits)[labels], in nats, over the last axis."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
