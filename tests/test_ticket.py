"""EarlyBERT's ticket, from masks to the slim model, compared with NumPy code that follows the released code's rules.

Axes: as in early_bert.py.
"""

import dataclasses

import jax
import numpy as np
import pytest

from bert_fast import BadInput, bert, qkv
from bert_fast.cost.flops import layer_products, step_flops
from bert_fast.method import Program
from bert_fast.methods import early_bert
from bert_fast.methods.early_bert import distances, draw_ticket, keep, make, make_units
from bert_fast.plan import whole
from helpers.early_bert_cases import (
    CONFIG,
    FIRST,
    NORMS,
    PROGRAM,
    UNEVEN,
    leave_search,
    logits,
    quantile_rule,
    random_coefficients,
    scaled,
)
from helpers.reference import random_params


def ticket_of(config=CONFIG, coefficients=None, seed=0, key=None, **arguments):
    """(method, parameters with coefficients, slim parameters, slim model)."""
    method = make(**arguments)
    params, state = method.init(random_params(config, seed), config)
    params = scaled(params, *(random_coefficients(config) if coefficients is None else coefficients))
    slim, stage, _ = leave_search(method, params, state, config, key=key)
    return method, params, slim, stage.program.model


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", ["signed", "ties", "neighbours"])
def test_keep_equals_the_rule_of_the_released_code(kind, together):
    rng = np.random.default_rng(0)
    for trial in range(60):
        depth, count = rng.integers(1, 5), rng.integers(2, 40)
        c_LU = {
            "signed": lambda: rng.normal(0, 1, (depth, count)),  # noqa: B023
            "ties": lambda: rng.integers(-2, 3, (depth, count)),  # noqa: B023
            "neighbours": lambda: 1 - rng.integers(0, 12, (depth, count)) * 2.0**-24,  # noqa: B023
        }[kind]().astype(np.float32)
        ratio = [0.4, 1 / 3, 0.333333, 0.5, 0.9, 0.05][trial % 6]
        units = make_units([count] * depth, ratio, together)
        expected = quantile_rule(c_LU, ratio, together)
        np.testing.assert_array_equal(keep(c_LU, units), expected)


@pytest.mark.parametrize("together", [False, True])
def test_padding_units_do_not_count(together):
    c_LU = np.random.default_rng(0).normal(0, 1, (3, 9)).astype(np.float32)
    counts_L = (9, 4, 6)
    kept = keep(c_LU, make_units(counts_L, 0.4, together))
    real = [c_U[:count] for c_U, count in zip(c_LU, counts_L, strict=True)]
    threshold = np.quantile(np.concatenate(real).astype(float), 0.4)
    for layer, c_U in enumerate(real):
        at = threshold if together else np.quantile(c_U.astype(float), 0.4)
        np.testing.assert_array_equal(kept[layer, : len(c_U)], c_U > at)
        assert not kept[layer, len(c_U) :].any()


def test_distance_is_a_share_of_the_real_units():
    units = make_units((9, 4, 6), 0.4, True)
    kept_WLU = np.zeros((3, 3, 9), bool)
    kept_WLU[0, 0, 3] = kept_WLU[0, 1, 2] = kept_WLU[2, 1, 2] = True
    assert distances(kept_WLU, units).tolist() == [2 / 19, 1 / 19]
    assert distances(kept_WLU[:2], units).tolist() == [2 / 19]


def first_mask(method, config, c_LH, c_LF):
    """The log row after taking one mask of these coefficients."""
    stage = dataclasses.replace(FIRST, program=dataclasses.replace(PROGRAM, model=config))
    params, state = method.init({"layers": {}}, config)
    state, _ = method.observe(scaled(params, c_LH, c_LF), state, stage, 1)
    return method.report(state, stage, None, ())


def test_four_of_twelve_heads_in_every_layer_and_two_fifths_of_all_neurons_are_pruned():
    rng = np.random.default_rng(0)
    c_LH, c_LF = rng.random((12, 12)).astype(np.float32), rng.random((12, 3072)).astype(np.float32)
    base = bert.Config(vocab_size=128)
    report = first_mask(make(), base, c_LH, c_LF)
    assert report["heads"] == [8] * 12
    counts_L = np.array(report["neurons"])
    assert counts_L.sum() == 36_864 - 14_746  # the quantile is at index 14,745.2 of the sorted coefficients
    assert counts_L.sum() == pytest.approx(0.6 * 36_864, abs=1)
    assert len(set(counts_L)) > 1
    assert first_mask(make(neurons="layer"), base, c_LH, c_LF)["neurons"] == [3072 - 1229] * 12


