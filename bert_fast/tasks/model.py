"""The encoder with a head on top: parameters, logits and losses.

The parameters are those of the encoder, without its pre-training heads. The new head's parameters are under `task`.

Axes: N examples, B examples of a batch, S positions, D width, C classes or tags.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from bert_fast import bert
from bert_fast.bert import Params
from bert_fast.dropout import Draws, dropout
from bert_fast.layers import Config, Linear, apply
from bert_fast.method import Method, Program
from bert_fast.plan import Route
from bert_fast.tasks import batches
from bert_fast.tasks.batches import NO_LABEL
from bert_fast.train.description import TaskHead
from bert_fast.train.step import Objective

HEAD = 201  # this number is folded into the seed's key; the result draws the head's initial parameters
NEVER = -1e30  # the logit of a choice that is ruled out; finite, so that differences are never NaN


@dataclasses.dataclass(frozen=True)
class Head:
    """A task's head.

    kind: what the head predicts. "classes": one of several classes. "score": one number. "tags": one of several tags
        for each token. "span": the first and the last token of a span.
    outputs: the number of logits: per token for tags and spans, per example for classes and scores.
    """

    kind: str
    outputs: int

    @property
    def on_tokens(self) -> bool:
        """Whether every token has logits, not only [CLS]."""
        return self.kind in ("tags", "span")


class SentenceHead(nn.Module):
    """Logits from the pooled [CLS] vector, with dropout (`create_model` of google-research/bert): [B, C]."""

    config: Config
    outputs: int

    @nn.compact
    def __call__(self, x_BD, draws):
        pooled_BD = jnp.tanh(Linear(self.config, self.config.width, name="pooler")(x_BD))
        pooled_BD = dropout(pooled_BD, self.config.dropout, draws)
        return Linear(self.config, self.outputs, name="output")(pooled_BD).astype(jnp.float32)


class TokenHead(nn.Module):
    """Logits for each token: [B, S, C].

    Tags have dropout, as in `BertForTokenClassification` of transformers. A span's start and end have none, as in
    run_squad.py of google-research/bert.
    """

    config: Config
    head: Head

    @nn.compact
    def __call__(self, x_BSD, draws):
        if self.head.kind == "tags":
            x_BSD = dropout(x_BSD, self.config.dropout, draws)
        return Linear(self.config, self.head.outputs, name="output")(x_BSD).astype(jnp.float32)


def init(config: Config, head: Head, encoder: Params, key) -> Params:
    """The encoder's parameters with a fresh head. A sentence head takes over the pre-trained pooler if there is one."""
    params = {name: leaf for name, leaf in encoder.items() if name not in ("mlm", "next", "task")}
    if head.on_tokens:
        x_BSD = jnp.zeros((1, 1, config.width), config.dtype)
        return {**params, "task": TokenHead(config, head).init(key, x_BSD, None)["params"]}
    x_BD = jnp.zeros((1, config.width), config.dtype)
    task = SentenceHead(config, head.outputs).init(key, x_BD, None)["params"]
    if "next" in encoder:
        task = {**task, "pooler": encoder["next"]["pooler"]}
    return {**params, "task": task}


def scale_of(task: TaskHead | None) -> tuple[float, float]:
    """Mean and deviation of the labels if the head predicts standardised labels (own_task.py). Otherwise 0 and 1."""
    if task is None or "deviation" not in task.options:
        return 0.0, 1.0
    return task.options["mean"], task.options["deviation"]


def in_label_unit(params: Params, task: TaskHead | None) -> Params:
    """The parameters, changed so that a score is in the unit of the labels. Models without a score are unchanged."""
    mean, deviation = scale_of(task)
    if (mean, deviation) == (0.0, 1.0):
        return params
    output = params["task"]["output"]
    output = {"kernel": output["kernel"] * np.float32(deviation), "bias": output["bias"] * np.float32(deviation) + mean}
    return {**params, "task": {**params["task"], "output": output}}


def logits(config: Config, head: Head, params: Params, batch, plan, draws: Draws | None) -> Any:
    """Logits: [B, C] for classes, [B, 1] for a score, [B, S, C] for tags, [B, S, 2] for a span.

    Dropout is on if there are `draws`. For spans, padding has the logit NEVER, so that the width of a batch does not
    change losses or answers.
    """
    x_BSD = bert.encode(config, params, {}, batch, plan, Route(), draws)
    of_head = draws and draws.of(bert.TASK_HEAD)
    if head.on_tokens:
        logits_BSC = apply(TokenHead(config, head), params["task"], x_BSD, of_head)
        return jnp.where(batch["segments"][..., None] != 0, logits_BSC, NEVER) if head.kind == "span" else logits_BSC
    return apply(SentenceHead(config, head.outputs), params["task"], x_BSD[:, 0], of_head)


def losses(head: Head, found, labels):
    """Losses [B]: cross-entropy in nats, or a score's squared error.

    A span's loss is the mean of the losses of its start and its end. The loss of an example with tags is the sum over
    its labels.
    """
    if head.kind == "tags":
        known_BS = labels != NO_LABEL
        return jnp.where(known_BS, bert.cross_entropy(found, jnp.where(known_BS, labels, 0))[0], 0.0).sum(1)
    if head.kind == "score":
        return jnp.square(found[:, 0] - labels)
    if head.kind == "span":
        return bert.cross_entropy(jnp.swapaxes(found, 1, 2), labels)[0].mean(1)
    return bert.cross_entropy(found, labels)[0]


def objective(head: Head) -> Objective:
    """The mean loss over the batch's examples; for tags, over its labels. Padding examples have weight 0.

    `Method.update` gets None in place of per-example losses.
    """

    def totals(program: Program, batch):
        if head.kind == "tags":
            return (batch["tags"] != NO_LABEL).sum().astype(jnp.float32)
        return batch["weights"].sum()

    def loss(program: Program, params: Params, frozen: Params, micro, total, route: Route, draws):
        params = {**frozen, **params}
        found = logits(program.model, head, params, micro, program.plan, draws)
        labels = micro["tags" if head.kind == "tags" else "labels"]
        return (losses(head, found, labels) * micro["weights"]).sum() / total, None

    def sums(program: Program, losses, batch) -> dict:
        return {"examples": batch["weights"].sum(), "tokens_real": (batch["segments"] != 0).sum()}

    return Objective(totals, loss, sums)


def make_predict(method: Method, head: Head):
    """A function (params, batch, program) -> logits, without dropout. `program` is a static argument."""

    def predict(params: Params, batch, program: Program):
        return logits(program.model, head, method.weights(params)[0], batch, program.plan, None)

    return predict


def no_logits(head: Head, count: int, seq_len: int) -> np.ndarray:
    """Uninformative logits for `count` examples: [N, C], or [N, S, C] for tags. All choices have equal logits.

    The logits of spans, [N, S, 2], allow only [CLS], which means no answer. With equal logits, every answer would be
    the first token of its context.
    """
    shape = (count, seq_len, head.outputs) if head.on_tokens else (count, head.outputs)
    empty = np.zeros(shape, np.float32)
    if head.kind == "span":
        empty[:, 1:] = -np.inf
    return empty


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
        if pending is not None:  # fetches these logits while the next batch runs
            done, logits = pending
            logits = np.asarray(logits, np.float32)[: len(done.rows_B)]
            if logits.ndim == 3:  # logits of tokens are only as wide as the batch
                empty_N[done.rows_B, : logits.shape[1]] = logits
            else:
                empty_N[done.rows_B] = logits
        pending = coming
    return empty_N
