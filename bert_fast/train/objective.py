"""Pre-training's objective: masked words and next sentences; its losses, their sums, and the evaluation step.

Axes: as in bert.py.
"""

import jax
import jax.numpy as jnp

from bert_fast import bert
from bert_fast.bert import Losses, Params
from bert_fast.method import Method, Program
from bert_fast.plan import Route, edit
from bert_fast.train.step import Objective, join


def totals(program: Program, batch):
    """Predictions of the whole batch, at least 1."""
    return jnp.maximum(jnp.sum(batch["weights"]), 1)


def loss(program: Program, params: Params, frozen: Params, micro, predictions, route: Route, key):
    """The mean over the batch's predictions plus, where there are labels, the mean next-sentence loss (nats)."""
    x_BSD = bert.encode(program.model, params, frozen, micro, program.plan, route, key)
    losses = bert.losses(program.model, params, frozen, x_BSD, micro)
    total = jnp.sum(losses.mlm_BP * micro["weights"]) / predictions
    if losses.next_B is not None:
        total = total + jnp.sum(losses.next_B) / program.batch_size
    return total, losses


def sums(program: Program, losses: Losses, batch) -> dict:
    """Float32 sums over a batch: with their own denominators, so that rows of a log can be added up.

    Of the predictions, those behind [MASK] are summed once more: the others are mostly words that still stand in the
    text, and a model gains half a nat by copying them before it has learned anything of language.
    """
    ids_BP = jnp.take_along_axis(batch["ids"], batch["slots"], axis=1)
    hidden_BP = batch["weights"] * (ids_BP == program.model.special_ids[-1]).astype(jnp.float32)  # [MASK]
    result = {
        "mask_sum": jnp.sum(losses.mlm_BP * hidden_BP),
        "masks": jnp.sum(hidden_BP),
        "mlm_sum": jnp.sum(losses.mlm_BP * batch["weights"]),
        "mlm_correct": jnp.sum(losses.correct_BP.astype(jnp.float32) * batch["weights"]),
        "predictions": jnp.sum(batch["weights"]),
        "tokens_real": jnp.sum(batch["segments"] != 0),
    }
    if losses.next_B is not None:
        # Rows that only fill up a last batch have no real token and no label.
        real_B = (batch["segments"] != 0).any(1)
        result["next_sum"] = jnp.sum(losses.next_B * real_B.astype(jnp.float32))
        result["next_correct"] = jnp.sum(losses.next_correct_B * real_B)
        result["rows"] = jnp.sum(real_B)
    return result


PRETRAINING = Objective(totals, loss, sums)


def means(sums: dict[str, float]) -> dict[str, float]:
    """Losses in nats and accuracies from `sums`; `mask_loss` is that of the words behind [MASK]."""
    predictions = max(sums["predictions"], 1)
    row = {
        "mlm_loss": sums["mlm_sum"] / predictions,
        "mask_loss": sums["mask_sum"] / max(sums["masks"], 1),
        "mlm_accuracy": sums["mlm_correct"] / predictions,
    }
    if "next_sum" in sums:
        rows = max(sums["rows"], 1)
        row |= {"nsp_loss": sums["next_sum"] / rows, "nsp_accuracy": sums["next_correct"] / rows}
    return row


def row_of(since: dict[str, float]) -> dict[str, float]:
    """Means of a row of the log from what a counters has summed: the loss and the layers that ran over steps, each part
    of the loss over its predictions (nats), and the methods' penalty where there is one.
    """
    of_steps = ["loss", "layers_run", *(["penalty"] if since["penalty"] else [])]
    return {**{key: since[key] / since["steps"] for key in of_steps}, **means(since)}


def make_eval_step(method: Method):
    """The evaluation step: (params, frozen, method_state, batch, program) -> sums. `program` is static.

    No dropout; every layer takes part, and as many tokens as the plan of the program says.
    """

    def eval_step(params: Params, frozen: Params, method_state, batch, program: Program):
        model, plan = program.model, edit(program.plan, 0, program.model.depth, frozen=False)
        seen = join(method.weights(params)[0], method.weights(frozen)[0])
        batch = method.order(method_state, batch, program, jax.random.key(0))
        x_BSD = bert.encode(model, seen, {}, batch, plan, Route(), None)
        return sums(program, bert.losses(model, seen, {}, x_BSD, batch), batch)

    return eval_step