@pytest.mark.parametrize(("heads", "fall"), [(2, 1), (4, 1), (8, 3), (12, 4), (16, 5)])
def test_a_third_of_the_heads_is_pruned_at_every_published_size(heads, fall):
    c_LH = np.random.default_rng(0).random((2, heads)).astype(np.float32)
    report = first_mask(make(), dataclasses.replace(CONFIG, depth=2, heads=heads), c_LH, np.ones((2, 20), np.float32))
    assert report["heads"] == [heads - fall] * 2


def test_ratio_of_zero_prunes_nothing():
    c_LU = np.ones((2, 3), np.float32)
    assert keep(c_LU, make_units([3, 3], 0.0, False)).all()
    assert keep(c_LU, make_units([3, 3], 0.0, True)).all()
    _, _, _, model = ticket_of(head_ratio=0.0)
    assert model.heads == 4
    assert model.mlp_dim != 20


@pytest.mark.parametrize("config", [*NORMS, UNEVEN], ids=["post", "pre", "uneven"])
def test_slim_model_equals_the_full_model_with_coefficients_of_zero_and_one(config):
    method, params, slim, model = ticket_of(config)
    c_LH, c_LF = (np.asarray(params["layers"][name]) for name in ("head_scale", "neuron_scale"))
    heads, neurons = make_units(config.heads_L, 0.333333, False), make_units(config.mlp_dim_L, 0.4, True)
    masked, _ = method.weights(scaled(params, keep(c_LH, heads), keep(c_LF, neurons)))
    assert len(set(model.mlp_dim_L)) > 1
    assert sum(model.heads_L) < sum(config.heads_L)
    shapes = bert.shapes(model)
    assert jax.tree.map(lambda leaf: leaf.shape, slim) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    np.testing.assert_allclose(logits(model, slim), logits(config, masked), rtol=1e-5, atol=1e-5)


def test_slim_weights_are_the_kept_rows_of_the_initial_weights_in_order():
    method = make(neurons="layer")
    plain = random_params(CONFIG, seed=7)
    initial, state = method.init(plain, CONFIG)
    c_LH, c_LF = random_coefficients(CONFIG)
    slim, stage, _ = leave_search(method, scaled(random_params(CONFIG), c_LH, c_LF), state, initial=initial)
    assert (stage.program.model.heads, stage.program.model.mlp_dim) == (3, 12)
    assert set(slim["layers"]) == set(plain["layers"])
    jax.tree.map(np.testing.assert_array_equal, slim["embed"], plain["embed"])
    for layer in range(3):
        of, got = (qkv.separate(jax.tree.map(lambda leaf: leaf[layer], tree["layers"])) for tree in (plain, slim))  # noqa: B023
        heads, neurons = (np.flatnonzero(quantile_rule(c, r, False)[layer]) for c, r in ((c_LH, 0.333333), (c_LF, 0.4)))
        np.testing.assert_array_equal(got["query"]["kernel"], of["query"]["kernel"][:, heads])
        np.testing.assert_array_equal(got["key"]["bias"], of["key"]["bias"][heads])
        np.testing.assert_array_equal(got["attention_output"]["kernel"], of["attention_output"]["kernel"][heads])
        np.testing.assert_array_equal(got["mlp_hidden"]["bias"], of["mlp_hidden"]["bias"][neurons])
        np.testing.assert_array_equal(got["mlp_output"]["kernel"], of["mlp_output"]["kernel"][neurons])
        for name in ("attention_output", "mlp_output"):
            np.testing.assert_array_equal(got[name]["bias"], of[name]["bias"])


def test_padding_is_zero():
    _, _, slim, model = ticket_of()
    for layer, hidden in enumerate(model.mlp_dim_L):
        assert (slim["layers"]["mlp_hidden"]["kernel"][layer][:, :hidden] != 0).all()
        assert (slim["layers"]["mlp_hidden"]["kernel"][layer][:, hidden:] == 0).all()
        assert (slim["layers"]["mlp_output"]["kernel"][layer][hidden:] == 0).all()


def test_align_rounds_the_width_of_each_layer_and_keeps_its_largest_coefficients():
    rng = np.random.default_rng(0)
    c_LU = rng.random((4, 40)).astype(np.float32) + np.array([[0.0], [0.4], [0.1], [0.9]], np.float32)
    units = make_units([40] * 4, 0.4, True)
    plain_L = keep(c_LU, units).sum(1)
    for align in (8, 16, 32):
        kept_L = draw_ticket(c_LU, units, "neuron", align)
        for c_U, kept, count in zip(c_LU, kept_L, plain_L, strict=True):
            assert len(kept) == min(max(round(count / align), 1) * align, 40)
            assert (np.diff(kept) > 0).all()
            assert c_U[kept].min() > np.delete(c_U, kept).max(initial=-1)
    assert [len(kept) for kept in draw_ticket(c_LU, units, "neuron", 1)] == plain_L.tolist()


