"""The encoder with a head on top: parameters, logits and losses.

The parameters are the encoder's, without its pre-training heads, and the new head's under `task`.

Axes: N examples, B examples of a batch, S positions, D width, C classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from bert_fast import bert
from bert_fast.bert import Params
from bert_fast.layers import Config, Linear, apply, dropout, keys_of
from bert_fast.method import Method, Program
from bert_fast.plan import Route
from bert_fast.tasks import batches
from bert_fast.train.step import Objective

HEAD = 201  # folded into the seed's key for the head's initial parameters
NEVER = -1e30  # the logit of a choice that is ruled out; finite, so that differences are never NaN


@dataclasses.dataclass(frozen=True)
class Head:
    """A task's head.

    kind: what it predicts: "classes" (one of several), a "score" (one number), or a "span" (its first and last token).
    outputs: number of logits, per example or, for a span, per token.
    """

    kind: str
    outputs: int


class SentenceHead(nn.Module):
    """Logits from the pooled [CLS] vector, with dropout (`create_model` of google-research/bert): [B, C]."""

    config: Config
    outputs: int

    @nn.compact
    def __call__(self, x_BD, key):
        pooled_BD = jnp.tanh(Linear(self.config, (self.config.width,), name="pooler")(x_BD))
        pooled_BD = dropout(pooled_BD, self.config.dropout, key)
        return Linear(self.config, (self.outputs,), name="output")(pooled_BD).astype(jnp.float32)


class SpanHead(nn.Module):
    """A start and an end logit for each token (run_squad.py of google-research/bert): [B, S, 2]."""

    config: Config

    @nn.compact
    def __call__(self, x_BSD):
        return Linear(self.config, (2,), name="output")(x_BSD).astype(jnp.float32)


def init(config: Config, head: Head, encoder: Params, key) -> Params:
    """The encoder's parameters with a fresh head. A sentence head takes over the pre-trained pooler if there is one."""
    params = {name: leaf for name, leaf in encoder.items() if name not in ("mlm", "next", "task")}
    if head.kind == "span":
        x_BSD = jnp.zeros((1, 1, config.width), config.dtype)
        return {**params, "task": SpanHead(config).init(key, x_BSD)["params"]}
    x_BD = jnp.zeros((1, config.width), config.dtype)
    task = SentenceHead(config, head.outputs).init(key, x_BD, None)["params"]
    if "next" in encoder:
        task = {**task, "pooler": encoder["next"]["pooler"]}
    return {**params, "task": task}


def logits(config: Config, head: Head, params: Params, batch, plan, key) -> Any:
    """Logits: [B, C] for classes, [B, 1] for a score, [B, S, 2] for a span. Dropout is on if `key` is given.

    For spans, padding has the logit NEVER: the width of a batch does not change losses or answers.
    """
    trunk_key, head_key = keys_of(key, 2)
    x_BSD = bert.encode(config, params, {}, batch, plan, Route(), trunk_key)
    if head.kind == "span":
        logits_BS2 = apply(SpanHead(config), params["task"], x_BSD)
        return jnp.where(batch["segments"][..., None] != 0, logits_BS2, NEVER)
    return apply(SentenceHead(config, head.outputs), params["task"], x_BSD[:, 0], head_key)


def losses(head: Head, found, labels):
    """Losses [B]: cross-entropy in nats, or a score's squared error. A span's loss is the mean of its start and end."""
    if head.kind == "score":
        return jnp.square(found[:, 0] - labels)
    if head.kind == "span":
        return bert.cross_entropy(jnp.swapaxes(found, 1, 2), labels)[0].mean(1)
    return bert.cross_entropy(found, labels)[0]


def objective(head: Head) -> Objective:
    """The mean loss over the batch's examples; padding examples have weight 0.

    `Method.update` gets None in place of per-example losses.
    """

    def totals(program: Program, batch):
        return batch["weights"].sum()

    def loss(program: Program, params: Params, frozen: Params, micro, examples, route: Route, key):
        params = {**frozen, **params}
        found = logits(program.model, head, params, micro, program.plan, key)
        return (losses(head, found, micro["labels"]) * micro["weights"]).sum() / examples, None

    def sums(program: Program, losses, batch) -> dict:
        return {"examples": batch["weights"].sum(), "tokens_real": (batch["segments"] != 0).sum()}

    return Objective(totals, loss, sums)


def make_predict(method: Method, head: Head):
    """A function (params, batch, program) -> logits, without dropout. `program` is a static argument."""

    def predict(params: Params, batch, program: Program):
        return logits(program.model, head, method.weights(params)[0], batch, program.plan, None)

    return predict


def no_logits(head: Head, count: int, seq_len: int) -> np.ndarray:
    """Uninformative logits for `count` examples: equal for all classes [N, C], or for all positions [N, S, 2]."""
    span = head.kind == "span"
    return np.full((count, *((seq_len, 2) if span else (head.outputs,))), NEVER if span else 0, np.float32)


def all_logits(
    step: Callable[[dict[str, np.ndarray]], Any],
    rows: batches.TaskExamples,
    widths: Sequence[int],
    batch_size: int,
    pad: int,
    empty_N: np.ndarray,
) -> np.ndarray:
    """Logits of every example, in order. They are written into `empty_N`, an array made by `no_logits`.

    step: a function from a batch's arrays to its logits.
    """
    pending = None
    for batch in [*batches.epoch(rows.lengths_N, widths, batch_size, None), None]:
        coming = None
        if batch is not None:
            coming = (batch, step(batches.fill(rows._replace(labels=None), batch, batch_size, pad)))
        if pending is not None:  # fetch these logits while the next batch runs
            done, logits = pending
            logits = np.asarray(logits, np.float32)[: len(done.rows_B)]
            if logits.ndim == 3:  # span logits are only as wide as the batch
                empty_N[done.rows_B, : logits.shape[1]] = logits
            else:
                empty_N[done.rows_B] = logits
        pending = coming
    return empty_N
