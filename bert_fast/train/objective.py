"""The pre-training objective (masked words and next sentences): losses, sums for the log, and the evaluation step.

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
    """The number of predictions in the whole batch (the sum of their weights), at least 1."""
    return jnp.maximum(jnp.sum(batch["weights"]), 1)


def loss(program: Program, params: Params, frozen: Params, micro, predictions, route: Route, draws):
    """A micro-batch's part of the batch's loss (nats), and the losses of its predictions and examples.

    The batch's loss is the mean MLM loss of its predictions plus, with next-sentence labels, the mean next-sentence
    loss of its examples.
    """
    x_BSD = bert.encode(program.model, params, frozen, micro, program.plan, route, draws)
    fused = program.model.dtype == "bfloat16"  # in float32 and in evaluation, losses are exact
    losses = bert.losses(program.model, params, frozen, x_BSD, micro, fused)
    total = jnp.sum(losses.mlm_BP * micro["weights"]) / predictions
    if losses.next_B is not None:
        total = total + jnp.sum(losses.next_B) / program.batch_size
    return total, losses


def sums(program: Program, losses: Losses, batch) -> dict:
    """Float32 sums over a batch, with their denominators, so that the sums of several batches can be added.

    Predictions at [MASK] are also summed separately. Half of the other predictions are of words that are still in
    the text: by copying them, a model gains half a nat before it has learned anything about language.
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
    if losses.capped_BP is not None:
        result["capped"] = jnp.sum(losses.capped_BP.astype(jnp.float32) * batch["weights"])
    if losses.next_B is not None:
        # Examples that only fill up the last batch have no real token and no label.
        real_B = (batch["segments"] != 0).any(1)
        result["next_sum"] = jnp.sum(losses.next_B * real_B.astype(jnp.float32))
        result["next_correct"] = jnp.sum(losses.next_correct_B * real_B)
        result["rows"] = jnp.sum(real_B)
    return result


PRETRAINING = Objective(totals, loss, sums)


def means(sums: dict[str, float]) -> dict[str, float]:
    """Losses in nats and accuracies from `sums`. `mask_loss` covers only the words hidden by [MASK]."""
    predictions = max(sums["predictions"], 1)
    row = {
        "mlm_loss": sums["mlm_sum"] / predictions,
        "mask_loss": sums["mask_sum"] / max(sums["masks"], 1),
        "mlm_accuracy": sums["mlm_correct"] / predictions,
    }
    if sums.get("capped"):
        row["capped_predictions"] = sums["capped"]
    if "next_sum" in sums:
        rows = max(sums["rows"], 1)
        row |= {"nsp_loss": sums["next_sum"] / rows, "nsp_accuracy": sums["next_correct"] / rows}
    return row


def row_of(since: dict[str, float]) -> dict[str, float]:
    """The means in a log row, from the sums of `Counters.take_sums`.

    The loss, `layers_run` and the penalty, if any, are means over steps. The parts of the loss (nats) and the
    accuracies are means over predictions or examples.
    """
    of_steps = ["loss", "layers_run", *(["penalty"] if since["penalty"] else [])]
    return {**{key: since[key] / since["steps"] for key in of_steps}, **means(since)}


def make_eval_step(method: Method):
    """The evaluation step: (params, frozen, method_state, batch, program) -> sums. `program` is static.

    There is no dropout. Every layer runs, on the tokens that the program's plan keeps.
    """

    def eval_step(params: Params, frozen: Params, method_state, batch, program: Program):
        model, plan = program.model, edit(program.plan, 0, program.model.depth, frozen=False)
        seen = join(method.weights(params)[0], method.weights(frozen)[0])
        batch = method.order(method_state, batch, program, jax.random.key(0))
        x_BSD = bert.encode(model, seen, {}, batch, plan, Route(), None)
        return sums(program, bert.losses(model, seen, {}, x_BSD, batch), batch)

    return eval_step
