"""For tests of the trunk: a random batch, random parameters, and BERT's equations in NumPy.

Axes: as in bert.py.
"""

import jax
import numpy as np
from scipy.special import erf

from bert_fast import bert, qkv


def random_params(config: bert.Config, seed: int = 0):
    """Random parameters, gains and biases included, so that swapping or omitting any of them changes the result."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        noise = 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)
        return noise + 1 if path[-1].key == "scale" else noise

    shapes = bert.shapes(config)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def random_batch(config: bert.Config, rows: int, length: int, slots: int, seed: int = 0):
    """A batch with all token types, prediction weights of 0 and 1, and padding in every example but the first."""
    rng = np.random.default_rng(seed)
    real_B = np.maximum(length - 2 * np.arange(rows), 1)
    segments_BS = (np.arange(length) < real_B[:, None]).astype(np.int32)
    return {
        "ids": rng.integers(1, config.vocab_size, (rows, length)).astype(np.int32) * segments_BS,
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "types": rng.integers(0, config.type_count, (rows, length)).astype(np.int32) * segments_BS,
        "segments": segments_BS,
        "slots": np.stack([rng.integers(0, real, slots) for real in real_B]).astype(np.int32),
        "labels": rng.integers(0, config.vocab_size, (rows, slots)).astype(np.int32),
        "weights": np.tile((np.arange(slots) < max(slots - 1, 1)).astype(np.float32), (rows, 1)),
        "next": rng.integers(0, 2, rows).astype(np.int32),
        "cls": np.zeros(rows, np.int32),
    }


def norm(x, params, eps):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * params["scale"] + params["bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def layer(config, params, x_SD, segments_S, rows, keys, heads, hidden):
    """One encoder layer on one example: updates the first `rows` tokens, which attend to the first `keys` tokens."""
    eps, pre, params = config.norm_eps, config.norm == "pre", qkv.separate(params)

    def attention(x_SD):
        out_QD = np.zeros_like(x_SD[:rows])
        for h in range(heads):
            q_SE, k_SE, v_SE = (x_SD @ params[name]["kernel"][:, h] + params[name]["bias"][h] for name in qkv.NAMES)
            logits_QK = q_SE[:rows] @ k_SE[:keys].T / np.sqrt(config.head_size)
            logits_QK[segments_S[:rows, None] != segments_S[None, :keys]] = -1e30
            out_QD += softmax(logits_QK) @ v_SE[:keys] @ params["attention_output"]["kernel"][h]
        return out_QD + params["attention_output"]["bias"]

    def mlp(x_QD):
        h_QF = gelu(x_QD @ params["mlp_hidden"]["kernel"][:, :hidden] + params["mlp_hidden"]["bias"][:hidden])
        return h_QF @ params["mlp_output"]["kernel"][:hidden] + params["mlp_output"]["bias"]

    if pre:
        x_QD = x_SD[:rows] + attention(norm(x_SD, params["attention_norm"], eps))
        x_QD = x_QD + mlp(norm(x_QD, params["mlp_norm"], eps))
    else:
        x_QD = norm(x_SD[:rows] + attention(x_SD), params["attention_norm"], eps)
        x_QD = norm(x_QD + mlp(x_QD), params["mlp_norm"], eps)
    return np.concatenate([x_QD, x_SD[rows:]])


def forward(config: bert.Config, params, batch, plan):
    """Hidden states and MLM logits without dropout, computed in float64, one example at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden, logits = [], []
    for b in range(len(batch["ids"])):
        embed = params["embed"]
        x_SD = embed["word"][batch["ids"][b]] + embed["position"][batch["positions"][b]]
        x_SD = x_SD + embed["type"][batch["types"][b]]
        if config.embed_norm:
            x_SD = norm(x_SD, embed["norm"], config.norm_eps)
        for span in plan:
            for i in range(span.start, span.stop):
                of_layer = jax.tree.map(lambda leaf: leaf[i], params["layers"])  # noqa: B023
                rows, keys = (len(x_SD) if n is None else n for n in (span.queries, span.keys))
                widths = config.heads_L[i], config.mlp_dim_L[i]
                x_SD = layer(config, of_layer, x_SD, batch["segments"][b], rows, keys, *widths)
        if config.norm == "pre":
            x_SD = norm(x_SD, params["final_norm"], config.norm_eps)
        head = params["mlm"]
        x_PD = gelu(x_SD[batch["slots"][b]] @ head["dense"]["kernel"] + head["dense"]["bias"])
        x_PD = norm(x_PD, head["norm"], config.norm_eps)
        hidden.append(x_SD)
        logits.append((x_PD @ embed["word"].T + head["bias"])[:, : config.vocab_size])
    return np.stack(hidden), np.stack(logits)
