"""Token dropping: unimportant tokens skip the middle layers and return in the last one (Hou et al. 2022).

The first L/2 - 1 of L layers update every token. The next layer, the boundary, updates only the kept
tokens, which attend to all tokens. The layers above it see only the kept tokens. The last layer updates
every token again; dropped tokens enter it with the vectors that had entered the boundary. A token's
importance is the running MLM loss of its vocabulary id. It is looked up by input id, and learned from
the losses of labels with this id.

Hou et al. is arXiv 2203.13240; the released code is tensorflow/models, official/projects/token_dropping (`encoder.py`,
`masked_lm.py`) and official/nlp/modeling/layers/routing.py. That code gathers hidden states before the
boundary and after the middle layers. Here the integer inputs are sorted once per step, so that the kept
tokens come first and the trunk can take them with a slice.

Axes: B examples, S tokens of an example, P prediction slots, N slots of the batch, V rows of the embedding table,
W word pieces of the vocabulary.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import BadInput
from bert_fast.bert import Config
from bert_fast.method import Method, Stage, cut, same
from bert_fast.plan import drops_tokens, edit
from bert_fast.token_order import kept_first

SCORES = ("loss", "random", "frequency")
REPEATS = ("mean", "last_write")
PINNED = 1e4  # `init_importance` in encoder.py: +1e4 for `token_allow_list`, -1e4 for `token_deny_list`
SPECIAL_TOKENS = 3  # at most, with one or two segments per example: [CLS], and [SEP] after each segment
SHOWN = 10  # word pieces in each list of a log row
KEYS = {
    "kept": "Share of an example's positions that the middle layers update.",
    "most_important": "Word pieces with the highest scores: the last to be dropped.",
    "least_important": "Word pieces with the lowest scores: the first to be dropped.",
}
RENAMED = {"beside": "examples_per_row"}


def make(
    keep: float = 0.5,  # `token_keep_k`: 256 of 512 in bert_en_uncased_base_token_drop.yaml
    beta: float = 0.995,  # `token_loss_beta` there
    start: float = 10.0,  # `token_loss_init_value` there; about ln 30522, the loss of guessing
    scores: str = "loss",
    repeats: str = "mean",  # not "update": ConfigDict has that attribute, so flags could not set it
    full_tail: float = 0.0,  # the released code drops tokens to the end; whether the paper does is unverified
    examples_per_row: int = 1,
    boundary: int = -1,
    shortest: int = 0,
) -> Method:
    """Token dropping as released, with one exception: see `repeats`.

    keep: share of an example's positions that the middle layers (the boundary to the second-to-last layer) update.
        On a TPU the number of kept positions should ideally be a multiple of 128: see `examples_per_row`.
    beta, start: parameters of the running loss of an id, in nats. The running loss begins at `start`. Each update sets
        it to beta * old + (1 - beta) * new.
    scores: "loss", or a control with the same plan. "random" draws new scores in every step. "frequency" keeps the
        rarest ids. The paper has such controls, but their code was not released. "frequency" counts ids during
        training; the paper's control reportedly uses counts over a corpus (unverified).
    repeats: how a batch updates the score of an id that is the label of one or more slots.
        "mean": one step towards the weighted mean of the id's losses. Special ids keep their scores, and unfilled slots
        are ignored.
        "last_write", as released: one step towards one of the id's losses. In the released code, this is the loss
        that happens to be written last. Here it is the last loss in batch order. The scores of special ids drift if
        these ids are ever labels, and unfilled slots count as losses of label 0.
        The released table is per replica: `add_weight` in routing.py requests no aggregation, so each replica learns
        from its own examples. Here both values of `repeats` update one table from the whole batch.
    full_tail: the share of the training steps, at the end of training, that drop no tokens. If training restarts, this
        is a share of the steps after the last restart.
    examples_per_row: number of examples joined along the token axis in layers that see only kept tokens. Joining does
        not change results, given equal dropout. It is meant for TPUs: 64 kept tokens of 128 fill half the lanes of a
        register, and two joined examples fill all of them. The cost is in attention: with two joined examples, half of
        its scores are discarded (see experiments/tpu_plan.md). On other hardware, joining only costs time.
    boundary: the layer, counted from 0, that updates only kept tokens and attends to all tokens. The layers below it
        update every token. The default, -1, means L/2 - 1, as released. At most L - 2 is possible, since the last layer
        updates every token.
    shortest: stages whose examples are shorter than this drop nothing. It is meant for runs that begin with rows of a
        few tokens.

    Special and masked tokens are kept first, and padding last. Among tokens with equal scores, the leftmost are kept.
    Ids that were never predicted have equal scores. So do special and masked tokens. This matters if an example has
    more of these than are kept (several documents packed into one example). A model of one layer drops nothing. The
    released code also drops tokens in validation; here that loss is logged as `mlm_loss_dropping`, next to the loss
    without dropping.
    """
    flag = "--config.token_drop"
    if not 0 < keep <= 1:
        raise BadInput(f"{flag}.keep={keep}: expected a share of the tokens, above 0 and at most 1 (the paper: 0.5)")
    if not 0 <= beta < 1:
        raise BadInput(f"{flag}.beta={beta}: expected at least 0 and below 1, or nothing is learned (the paper: 0.995)")
    if not abs(start) < PINNED:
        raise BadInput(f"{flag}.start={start}: expected a loss in nats, below {PINNED:g}, the special tokens' score")
    if scores not in SCORES:
        raise BadInput(f"{flag}.scores={scores!r} is unknown: expected {', '.join(SCORES)}")
    if repeats not in REPEATS:
        raise BadInput(f"{flag}.repeats={repeats!r} is unknown: expected {', '.join(REPEATS)}")
    if repeats == "last_write" and scores != "loss":
        raise BadInput(f"{flag}.repeats={repeats} applies to losses only: leave it out, or set {flag}.scores=loss")
    if not 0 <= full_tail < 1:
        raise BadInput(f"{flag}.full_tail={full_tail}: expected a share of the steps, at least 0 and below 1")
    if boundary < -1:
        raise BadInput(
            f"{flag}.boundary={boundary}: expected a layer counted from 0, or -1 for half of the layers minus 1"
        )
    if examples_per_row < 1:
        raise BadInput(
            f"{flag}.examples_per_row={examples_per_row}: expected at least 1 (which keeps examples separate)"
        )
    begin = start if scores == "loss" else 0.0

    def dropping(stage: Stage) -> Stage:
        """The stage with the layer plan of `TokenDropBertEncoder.call` in encoder.py."""
        program, depth = stage.program, stage.program.model.depth
        if program.seq_len < shortest:
            return stage
        first = depth // 2 - 1 if boundary == -1 else boundary
        if first < 0:
            return stage
        if first > depth - 2:
            raise BadInput(
                f"{flag}.boundary={boundary}: stage {stage.name} has {depth} layers, and the last one must be full: "
                f"set at most {depth - 2}, or -1 for half of each stage's layers minus 1"
            )
        if drops_tokens(program.plan):
            raise BadInput(
                f"--config.methods: the plan of stage {stage.name} already leaves out tokens ({program.plan}), so "
                "token_drop cannot choose which: remove one of the two methods"
            )
        kept, needed = max(1, round(keep * program.seq_len)), program.slots + SPECIAL_TOKENS
        if kept < needed:
            raise BadInput(
                f"{flag}.keep={keep} keeps {kept} of {program.seq_len} tokens, which cannot hold {program.slots} "
                f"predicted tokens and {SPECIAL_TOKENS} special ones: set at least "
                f"{flag}.keep={math.ceil(1000 * needed / program.seq_len) / 1000}, or a smaller "
                f"--config.data.masked_share, or longer examples in --config.phases, or {flag}.shortest="
                f"{program.seq_len + 1} to drop nothing in this stage"
            )
        plan = edit(program.plan, first, depth - 1, queries=kept)
        examples = program.batch_size // program.micro_batches
        if examples % examples_per_row:
            raise BadInput(
                f"{flag}.examples_per_row={examples_per_row} does not divide the {examples} examples of a micro-batch: "
                "change --config.batch_size so that it does, or leave examples_per_row out"
            )
        plan = edit(plan, first + 1, depth - 1, keys=kept, examples_per_row=examples_per_row)
        return dataclasses.replace(stage, program=dataclasses.replace(program, plan=plan))

    def stages(stages):
        restarts = [index for index, stage in enumerate(stages) if stage.data == "restart"]
        last_training = stages[restarts[-1] if restarts else 0 :]
        tail = sum(stage.steps for stage in stages) - round(full_tail * sum(stage.steps for stage in last_training))
        result, begins = [], 0
        for stage in cut(stages, tail):
            result.append(dropping(stage) if begins < tail else stage)
            begins += stage.steps
        return tuple(result)

    def first_scores(config: Config):
        pad, *others = config.special_ids
        score_V = np.full(config.table_rows, begin, np.float32)
        score_V[pad], score_V[others] = -PINNED, PINNED
        return jnp.asarray(score_V)

    def enter(params, score_V, old, new, initial, key):
        # A restart starts training over, and the losses of the old model say nothing about the new one.
        return params, same, first_scores(new.program.model) if new.data == "restart" else score_V, new

    def order(score_V, batch, program, key):
        if not drops_tokens(program.plan):
            return batch
        score_BS = score_V[batch["ids"]]
        if scores == "random":
            score_BS = score_BS + jax.random.uniform(key, score_BS.shape)
        return kept_first(score_BS, batch)

    def learn(score_V, params, batch, losses):
        rows = len(score_V)
        if scores == "random":
            return score_V
        if scores == "frequency":
            real_N = (batch["segments"] != 0).ravel().astype(jnp.float32)
            count_V = jax.ops.segment_sum(real_N, batch["ids"].ravel(), rows)
            return jnp.where(score_V < PINNED, score_V - count_V, score_V)
        loss_N, label_N = losses.mlm_BP.ravel(), batch["labels"].ravel()
        if repeats == "mean":
            loss_V, occurs_V = means(loss_N, batch["weights"].ravel(), label_N, rows)
            occurs_V &= jnp.abs(score_V) < PINNED
        else:
            loss_V, occurs_V = last_writes(loss_N, label_N, rows)
        return jnp.where(occurs_V, beta * score_V + (1 - beta) * loss_V, score_V)

    def report(score_V, stage, clock, pieces):
        program = stage.program
        queries = min(program.seq_len if span.queries is None else span.queries for span in program.plan)
        kept = {"kept": queries / program.seq_len}
        if scores == "random":
            return kept
        score_W = np.asarray(score_V)[: len(pieces)]
        ids = np.setdiff1d(np.flatnonzero(score_W != np.float32(begin)), program.model.special_ids)
        ranked = [pieces[index] for index in ids[np.argsort(-score_W[ids], kind="stable")]]
        return {**kept, "most_important": ranked[:SHOWN], "least_important": ranked[::-1][:SHOWN]}

    return Method(
        "token_drop",
        init=lambda params, config: (params, first_scores(config)),
        stages=stages,
        enter=enter,
        order=order,
        update=learn,
        report=report,
    )


def means(loss_N, weight_N, label_N, rows: int):
    """The mean loss of each id, and whether the id is the label of any filled slot."""
    sums_V2 = jax.ops.segment_sum(jnp.stack([loss_N * weight_N, weight_N], axis=-1), label_N, rows)
    loss_V, weight_V = sums_V2[:, 0], sums_V2[:, 1]
    occurs_V = weight_V > 0
    return loss_V / jnp.where(occurs_V, weight_V, 1), occurs_V


def last_writes(loss_N, label_N, rows: int):
    """For each id, the loss of the last slot (filled or not) that has it as its label, and whether there is one.

    This is `update_token_importance` in routing.py. Its scatter does not specify which of several equal ids wins.
    """
    last_V = jax.ops.segment_max(jnp.arange(len(label_N)), label_N, rows)
    return loss_N[jnp.maximum(last_V, 0)], last_V >= 0
