"""Token dropping against its equations: plan, order of the tokens, forward pass, scores. Axes: as in bert.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from bert_fast import BadInput, bert, methods
from bert_fast.cost.flops import step_flops
from bert_fast.layers import Block, Embed, apply, layer_norm
from bert_fast.method import Clock, Method, Program, Stage, chain
from bert_fast.methods import token_drop
from bert_fast.plan import Route, Span, edit, whole
from bert_fast.schedule import Schedule
from bert_fast.train import optim
from bert_fast.train.step import TrainState, make_step
from configs import token_drop as token_drop_config

POST = bert.Config(150, 4, 16, 2, 8, 24, 12, pooler=True, dropout=0.0, attention_dropout=0.0)
PRE = dataclasses.replace(POST, norm="pre")
PAD, UNK, CLS, SEP, MASK = POST.special_ids
KEPT = 6
both_norms = pytest.mark.parametrize("config", [POST, PRE], ids=["post", "pre"])


def stage_of(model=POST, seq_len=12, slots=3, steps=10, **changes):
    program = Program(model, whole(model.depth), 3, 1, seq_len, slots, "mlm+nsp")
    return Stage("only", program, steps, Schedule(1e-3, 100), **changes)


def planned(model=POST, **arguments):
    """The plan that the method makes for rows of 12 tokens."""
    (stage,) = token_drop.make(**arguments).stages((stage_of(model),))
    return stage.program.plan


def packed_batch(seed=0):
    """Three rows: full; two documents and padding; fewer tokens than are kept. The last slots are not filled."""
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
    """A table of distinct scores, special ids pinned."""
    score_V = np.random.default_rng(seed).permutation(POST.table_rows).astype(np.float32) / 10
    score_V[[UNK, CLS, SEP, MASK]], score_V[PAD] = 1e4, -1e4
    return jnp.asarray(score_V)


SCORE_V = random_scores()


def ordered(score_V=SCORE_V, batch=BATCH, plan=None, key=None, **arguments):
    """The batch as the method orders it."""
    program = Program(POST, planned() if plan is None else plan, 3, 1, 12, 3, "mlm+nsp")
    return token_drop.make(**arguments).order(score_V, batch, program, key)


def reference_order(score_V, batch):
    """[selected, not selected] of SelectTopK in routing.py, by NumPy."""
    return np.argsort(-np.asarray(score_V)[batch["ids"]], axis=1, kind="stable")


def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


# The plan


def covered(plan):
    return [(span.start, span.stop, span.rows, span.keys) for span in plan]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (12, [(0, 5, None, None), (5, 6, 6, None), (6, 11, 6, 6), (11, 12, None, None)]),
        (24, [(0, 11, None, None), (11, 12, 6, None), (12, 23, 6, 6), (23, 24, None, None)]),
        (3, [(0, 1, 6, None), (1, 2, 6, 6), (2, 3, None, None)]),
        (2, [(0, 1, 6, None), (1, 2, None, None)]),
        (1, [(0, 1, None, None)]),
    ],
)
def test_plan_is_full_then_boundary_then_kept_then_full(depth, expected):
    assert covered(planned(dataclasses.replace(POST, depth=depth))) == expected


def test_kept_tokens_are_a_share_of_each_stages_length():
    stages = tuple(stage_of(dataclasses.replace(POST, max_len=512), length, 10) for length in (128, 512))
    both = token_drop.make().stages(stages)
    assert [stage.program.plan[1].rows for stage in both] == [64, 256]
    assert token_drop.make(keep=0.7).stages(stages)[0].program.plan[1].rows == 90


def test_frozen_layers_split_the_plan_and_stay_frozen():
    stage = stage_of(dataclasses.replace(POST, depth=12))
    frozen = dataclasses.replace(stage.program, plan=edit(whole(12), 0, 8, frozen=True))
    (both,) = token_drop.make().stages((dataclasses.replace(stage, program=frozen),))
    plain = planned(stage.program.model)
    assert both.program.plan == edit(plain, 0, 8, frozen=True)
    assert [(span.start, span.stop, span.frozen) for span in both.program.plan] == [
        (0, 5, True), (5, 6, True), (6, 8, True), (8, 11, False), (11, 12, False),
    ]  # fmt: skip


@pytest.mark.parametrize(("full_tail", "steps"), [(0.0, [60, 40]), (0.1, [60, 30, 10]), (0.5, [50, 10, 40])])
def test_tail_of_the_steps_is_without_dropping(full_tail, steps):
    stages = (stage_of(steps=60), stage_of(steps=40))
    cut = token_drop.make(full_tail=full_tail).stages(stages)
    assert [stage.steps for stage in cut] == steps
    dropping = sum(stage.steps for stage in cut if stage.program.plan != whole(4))
    assert dropping == round(100 * (1 - full_tail))
    assert all(stage.program.plan in (whole(4), planned()) for stage in cut)
    assert cut[0].program.plan == planned()
    assert (cut[-1].program.plan == whole(4)) == (full_tail > 0)


def test_tail_is_a_share_of_the_last_training():
    stages = (stage_of(steps=30), stage_of(steps=60, data="restart"), stage_of(steps=40))
    cut = token_drop.make(full_tail=0.25).stages(stages)
    assert [(stage.steps, stage.data, stage.program.plan == whole(4)) for stage in cut] == [
        (30, "continue", False), (60, "restart", False), (15, "continue", False), (25, "continue", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("depth", "width", "seq_len", "slots", "saved"),
    # tensorflow/models, bert_en_uncased_base_token_drop.yaml and its like: with the MLM head, forward and backward.
    [(12, 768, 512, 76, 0.245), (12, 768, 128, 20, 0.236), (24, 1024, 512, 76, 0.252)],
)
def test_a_step_is_a_quarter_cheaper(depth, width, seq_len, slots, saved):
    model = bert.Config(30_522, depth, width, width // 64, 64, 4 * width)
    stage = stage_of(model, seq_len, slots)
    (dropping,) = token_drop.make().stages((stage,))
    dense, dropped = (step_flops(dataclasses.replace(s.program, objective="mlm")).executed for s in (stage, dropping))
    assert 1 - dropped / dense == pytest.approx(saved, abs=5e-4)
    rows = sum((span.stop - span.start) * (span.rows or seq_len) for span in dropping.program.plan)
    assert rows == 0.75 * depth * seq_len


# The order of the tokens


def test_order_and_its_inverse_are_those_of_the_released_code():
    batch = {name: np.array([[0, 1, 2, 3]], np.int32) for name in ("ids", "types", "positions", "slots")}
    batch |= {"segments": np.ones((1, 4), np.int32), "cls": np.array([2], np.int32)}
    moved = token_drop.kept_first(jnp.array([[5.0, 9.0, 1.0, 9.0]]), batch)
    np.testing.assert_array_equal(moved["positions"], [[1, 3, 0, 2]])  # selected [1, 3], then not selected [0, 2]
    np.testing.assert_array_equal(moved["slots"], [[2, 0, 3, 1]])
    np.testing.assert_array_equal(moved["cls"], [3])


@pytest.mark.parametrize("seed", range(3))
def test_every_pointer_points_to_the_token_it_pointed_to(seed):
    batch = packed_batch(seed)
    moved = ordered(random_scores(seed), batch)
    order_BS = reference_order(random_scores(seed), batch)
    for name in ("ids", "types", "positions", "segments"):
        np.testing.assert_array_equal(moved[name], np.take_along_axis(batch[name], order_BS, 1))
        assert moved[name].dtype == np.int32
    np.testing.assert_array_equal(np.take_along_axis(order_BS, moved["slots"], 1), batch["slots"])
    np.testing.assert_array_equal(order_BS[np.arange(3), moved["cls"]], batch["cls"])
    for name in ("labels", "weights", "next"):
        assert moved[name] is batch[name]
    assert "cls" not in ordered(batch={name: x for name, x in batch.items() if name != "cls"})


def test_nothing_is_moved_where_the_plan_restricts_nothing():
    assert ordered(plan=whole(4)) is BATCH


def test_ties_stay_in_order():
    moved = ordered(token_drop.make().init({}, POST)[1])
    np.testing.assert_array_equal(moved["positions"][0], [0, 2, 1, *range(3, 12)])  # [CLS] and [MASK] before the others


def test_padding_comes_last_whatever_its_score():
    # As [PAD] of the released code drifts: above ids that are learned well.
    moved = ordered(SCORE_V.at[PAD].set(9e3))
    real_BS = np.asarray(moved["segments"]) != 0
    assert (np.diff(real_BS.astype(int), axis=1) <= 0).all()
    assert ordered(SCORE_V.at[PAD].set(2e4))["segments"][1, 0] == 1


def test_tokens_are_looked_up_by_what_stands_in_the_input():
    # The word to be predicted at position 7 is 6; what stands there is another, at 2 it is [MASK].
    score_V = jnp.full(POST.table_rows, 5.0).at[MASK].set(9.0).at[6].set(8.0).at[BATCH["ids"][0, 7]].set(1.0)
    moved = ordered(score_V)
    assert moved["slots"][0].tolist() == [0, 11, 10]


def test_random_scores_are_drawn_anew_and_keep_special_tokens():
    _, score_V = token_drop.make(scores="random").init({}, POST)
    one, again, other = (ordered(score_V, scores="random", key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["ids"], again["ids"])
    assert (np.asarray(one["ids"]) != other["ids"]).any()
    for moved in (one, other):
        assert set(np.asarray(moved["ids"])[0, :2]) == {CLS, MASK}
        np.testing.assert_array_equal(np.asarray(moved["segments"])[1, 10:], 0)
    first = [set(ordered(score_V, scores="random", key=jax.random.key(seed))["positions"][0, 2:KEPT].tolist())
             for seed in range(30)]  # fmt: skip
    assert set.union(*first) == set(range(12)) - {0, 2}  # no ordinary token is always dropped


# The forward pass


def reference_layer(config, params, x_QD, y_KD, allowed_QK):
    """One encoder layer: x updated by attention to y. NumPy, float64."""
    eps, pre = config.norm_eps, config.norm == "pre"

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


def reference_dropped(config, params, batch, score_V, kept):
    """Hidden states in the order of the input, MLM losses and next-sentence losses, of TokenDropBertEncoder:
    gathered before the boundary, restored before the last layer, one example at a time. NumPy, float64.
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
        for i in range(depth // 2 - 1):
            x_SD = reference_layer(config, at(i), x_SD, x_SD, full_SS)
        x_selected, x_unselected = x_SD[selected], x_SD[unselected]
        of_all = np.concatenate([segments_S[selected], segments_S[unselected]])
        y_SD = np.concatenate([x_selected, x_unselected])
        allowed = segments_S[selected][:, None] == of_all
        x_selected = reference_layer(config, at(depth // 2 - 1), x_selected, y_SD, allowed)
        allowed = segments_S[selected][:, None] == segments_S[selected]
        for i in range(depth // 2, depth - 1):
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


def restored(x_BSD, order_BS):
    """Hidden states back in the order of the input."""
    return jnp.take_along_axis(x_BSD, jnp.argsort(order_BS, axis=1)[..., None], axis=1)


@both_norms
def test_forward_pass_is_that_of_the_released_code(config):
    params, batch = reference.random_params(config), ordered()
    x_BSD = bert.encode(config, params, {}, batch, planned(config), Route(), None)
    losses = bert.losses(config, params, {}, x_BSD, batch)
    hidden_BSD, mlm_BP, next_B = reference_dropped(config, params, BATCH, SCORE_V, KEPT)
    close(np.asarray(restored(x_BSD, reference_order(SCORE_V, BATCH)))[REAL_BS], hidden_BSD[REAL_BS])
    close((losses.mlm_BP, losses.next_B), (mlm_BP, next_B))


def losses_sum(config, params, batch, x_BSD):
    losses = bert.losses(config, params, {}, x_BSD, batch)
    return jnp.sum(losses.mlm_BP * batch["weights"]) + jnp.sum(losses.next_B)


def ordered_loss(params, config, plan, batch):
    return losses_sum(config, params, batch, bert.encode(config, params, {}, batch, plan, Route(), None))


def gathered_loss(params, config, order_BS):
    """The same by gathers in the trunk, as the released code does it."""
    depth, selected, unselected = config.depth, order_BS[:, :KEPT], order_BS[:, KEPT:]
    take = lambda x, at: jnp.take_along_axis(x, at if x.ndim == 2 else at[..., None], axis=1)  # noqa: E731

    def layer(i, x_BQD, y_BKD, of_q, of_k):
        allowed_BQK = of_q[:, :, None] == of_k[:, None, :]
        of_layer = jax.tree.map(lambda leaf: leaf[i], params["layers"])
        return apply(Block(config, config.heads, config.hidden), of_layer, x_BQD, y_BKD, allowed_BQK, None, None)

    segments_BS = BATCH["segments"]
    x_BSD = apply(Embed(config), params["embed"], BATCH, None)
    for i in range(depth // 2 - 1):
        x_BSD = layer(i, x_BSD, x_BSD, segments_BS, segments_BS)
    x_selected, x_unselected = take(x_BSD, selected), take(x_BSD, unselected)
    y_BSD = jnp.concatenate([x_selected, x_unselected], axis=1)
    of_selected = take(segments_BS, selected)
    x_selected = layer(depth // 2 - 1, x_selected, y_BSD, of_selected, take(segments_BS, order_BS))
    for i in range(depth // 2, depth - 1):
        x_selected = layer(i, x_selected, x_selected, of_selected, of_selected)
    x_BSD = restored(jnp.concatenate([x_selected, x_unselected], axis=1), order_BS)
    x_BSD = layer(depth - 1, x_BSD, x_BSD, segments_BS, segments_BS)
    if config.norm == "pre":
        x_BSD = apply(layer_norm(config), params["final_norm"], x_BSD)
    return losses_sum(config, params, BATCH, x_BSD)


def test_tokens_ordered_at_the_input_equal_tokens_gathered_in_the_trunk():
    # With gradients. The same LayerNorm on queries and keys: in pre-LN it is the boundary's own.
    config, params = PRE, reference.random_params(PRE)
    ours = jax.jit(jax.value_and_grad(ordered_loss), static_argnums=(1, 2))
    gathered = jax.jit(jax.value_and_grad(gathered_loss), static_argnums=1)
    order_BS = reference_order(SCORE_V, BATCH)
    close(ours(params, config, planned(config), ordered()), gathered(params, config, order_BS))


@both_norms
def test_keeping_every_token_equals_the_baseline(config):
    params, plan = reference.random_params(config), planned(config, keep=1.0)
    assert plan[1].rows == 12
    x_BSD = bert.encode(config, params, {}, ordered(plan=plan), plan, Route(), None)
    plain_BSD = bert.encode(config, params, {}, BATCH, whole(4), Route(), None)
    close(np.asarray(restored(x_BSD, reference_order(SCORE_V, BATCH)))[REAL_BS], np.asarray(plain_BSD)[REAL_BS])
    losses = [bert.losses(config, params, {}, x, b) for x, b in ((x_BSD, ordered(plan=plan)), (plain_BSD, BATCH))]
    close(losses[0], losses[1])


def lower_layers(params, count):
    return {**params, "layers": jax.tree.map(lambda leaf: leaf[:count], params["layers"])}


def below(params, count, batch):
    """Hidden states after the lowest `count` layers of the plan."""
    plan = tuple(span for span in planned() if span.stop <= count)
    model = dataclasses.replace(POST, depth=count)
    return np.asarray(bert.encode(model, lower_layers(params, count), {}, batch, plan, Route(), None))


def test_dropped_tokens_keep_their_value_from_the_boundary_to_the_last_layer():
    params, batch = reference.random_params(POST), ordered()
    before_BSD, after_BSD = below(params, 1, batch), below(params, 3, batch)
    np.testing.assert_array_equal(after_BSD[:, KEPT:], before_BSD[:, KEPT:])
    assert (after_BSD[:, :KEPT] != before_BSD[:, :KEPT]).any(-1).all()
    last_BSD = np.asarray(bert.encode(POST, params, {}, batch, planned(), Route(), None))
    assert (last_BSD[:, KEPT:] != before_BSD[:, KEPT:]).any(-1).all()


def test_a_dropped_token_reaches_kept_ones_up_to_the_boundary():
    params, batch = reference.random_params(POST), ordered()
    other = {**batch, "types": np.asarray(batch["types"]).copy()}
    other["types"][0, KEPT] ^= 1
    moved_BS = (below(params, 3, other) != below(params, 3, batch)).any(-1)
    assert moved_BS[0, :KEPT].all()
    # Through the boundary's keys alone, too: the plan of two layers has no layer below it.
    model = dataclasses.replace(POST, depth=2)
    one, two = (
        bert.encode(
            dataclasses.replace(POST, depth=1), lower_layers(params, 1), {}, b, planned(model)[:1], Route(), None
        )
        for b in (batch, other)
    )
    assert (np.asarray(one) != np.asarray(two)).any(-1)[0, :KEPT].all()


def test_a_dropped_token_reaches_kept_ones_after_the_boundary_in_the_last_layer_only():
    # What comes out of the boundary is made the embeddings of a model of the two layers above it.
    params, batch = reference.random_params(POST), ordered()
    x_BSD = below(params, 2, batch)
    above = dataclasses.replace(POST, vocab_size=36, depth=2, embed_norm=False)
    tables = {"position": np.zeros((12, 16), np.float32), "type": np.zeros((2, 16), np.float32)}
    upper = jax.tree.map(lambda leaf: leaf[2:], params["layers"])
    plan = (Span(0, 1, KEPT, KEPT), Span(1, 2))
    assert [(span.rows, span.keys) for span in planned()[2:]] == [(span.rows, span.keys) for span in plan]

    def on(x_BSD, count):
        model = dataclasses.replace(above, depth=count)
        word_VD = np.zeros((model.table_rows, 16), np.float32)
        word_VD[:36] = x_BSD.reshape(36, 16)
        tree = {"embed": {"word": word_VD, **tables}, "layers": upper}
        ids_BS = np.arange(36, dtype=np.int32).reshape(3, 12)
        return np.asarray(
            bert.encode(model, lower_layers(tree, count), {}, {**batch, "ids": ids_BS}, plan[:count], Route(), None)
        )

    np.testing.assert_array_equal(on(x_BSD, 1)[:, :KEPT], below(params, 3, batch)[:, :KEPT])
    other_BSD = x_BSD.copy()
    other_BSD[0, KEPT] += 1
    np.testing.assert_array_equal(on(other_BSD, 1)[:, :KEPT], on(x_BSD, 1)[:, :KEPT])
    assert (on(other_BSD, 2) != on(x_BSD, 2)).any(-1)[0, :KEPT].all()


# The scores


def learned(score_V, losses_BP, batch=BATCH, **arguments):
    """The table after one batch with these losses."""
    losses = bert.Losses(jnp.asarray(losses_BP, jnp.float32), None, None, None)
    return np.asarray(token_drop.make(**arguments).update(score_V, {}, batch, losses))


LOSSES_BP = np.array([[2, 3, 4], [5, 6, 7], [8, 9, 10.5]])


def test_scores_begin_high_and_pinned():
    params = {"any": 0}
    same, score_V = token_drop.make().init(params, POST)
    assert same is params
    assert score_V.shape == (POST.table_rows,)
    assert score_V.dtype == jnp.float32
    pinned = {PAD: -1e4, UNK: 1e4, CLS: 1e4, SEP: 1e4, MASK: 1e4}
    assert {v: float(score_V[v]) for v in pinned} == pinned
    assert set(np.delete(np.asarray(score_V), list(pinned)).tolist()) == {10.0}
    other = dataclasses.replace(POST, special_ids=(7, 8, 9, 10, 11))
    assert float(token_drop.make().init({}, other)[1][7]) == -1e4


def test_one_loss_moves_a_score_by_a_two_hundredth():
    _, score_V = token_drop.make().init({}, POST)
    batch = {**BATCH, "labels": np.array([[5]]), "weights": np.ones((1, 1))}
    assert learned(score_V, [[2.0]], batch)[5] == pytest.approx(9.96, abs=1e-6)
    assert learned(score_V, [[2.0]], batch, repeats="last_write")[5] == pytest.approx(9.96, abs=1e-6)
    assert learned(score_V, [[2.0]], batch, beta=0.9)[5] == pytest.approx(9.2, abs=1e-6)


def test_scores_are_learned_by_label_and_by_filled_slots_only():
    _, score_V = token_drop.make().init({}, POST)
    after_V = learned(score_V, LOSSES_BP)
    # Words 5, 6, 7 and 9 are labels; [MASK] and what else stands in their places is not; label 0 is a slot not filled.
    assert np.flatnonzero(after_V != np.asarray(score_V)).tolist() == [5, 6, 7, 9]
    without = {**BATCH, "weights": np.zeros((3, 3), np.float32)}
    with jax.debug_nans(True):
        np.testing.assert_array_equal(learned(score_V, LOSSES_BP, without), score_V)


def random_slots(seed, slots=40):
    """Losses, labels (some of them special) and weights of 3 rows with many duplicates; some slots are not filled."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 5, 6, 7, 8, 149, UNK, MASK], (3, slots))
    weights = rng.choice([0, 0.5, 1, 2], (3, slots))
    labels[:, -5:], weights[:, -5:] = 0, 0
    return rng.uniform(0, 12, (3, slots)).astype(np.float32), {**BATCH, "labels": labels, "weights": weights}


@pytest.mark.parametrize("seed", range(3))
def test_an_id_moves_once_to_the_weighted_mean_of_its_losses(seed):
    losses_BP, batch = random_slots(seed)
    expected_V = np.asarray(SCORE_V, np.float64).copy()
    for v in np.unique(batch["labels"]):
        of_v = (batch["labels"] == v) * batch["weights"]
        if of_v.sum() and v not in POST.special_ids:
            expected_V[v] = 0.995 * expected_V[v] + 0.005 * (of_v * losses_BP).sum() / of_v.sum()
    after_V = learned(SCORE_V, losses_BP, batch)
    np.testing.assert_allclose(after_V, expected_V, rtol=1e-6)
    rest = np.setdiff1d(np.arange(POST.table_rows), batch["labels"])
    np.testing.assert_array_equal(after_V[rest], np.asarray(SCORE_V)[rest])
    special = np.array(POST.special_ids)
    np.testing.assert_array_equal(after_V[special], np.asarray(SCORE_V)[special])


def test_last_write_is_the_released_update():
    table_V, score_V = np.asarray(SCORE_V, np.float64), SCORE_V
    for seed in range(20):
        losses_BP, batch = random_slots(seed)
        old_V = table_V.copy()
        # tensor_scatter_nd_update of routing.py, one slot after another: every one, and old scores gathered before.
        for loss, v in zip(losses_BP.ravel(), batch["labels"].ravel(), strict=True):
            table_V[v] = 0.995 * old_V[v] + 0.005 * loss
        score_V = learned(score_V, losses_BP, batch, repeats="last_write")
    np.testing.assert_allclose(score_V, table_V, rtol=1e-5)
    # What follows from it: [PAD] drifts upwards by slots that are not filled, [UNK] and [MASK] come down.
    assert score_V[PAD] == pytest.approx(-1e4 * 0.995**20, abs=2)
    assert score_V[UNK] < 9.5e3 > score_V[MASK]
    assert score_V[CLS] == 1e4


def test_small_steps_are_not_lost_in_a_bfloat16_model():
    _, score_V = token_drop.make().init({}, dataclasses.replace(POST, dtype="bfloat16"))
    batch = {**BATCH, "labels": np.array([[5]]), "weights": np.ones((1, 1))}
    for _ in range(3):
        score_V = learned(score_V, [[9.0]], batch)
        assert score_V.dtype == np.float32
    assert score_V[5] == pytest.approx(9 + 0.995**3, abs=1e-5)


def test_frequency_counts_real_input_ids():
    method = token_drop.make(scores="frequency")
    _, score_V = method.init({}, POST)
    for seed in (0, 1):
        score_V = method.update(score_V, {}, packed_batch(seed), None)
    ids = np.concatenate([packed_batch(seed)["ids"][REAL_BS] for seed in (0, 1)])
    expected_V = -np.bincount(ids, minlength=POST.table_rows).astype(float)
    expected_V[[UNK, CLS, SEP, MASK]], expected_V[PAD] = 1e4, -1e4
    np.testing.assert_array_equal(score_V, expected_V)
    # Counts above 10,000 are counts like others.
    word, rarer = BATCH["ids"][0, 1], BATCH["ids"][0, 5]
    many_V = method.update(score_V.at[word].set(-1e5).at[rarer].set(-2e4), {}, BATCH, None)
    assert many_V[word] < -1e5 < many_V[rarer] < -2e4
    assert ordered(many_V)["positions"][0, -2:].tolist() == [5, 1]


def test_random_learns_nothing():
    method = token_drop.make(scores="random")
    _, score_V = method.init({}, POST)
    assert method.update(score_V, {}, BATCH, None) is score_V


def test_scores_begin_anew_with_a_training():
    method = token_drop.make()
    _, first_V = method.init({}, POST)
    for data, expected_V in (("continue", SCORE_V), ("restart", first_V)):
        surgery, score_V, new = method.enter({}, SCORE_V, stage_of(), stage_of(data=data), None, None)
        np.testing.assert_array_equal(score_V, expected_V)
        assert (surgery.params("p"), surgery.moments("m"), new) == ("p", "m", stage_of(data=data))


@pytest.fixture(scope="module")
def train_step():
    """(micro_batches) -> a batch, and the state after one train step on it."""
    method = chain(token_drop.make(), Method())
    optimizer = optim.make(optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.5, True, 1.0))
    step = jax.jit(make_step(method, optimizer, 0), static_argnums=4)
    params = reference.random_params(POST)

    def after(micro_batches):
        program = Program(POST, planned(), 6, micro_batches, 12, 3, "mlm+nsp")
        batch = jax.tree.map(lambda *two: np.concatenate(two), packed_batch(0), packed_batch(1))
        state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), (SCORE_V, ()))
        return batch, step(state, batch, Route(), 0.1, program)[0]

    return functools.cache(after)


def test_a_step_learns_from_its_own_losses(train_step):
    batch, state = train_step(1)
    params = reference.random_params(POST)
    _, mlm_BP, _ = reference_dropped(POST, params, batch, SCORE_V, KEPT)
    # The table is no parameter: neither the rate nor the decay of 0.5 moves a score that no loss moves.
    np.testing.assert_allclose(state.method[0], learned(SCORE_V, mlm_BP, batch), rtol=1e-6)
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_micro_batches_learn_what_the_batch_does(train_step):
    one, two = train_step(1)[1], train_step(2)[1]
    np.testing.assert_allclose(one.method[0], two.method[0], rtol=1e-6)
    assert (np.asarray(one.method[0]) != np.asarray(SCORE_V)).sum() == 4


# What is said


def test_report_names_the_words_that_were_learned():
    pieces = [f"w{v}" for v in range(150)]
    method, stage = token_drop.make(), stage_of()
    (dropping,) = method.stages((stage,))
    _, first_V = method.init({}, POST)
    clock = Clock(3, 10)
    assert method.report(first_V, stage, clock, pieces) == {"kept": 1.0, "most_important": [], "least_important": []}
    scored = {v: float(v) / 7 for v in range(40, 65)}
    # Special ids, ids that were never predicted, and ids behind the vocabulary are left out.
    score_V = first_V.at[jnp.array([*scored, PAD, 200])].set(jnp.array([*scored.values(), 500.0, 900.0]))
    said = method.report(score_V, dropping, clock, pieces)
    assert said["kept"] == 0.5
    assert said["most_important"] == [f"w{v}" for v in range(64, 54, -1)]
    assert said["least_important"] == [f"w{v}" for v in range(40, 50)]
    random = token_drop.make(scores="random")
    assert random.report(random.init({}, POST)[1], dropping, clock, pieces) == {"kept": 0.5}


def test_ids_behind_the_vocabulary_never_matter():
    score_V = SCORE_V.at[150:].set(9e3)
    np.testing.assert_array_equal(ordered(score_V)["ids"], ordered()["ids"])
    np.testing.assert_array_equal(learned(score_V, LOSSES_BP)[:150], learned(SCORE_V, LOSSES_BP)[:150])


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0.0}, r"--config\.token_drop\.keep=0\.0: expected a share"),
        ({"keep": 1.5}, "at most 1"),
        ({"beta": 1.0}, r"token_drop\.beta=1\.0.*below 1"),
        ({"beta": -0.1}, "at least 0"),
        ({"start": 1e4}, r"token_drop\.start=10000\.0"),
        ({"start": float("nan")}, r"token_drop\.start=nan"),
        ({"scores": "los"}, r"token_drop\.scores='los'.*loss, random, frequency"),
        ({"repeats": "last"}, r"token_drop\.repeats='last'.*mean, last_write"),
        ({"repeats": "last_write", "scores": "random"}, r"token_drop\.scores=loss"),
        ({"full_tail": 1.0}, r"token_drop\.full_tail=1\.0"),
        ({"full_tail": -0.1}, "expected a share of the steps"),
        ({"kep": 0.5}, "did you mean keep"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        methods.make([("token_drop", arguments)])


def test_keep_that_cannot_hold_special_and_masked_tokens_is_refused_with_one_that_can():
    stage = stage_of(dataclasses.replace(POST, max_len=128), 128, 20)
    with pytest.raises(BadInput, match=r"keeps 22 of 128 .* hold 20 .* 3 special.*keep=0\.18,"):
        token_drop.make(keep=0.17).stages((stage,))
    token_drop.make(keep=0.18).stages((stage,))
    shallow = dataclasses.replace(
        stage, program=dataclasses.replace(stage.program, model=dataclasses.replace(POST, depth=1))
    )
    assert token_drop.make(keep=0.1).stages((shallow,)) == (shallow,)


@pytest.mark.parametrize("changes", [{"rows": 8}, {"keys": 8}])
def test_a_second_method_that_leaves_out_tokens_is_refused(changes):
    stage = stage_of()
    program = dataclasses.replace(stage.program, plan=edit(whole(4), 1, 2, **changes))
    with pytest.raises(BadInput, match=r"--config\.methods: .* stage only leaves out .* token_drop cannot"):
        token_drop.make().stages((dataclasses.replace(stage, program=program),))


def test_config_is_the_released_recipe():
    # tensorflow/models, official/projects/token_dropping: wiki_books_pretrain_sequence_pack.yaml,
    # bert_en_uncased_base_token_drop.yaml, encoder_config.py and experiment_configs.py.
    config = token_drop_config.get_config()
    assert (config.methods, config.phases, config.batch_size, config.steps) == ("token_drop", "512:1", 512, 1_000_000)
    assert config.token_drop.to_dict() == {
        "keep": 0.5, "beta": 0.995, "start": 10.0, "scores": "loss", "repeats": "mean", "full_tail": 0.0
    }  # fmt: skip
    rate = config.learning_rate
    assert (rate.peak, rate.warmup_steps, rate.decay, rate.end) == (1e-4, 10_000, "linear", 0.0)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.eps) == ("adamw", 0.9, 0.999, 1e-7)
    assert (optimizer.weight_decay, optimizer.bias_correction, optimizer.clip_norm) == (0.01, True, 1.0)
    model = config.model
    assert (model.depth, model.width, model.heads, model.hidden, model.max_len) == (12, 768, 12, 3072, 512)
    assert (model.norm, model.activation, model.pooler) == ("post", "gelu_tanh", False)
    assert (model.dropout, model.attention_dropout, model.init_std) == (0.1, 0.1, 0.02)
    assert (config.data.objective, config.data.masked_share) == ("mlm", 0.15)
    assert token_drop_config.get_config("seq=128").phases == "128:1"
    assert token_drop_config.get_config("objective=mlm+nsp").model.pooler


def test_every_argument_can_be_set_by_a_flag():
    # A flag sets an attribute: an argument with the name of one of ConfigDict's own methods would be out of its reach.
    config = token_drop_config.get_config()
    for key, default in methods.defaults()["token_drop"].items():
        assert getattr(config.token_drop, key) == default
