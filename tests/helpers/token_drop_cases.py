"""A small model and packed examples, for the token-dropping tests."""

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import bert, qkv
from bert_fast.method import Program, Stage
from bert_fast.methods import token_drop
from bert_fast.plan import whole
from bert_fast.schedule import Schedule
from helpers import reference

POST = bert.Config(150, 4, 16, 2, 8, 24, 12, pooler=True, dropout=0.0, attention_dropout=0.0)
PAD, UNK, CLS, SEP, MASK = POST.special_ids
KEPT = 6


def stage_of(model=POST, seq_len=12, slots=3, steps=10, **changes):
    program = Program(model, whole(model.depth), 3, 1, seq_len, slots, "mlm+nsp")
    return Stage("only", program, steps, Schedule(1e-3, 100), **changes)


def planned(model=POST, **arguments):
    """The method's plan for examples of 12 tokens."""
    (stage,) = token_drop.make(**arguments).stages((stage_of(model),))
    return stage.program.plan


def packed_batch(seed=0):
    """Three examples. The first is full. The second holds two documents and padding. The third holds fewer tokens than
    `KEPT`, and its last slot is empty.
    """
    rng = np.random.default_rng(seed)
    segments_BS = np.array([[1] * 12, [1] * 5 + [2] * 5 + [0] * 2, [1] * 3 + [2] * 2 + [0] * 7])
    positions_BS = np.array([[*range(12)], [*range(5), *range(5), 0, 0], [0, 1, 2, 0, 1, *[0] * 7]])
    ids_BS = np.where(segments_BS, rng.integers(1, 150, (3, 12)), PAD)
    ids_BS[:, [0, 2]], ids_BS[1, 5] = [CLS, MASK], CLS
    return {
        "ids": ids_BS.astype(np.int32),
        "types": (rng.integers(0, 2, (3, 12)) * (segments_BS != 0)).astype(np.int32),
        "positions": positions_BS.astype(np.int32),
        "segments": segments_BS.astype(np.int32),
        "slots": np.array([[2, 7, 11], [2, 6, 9], [2, 4, 0]], np.int32),
        "labels": np.array([[5, 6, 7], [6, 5, 9], [6, 6, 0]], np.int32),
        "weights": np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0]], np.float32),
        "next": np.array([0, 1, 1], np.int32),
        "cls": np.array([0, 5, 3], np.int32),
    }


BATCH = packed_batch()
REAL_BS = BATCH["segments"] != 0


def random_scores(seed=0):
    """A score table: pinned scores for the special ids, distinct random scores for the others."""
    score_V = np.random.default_rng(seed).permutation(POST.table_rows).astype(np.float32) / 10
    score_V[[UNK, CLS, SEP, MASK]], score_V[PAD] = 1e4, -1e4
    return jnp.asarray(score_V)


SCORE_V = random_scores()


def ordered(score_V=SCORE_V, batch=BATCH, plan=None, key=None, **arguments):
    """The batch after the method has reordered its tokens."""
    program = Program(POST, planned() if plan is None else plan, 3, 1, 12, 3, "mlm+nsp")
    return token_drop.make(**arguments).order(score_V, batch, program, key)


def reference_layer(config, params, x_QD, y_KD, allowed_QK):
    """One encoder layer in NumPy and float64. It updates the tokens x, which attend to the tokens y."""
    eps, pre, params = config.norm_eps, config.norm == "pre", qkv.separate(params)

    def attention(x_QD, y_KD):
        out_QD = params["attention_output"]["bias"]
        for h in range(config.heads):
            q, k, v = (
                z @ params[name]["kernel"][:, h] + params[name]["bias"][h]
                for name, z in (("query", x_QD), ("key", y_KD), ("value", y_KD))
            )
            logits_QK = np.where(allowed_QK, q @ k.T / np.sqrt(config.head_size), -1e30)
            out_QD = out_QD + reference.softmax(logits_QK) @ v @ params["attention_output"]["kernel"][h]
        return out_QD

    def mlp(x_QD):
        h_QF = reference.gelu(x_QD @ params["mlp_hidden"]["kernel"] + params["mlp_hidden"]["bias"])
        return h_QF @ params["mlp_output"]["kernel"] + params["mlp_output"]["bias"]

    first, second = (
        lambda x, name=name: reference.norm(x, params[name], eps) for name in ("attention_norm", "mlp_norm")
    )
    if pre:
        x_QD = x_QD + attention(first(x_QD), first(y_KD))
        return x_QD + mlp(second(x_QD))
    x_QD = first(x_QD + attention(x_QD, y_KD))
    return second(x_QD + mlp(x_QD))


def reference_dropped(config, params, batch, score_V, kept, boundary=1):
    """(hidden states in input order, MLM losses, next-sentence losses) in NumPy and float64.

    As in the released TokenDropBertEncoder: layer `boundary` is the first that updates only the kept tokens, and the
    last layer updates all tokens again.
    """
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    at = lambda i: jax.tree.map(lambda leaf: leaf[i], params["layers"])  # noqa: E731
    depth, eps, hidden, mlm, following = config.depth, config.norm_eps, [], [], []
    for b in range(len(batch["ids"])):
        one = {name: x[b] for name, x in batch.items()}
        embed, segments_S = params["embed"], one["segments"]
        x_SD = embed["word"][one["ids"]] + embed["position"][one["positions"]] + embed["type"][one["types"]]
        x_SD = reference.norm(x_SD, embed["norm"], eps)
        full_SS = segments_S[:, None] == segments_S
        position = np.argsort(-np.asarray(score_V)[one["ids"]], kind="stable")
        selected, unselected = position[:kept], position[kept:]
        for i in range(boundary):
            x_SD = reference_layer(config, at(i), x_SD, x_SD, full_SS)
        x_selected, x_unselected = x_SD[selected], x_SD[unselected]
        of_all = np.concatenate([segments_S[selected], segments_S[unselected]])
        y_SD = np.concatenate([x_selected, x_unselected])
        allowed = segments_S[selected][:, None] == of_all
        x_selected = reference_layer(config, at(boundary), x_selected, y_SD, allowed)
        allowed = segments_S[selected][:, None] == segments_S[selected]
        for i in range(boundary + 1, depth - 1):
            x_selected = reference_layer(config, at(i), x_selected, x_selected, allowed)
        inverse = np.argsort(np.concatenate([selected, unselected]))
        x_SD = np.concatenate([x_selected, x_unselected])[inverse]
        x_SD = reference_layer(config, at(depth - 1), x_SD, x_SD, full_SS)
        if config.norm == "pre":
            x_SD = reference.norm(x_SD, params["final_norm"], eps)
        head = params["mlm"]
        x_PD = reference.gelu(x_SD[one["slots"]] @ head["dense"]["kernel"] + head["dense"]["bias"])
        logits = reference.norm(x_PD, head["norm"], eps) @ embed["word"].T + head["bias"]
        log_probs = np.log(reference.softmax(logits[:, : config.vocab_size]))
        mlm.append(-np.take_along_axis(log_probs, one["labels"][:, None], 1)[:, 0])
        head = params["next"]
        pooled_D = np.tanh(x_SD[one["cls"]] @ head["pooler"]["kernel"] + head["pooler"]["bias"])
        log_probs = np.log(reference.softmax(pooled_D @ head["next"]["kernel"] + head["next"]["bias"]))
        following.append(-log_probs[one["next"]])
        hidden.append(x_SD)
    return np.stack(hidden), np.stack(mlm), np.stack(following)
