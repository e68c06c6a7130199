"""Token dropping's plan, order and forward pass, compared with a NumPy version of the released code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import BadInput, bert, token_order
from bert_fast.cost.flops import step_flops
from bert_fast.layers import Block, Embed, apply, layer_norm
from bert_fast.methods import token_drop
from bert_fast.plan import Route, Span, edit, whole
from helpers import reference
from helpers.token_drop_cases import (
    BATCH,
    CLS,
    KEPT,
    MASK,
    PAD,
    POST,
    REAL_BS,
    SCORE_V,
    ordered,
    packed_batch,
    planned,
    random_scores,
    reference_dropped,
    stage_of,
)

PRE = dataclasses.replace(POST, norm="pre")
both_norms = pytest.mark.parametrize("config", [POST, PRE], ids=["post", "pre"])


def reference_order(score_V, batch):
    """The order of SelectTopK in routing.py: first the selected tokens, then the others. Computed with NumPy."""
    return np.argsort(-np.asarray(score_V)[batch["ids"]], axis=1, kind="stable")


def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


# The plan


def covered(plan):
    return [(span.start, span.stop, span.queries, span.keys) for span in plan]


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
def test_plan_is_full_layers_then_the_boundary_then_kept_tokens_then_a_full_last_layer(depth, expected):
    assert covered(planned(dataclasses.replace(POST, depth=depth))) == expected


@pytest.mark.parametrize(
    ("boundary", "expected"),
    [
        (0, [(0, 1, 6, None), (1, 11, 6, 6), (11, 12, None, None)]),
        (2, [(0, 2, None, None), (2, 3, 6, None), (3, 11, 6, 6), (11, 12, None, None)]),
        (10, [(0, 10, None, None), (10, 11, 6, None), (11, 12, None, None)]),
    ],
)
def test_boundary_is_the_given_layer(boundary, expected):
    assert covered(planned(dataclasses.replace(POST, depth=12), boundary=boundary)) == expected


def test_default_boundary_is_half_the_layers_minus_1():
    for depth in (2, 3, 12, 24):
        model = dataclasses.replace(POST, depth=depth)
        assert planned(model, boundary=depth // 2 - 1) == planned(model)


@pytest.mark.parametrize(("depth", "boundary", "most"), [(12, 11, 10), (3, 5, 1), (1, 0, -1)])
def test_boundary_that_leaves_no_last_layer_is_refused_and_the_maximum_is_named(depth, boundary, most):
    message = rf"token_drop\.boundary={boundary}: stage only has {depth} layers.* set at most {most}, or -1"
    with pytest.raises(BadInput, match=message):
        planned(dataclasses.replace(POST, depth=depth), boundary=boundary)


def test_kept_tokens_are_a_share_of_each_stages_length():
    stages = tuple(stage_of(dataclasses.replace(POST, max_len=512), length, 10) for length in (128, 512))
    both = token_drop.make().stages(stages)
    assert [stage.program.plan[1].queries for stage in both] == [64, 256]
    assert token_drop.make(keep=0.7).stages(stages)[0].program.plan[1].queries == 90


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
def test_full_tail_drops_no_tokens(full_tail, steps):
    stages = (stage_of(steps=60), stage_of(steps=40))
    cut = token_drop.make(full_tail=full_tail).stages(stages)
    assert [stage.steps for stage in cut] == steps
    dropping = sum(stage.steps for stage in cut if stage.program.plan != whole(4))
    assert dropping == round(100 * (1 - full_tail))
    assert all(stage.program.plan in (whole(4), planned()) for stage in cut)
    assert cut[0].program.plan == planned()
    assert (cut[-1].program.plan == whole(4)) == (full_tail > 0)


def test_full_tail_is_a_share_of_the_last_training():
    stages = (stage_of(steps=30), stage_of(steps=60, data="restart"), stage_of(steps=40))
    cut = token_drop.make(full_tail=0.25).stages(stages)
    assert [(stage.steps, stage.data, stage.program.plan == whole(4)) for stage in cut] == [
        (30, "continue", False), (60, "restart", False), (15, "continue", False), (25, "continue", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("depth", "width", "seq_len", "slots", "saved"),
    # The sizes are from tensorflow/models, bert_en_uncased_base_token_drop.yaml and similar files. The costs include
    # the MLM head and the backward pass.
    [(12, 768, 512, 76, 0.245), (12, 768, 128, 20, 0.236), (24, 1024, 512, 76, 0.252)],
)
def test_a_step_is_a_quarter_cheaper(depth, width, seq_len, slots, saved):
    model = bert.Config(30_522, depth, width, width // 64, 64, 4 * width)
    stage = stage_of(model, seq_len, slots)
    (dropping,) = token_drop.make().stages((stage,))
    dense, dropped = (step_flops(dataclasses.replace(s.program, objective="mlm")).executed for s in (stage, dropping))
    assert 1 - dropped / dense == pytest.approx(saved, abs=5e-4)
    rows = sum((span.stop - span.start) * (span.queries or seq_len) for span in dropping.program.plan)
    assert rows == 0.75 * depth * seq_len


# The order of the tokens


def test_order_and_its_inverse_are_those_of_the_released_code():
    batch = {name: np.array([[0, 1, 2, 3]], np.int32) for name in ("ids", "types", "positions", "slots")}
    batch |= {"segments": np.ones((1, 4), np.int32), "cls": np.array([2], np.int32)}
    moved = token_order.kept_first(jnp.array([[5.0, 9.0, 1.0, 9.0]]), batch)
    np.testing.assert_array_equal(moved["positions"], [[1, 3, 0, 2]])  # selected [1, 3], then not selected [0, 2]
    np.testing.assert_array_equal(moved["slots"], [[2, 0, 3, 1]])
    np.testing.assert_array_equal(moved["cls"], [3])


@pytest.mark.parametrize("seed", range(3))
def test_every_pointer_still_points_to_its_token(seed):
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


def test_nothing_is_moved_if_the_plan_drops_no_tokens():
    assert ordered(plan=whole(4)) is BATCH


def test_ties_stay_in_order():
    moved = ordered(token_drop.make().init({}, POST)[1])
    np.testing.assert_array_equal(moved["positions"][0], [0, 2, 1, *range(3, 12)])  # [CLS] and [MASK] come first


def test_padding_comes_last_at_any_score():
    # In the released code the score of [PAD] drifts upwards, past the scores of ids that are learned well.
    moved = ordered(SCORE_V.at[PAD].set(9e3))
    real_BS = np.asarray(moved["segments"]) != 0
    assert (np.diff(real_BS.astype(int), axis=1) <= 0).all()
    assert ordered(SCORE_V.at[PAD].set(2e4))["segments"][1, 0] == 1


def test_scores_are_looked_up_by_input_id():
    # The label at position 7 is id 6, but the input there is another id. The input at position 2 is [MASK].
    score_V = jnp.full(POST.table_rows, 5.0).at[MASK].set(9.0).at[6].set(8.0).at[BATCH["ids"][0, 7]].set(1.0)
    moved = ordered(score_V)
    assert moved["slots"][0].tolist() == [0, 11, 10]


def test_random_scores_change_with_the_key_and_keep_special_tokens():
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


def restored(x_BSD, order_BS):
    """Hidden states back in input order."""
    return jnp.take_along_axis(x_BSD, jnp.argsort(order_BS, axis=1)[..., None], axis=1)


@both_norms
@pytest.mark.parametrize("boundary", [0, 1, 2])
def test_forward_pass_gives_the_results_of_the_released_code(config, boundary):
    params, batch = reference.random_params(config), ordered()
    x_BSD = bert.encode(config, params, {}, batch, planned(config, boundary=boundary), Route(), None)
    losses = bert.losses(config, params, {}, x_BSD, batch)
    hidden_BSD, mlm_BP, next_B = reference_dropped(config, params, BATCH, SCORE_V, KEPT, boundary)
    close(np.asarray(restored(x_BSD, reference_order(SCORE_V, BATCH)))[REAL_BS], hidden_BSD[REAL_BS])
    close((losses.mlm_BP, losses.next_B), (mlm_BP, next_B))


def losses_sum(config, params, batch, x_BSD):
    losses = bert.losses(config, params, {}, x_BSD, batch)
    return jnp.sum(losses.mlm_BP * batch["weights"]) + jnp.sum(losses.next_B)


def ordered_loss(params, config, plan, batch):
    return losses_sum(config, params, batch, bert.encode(config, params, {}, batch, plan, Route(), None))


def gathered_loss(params, config, order_BS):
    """The value of `ordered_loss`, computed with gathers inside the encoder, as in the released code."""
    depth, selected, unselected = config.depth, order_BS[:, :KEPT], order_BS[:, KEPT:]
    take = lambda x, at: jnp.take_along_axis(x, at if x.ndim == 2 else at[..., None], axis=1)  # noqa: E731

    def layer(i, x_BQD, y_BKD, segments_BK):
        of_layer = jax.tree.map(lambda leaf: leaf[i], params["layers"])
        block = Block(config, config.heads, config.mlp_dim, keys=y_BKD.shape[1])
        return apply(block, of_layer, x_BQD, y_BKD, segments_BK, None, None)

    segments_BS = BATCH["segments"]
    x_BSD = apply(Embed(config), params["embed"], BATCH, None)
    for i in range(depth // 2 - 1):
        x_BSD = layer(i, x_BSD, x_BSD, segments_BS)
    x_selected, x_unselected = take(x_BSD, selected), take(x_BSD, unselected)
    y_BSD = jnp.concatenate([x_selected, x_unselected], axis=1)
    of_selected = take(segments_BS, selected)
    x_selected = layer(depth // 2 - 1, x_selected, y_BSD, take(segments_BS, order_BS))
    for i in range(depth // 2, depth - 1):
        x_selected = layer(i, x_selected, x_selected, of_selected)
    x_BSD = restored(jnp.concatenate([x_selected, x_unselected], axis=1), order_BS)
    x_BSD = layer(depth - 1, x_BSD, x_BSD, segments_BS)
    if config.norm == "pre":
        x_BSD = apply(layer_norm(config), params["final_norm"], x_BSD)
    return losses_sum(config, params, BATCH, x_BSD)


def test_ordering_tokens_at_the_input_equals_gathering_them_inside_the_encoder():
    # Gradients are compared too. The model is pre-LN, where the boundary's LayerNorm is applied to queries and keys.
    config, params = PRE, reference.random_params(PRE)
    ours = jax.jit(jax.value_and_grad(ordered_loss), static_argnums=(1, 2))
    gathered = jax.jit(jax.value_and_grad(gathered_loss), static_argnums=1)
    order_BS = reference_order(SCORE_V, BATCH)
    close(ours(params, config, planned(config), ordered()), gathered(params, config, order_BS))


@both_norms
def test_joined_examples_do_not_see_each_other(config):
    params, plan = reference.random_params(config), planned(config)
    paired = tuple(dataclasses.replace(span, examples_per_row=2 if span.keys else 1) for span in plan)
    batch = ordered(batch=jax.tree.map(lambda *x: np.concatenate(x)[:4], BATCH, packed_batch(1)))
    run = jax.jit(jax.value_and_grad(ordered_loss), static_argnums=(1, 2))
    assert sum(span.examples_per_row == 2 for span in paired) == 1
    close(run(params, config, paired, batch), run(params, config, plan, batch))
    with pytest.raises(ValueError, match="requires queries == keys"):
        run(params, config, tuple(dataclasses.replace(span, examples_per_row=2) for span in plan), batch)


def test_examples_are_joined_only_in_layers_of_kept_tokens():
    stage = stage_of()
    stage = dataclasses.replace(stage, program=dataclasses.replace(stage.program, batch_size=4))
    (dropping,) = token_drop.make(examples_per_row=2).stages((stage,))
    assert [span.examples_per_row for span in dropping.program.plan] == [1, 1, 2, 1]
    assert covered(dropping.program.plan) == covered(planned())
    with pytest.raises(BadInput, match=r"token_drop\.examples_per_row=2 does not divide the 3 examples"):
        planned(examples_per_row=2)


@both_norms
@pytest.mark.parametrize("boundary", [-1, 0, 2])
def test_keeping_every_token_equals_the_baseline(config, boundary):
    params, plan = reference.random_params(config), planned(config, keep=1.0, boundary=boundary)
    assert plan[-2].queries == 12
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


def test_a_dropped_token_affects_kept_tokens_up_to_the_boundary():
    params, batch = reference.random_params(POST), ordered()
    other = {**batch, "types": np.asarray(batch["types"]).copy()}
    other["types"][0, KEPT] ^= 1
    moved_BS = (below(params, 3, other) != below(params, 3, batch)).any(-1)
    assert moved_BS[0, :KEPT].all()
    # The boundary layer's keys suffice for this effect: in a plan of two layers, no layer is below the boundary.
    model = dataclasses.replace(POST, depth=2)
    one, two = (
        bert.encode(
            dataclasses.replace(POST, depth=1), lower_layers(params, 1), {}, b, planned(model)[:1], Route(), None
        )
        for b in (batch, other)
    )
    assert (np.asarray(one) != np.asarray(two)).any(-1)[0, :KEPT].all()


def test_after_the_boundary_a_dropped_token_affects_kept_tokens_only_in_the_last_layer():
    # The boundary's output becomes the embeddings of a model made of the two layers above it.
    params, batch = reference.random_params(POST), ordered()
    x_BSD = below(params, 2, batch)
    above = dataclasses.replace(POST, vocab_size=36, depth=2, embed_norm=False)
    tables = {"position": np.zeros((12, 16), np.float32), "type": np.zeros((2, 16), np.float32)}
    upper = jax.tree.map(lambda leaf: leaf[2:], params["layers"])
    plan = (Span(0, 1, KEPT, KEPT), Span(1, 2))
    assert [(span.queries, span.keys) for span in planned()[2:]] == [(span.queries, span.keys) for span in plan]

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


def test_stages_with_short_examples_may_be_left_alone():
    short, long = stage_of(seq_len=6), stage_of(seq_len=12)
    method = token_drop.make(shortest=12)
    assert method.stages((short, long)) == (short, *token_drop.make().stages((long,)))
    with pytest.raises(BadInput, match=r"token_drop.shortest=7 to drop nothing in this stage"):
        token_drop.make().stages((short, long))