def test_random_ticket_has_the_shapes_of_the_drawn_one_but_other_units():
    coefficients = random_coefficients(CONFIG)
    _, _, drawn, model = ticket_of(coefficients=coefficients)
    tickets = [ticket_of(coefficients=coefficients, ticket="random", key=jax.random.key(k)) for k in (3, 3, 4)]
    assert all(ticket[3] == model for ticket in tickets)
    kernels = [ticket[2]["layers"]["mlp_output"]["kernel"] for ticket in tickets]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).any()
    assert (kernels[0] != drawn["layers"]["mlp_output"]["kernel"]).any()


def test_random_ticket_chooses_every_unit_of_a_layer_equally_often():
    units = make_units([10, 6], 0.4, True)
    c_LU = np.arange(20, dtype=np.float32).reshape(2, 10)
    chosen = np.zeros((2, 10))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        for layer, kept in enumerate(draw_ticket(c_LU, units, "neuron", 1, rng)):
            assert len(set(kept)) == (3, 6)[layer]
            chosen[layer, kept] += 1
    np.testing.assert_allclose(chosen / 2000, [[0.3] * 10, [1.0] * 6 + [0] * 4], atol=0.05)


@pytest.mark.parametrize(
    ("name", "counts_L", "ratio", "together", "c_LU", "message"),
    [
        ("neuron", [3, 3], 0.4, True, np.ones((2, 3)), "layer 0 without neurons: all of .* are 1.0,.*search longer"),
        ("head", [2, 2], 0.333333, False, [[2, 1], [3, 3]], "layer 1 without heads: all of .* are 3.0,.*search longer"),
        ("head", [1, 1], 0.333333, False, np.ones((2, 1)), "only one.*early_bert.head_ratio=0$"),
        ("head", [3], 0.5, False, [[1, 2, 2]], "are 1.0 to 2.0, none above.*lower --config.early_bert.head_ratio$"),
        ("neuron", [3, 3], 0.4, True, [[2, 3, 4], [0, 0.5, 1]], "layer 1 without.*neuron_ratio, or.*neurons=layer"),
    ],
    ids=["equal", "equal in a layer", "single", "highest equal", "global"],
)
def test_ticket_that_empties_a_layer_is_refused(name, counts_L, ratio, together, c_LU, message):
    for align in (1, 128):
        with pytest.raises(BadInput, match=message):
            draw_ticket(np.float32(c_LU), make_units(counts_L, ratio, together), name, align)


def test_ticket_at_step_0_is_refused():
    method = make()
    params, state = method.init(random_params(CONFIG), CONFIG)
    with pytest.raises(BadInput, match=r"all of its coefficients are 1\.0.*search longer"):
        leave_search(method, params, state)


# --- savings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seq_len", "saved"), [(128, 0.377), (384, 0.374), (512, 0.373)])
def test_slim_layer_of_base_saves_what_its_shapes_imply(seq_len, saved):
    base = bert.Config(vocab_size=30_522)

    def forward(heads, hidden):
        return sum(product.flops for product in layer_products(base, seq_len, seq_len, seq_len, heads, hidden, True))

    assert 1 - forward(8, 0.6 * 3072) / forward(12, 3072) == pytest.approx(saved, abs=1e-3)


def test_ticket_of_base_is_smaller_in_flops_and_in_memory():
    base = bert.Config(vocab_size=30_522)
    rng = np.random.default_rng(0)
    c_LH, c_LF = rng.random((12, 12)), rng.random((12, 3072)) + np.linspace(0, 0.2, 12)[:, None]
    heads_L = draw_ticket(c_LH.astype(np.float32), make_units([12] * 12, 0.333333, False), "head", 1)
    neurons_L = draw_ticket(c_LF.astype(np.float32), make_units([3072] * 12, 0.4, True), "neuron", 1)
    stage = dataclasses.replace(FIRST, program=Program(base, whole(12), 256, 1, 128, 20, "mlm"))
    slim = early_bert.with_widths(stage, [len(kept) for kept in heads_L], [len(kept) for kept in neurons_L])
    model = slim.program.model
    assert model.heads == 8
    assert len(set(model.mlp_dim_L)) > 6
    saved = step_flops(stage.program).executed - step_flops(slim.program).executed
    tokens = 256 * 128
    # 6 FLOPs per pruned weight and token, plus the score and value products of 4 pruned heads of size 64.
    by_hand = 6 * tokens * (12 * 4 * 768 * 256 + 2 * 768 * 14_746) + 12 * 6 * 2 * tokens * 128 * 256
    assert saved == by_hand
    leaves = jax.tree.leaves(bert.shapes(model)["layers"])
    full = jax.tree.leaves(bert.shapes(base)["layers"])
    assert sum(leaf.size for leaf in leaves) < 0.75 * sum(leaf.size for leaf in full)
