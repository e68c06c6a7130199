"""Properties of the trunk that hold for every plan and route. Axes: as in bert.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from bert_fast import bert
from bert_fast.dropout import Draws, draws
from bert_fast.plan import Route, Span, edit, whole
from bert_fast.train.step import partition
from helpers import reference
from helpers.trunk import BATCH, DENSE, POST, PRE, close, equal, layers_of, losses_sum, program_of, run, value_and_grad

DROPOUTS = {"dropout": 0.1, "attention_dropout": 0.1}
both_norms = pytest.mark.parametrize("config", [POST, PRE], ids=["post", "pre"])


# Eager execution compiles a conditional again on every call, so tests with conditionals jit the whole function.
compiled = jax.jit(value_and_grad, static_argnums=(0, 4))


UNEVEN = {"heads": (1, 2, 2), "mlp_dim": (24, 8, 16)}
MIXED = (Span(0, 1), Span(1, 2, queries=8, keys=8), Span(2, 3, queries=8))


@pytest.mark.parametrize(
    ("config", "plan"),
    [
        (POST, DENSE),
        (PRE, DENSE),
        (dataclasses.replace(PRE, embed_norm=False), (Span(0, 2, keys=8), Span(2, 3, queries=4, keys=8))),
        (dataclasses.replace(POST, **UNEVEN), MIXED),
        (dataclasses.replace(PRE, **UNEVEN), MIXED),
    ],
)
def test_forward_equals_the_equations(config, plan):
    params = reference.random_params(config)
    x_BSD = bert.encode(config, params, {}, BATCH, plan, Route(), None)
    logits_BPV = bert.predict(config, params, {}, x_BSD, BATCH["slots"])
    expected_BSD, expected_BPV = reference.forward(config, params, BATCH, plan)
    real_BS = BATCH["segments"] != 0
    close(np.asarray(x_BSD)[real_BS], expected_BSD[real_BS])
    close(logits_BPV[..., : config.vocab_size], expected_BPV)
    log_probs = np.log(reference.softmax(expected_BPV))
    expected_BP = -np.take_along_axis(log_probs, BATCH["labels"][..., None], -1)[..., 0]
    close(bert.losses(config, params, {}, x_BSD, BATCH).mlm_BP, expected_BP)


@both_norms
def test_gate_of_one_changes_nothing(config):
    config = dataclasses.replace(config, **DROPOUTS)
    params = reference.random_params(config)
    equal(run(config, params, scale_L=[1, 1, 1], seed=0), run(config, params, seed=0))


@both_norms
@pytest.mark.parametrize("scale_L", [None, [2, 0, 0.5]], ids=["whole", "gather"])
def test_splitting_a_span_changes_nothing(config, scale_L):
    config = dataclasses.replace(config, **DROPOUTS)
    params = reference.random_params(config)
    split = (Span(0, 1), Span(1, 3))
    equal(run(config, params, split, scale_L, seed=0), run(config, params, DENSE, scale_L, seed=0))


@pytest.mark.slow
@both_norms
def test_gates_of_one_and_split_spans_change_nothing_when_compiled(config):
    config = dataclasses.replace(config, **DROPOUTS)
    params = reference.random_params(config)
    run_compiled = functools.partial(run, config, params, seed=0, of=compiled)
    dense, split = run_compiled(), (Span(0, 1), Span(1, 3))
    equal(run_compiled(scale_L=[1, 1, 1]), dense)
    equal(run_compiled(plan=split), dense)
    equal(run_compiled(plan=split, scale_L=[1, 0, 1]), run_compiled(scale_L=[1, 0, 1]))


@both_norms
@pytest.mark.parametrize("cond", [False, True], ids=["gather", "cond"])
def test_gate_of_zero_removes_the_layer(config, cond):
    params, of = reference.random_params(config), compiled if cond else value_and_grad
    loss, x_BSD, grads = run(config, params, edit(DENSE, 0, 3, cond=cond), [1, 0, 1], of=of)
    shallow = dataclasses.replace(config, depth=2)
    close((loss, x_BSD, layers_of(grads, 0, 2)), run(shallow, layers_of(params, 0, 2), whole(2)))
    equal(layers_of(grads, 1)["layers"], jax.tree.map(np.zeros_like, layers_of(grads, 1)["layers"]))


@both_norms
def test_gather_and_cond_agree(config):
    # Dropout is on: a layer's masks depend on its index in the model, not on which layers run.
    config = dataclasses.replace(config, **DROPOUTS)
    params = reference.random_params(config)
    gathered = run(config, params, DENSE, [2, 0, 0.5], seed=0)
    conditional = run(config, params, edit(DENSE, 0, 3, cond=True), [2, 0, 0.5], seed=0, of=compiled)
    close(conditional, gathered)


@both_norms
def test_keeping_all_tokens_equals_baseline(config):
    params = reference.random_params(config)
    close(run(config, params, edit(DENSE, 1, 2, queries=12, keys=12)), run(config, params))


@both_norms
def test_dropped_tokens_keep_their_value(config):
    params = reference.random_params(config)
    _, after_BSD, _ = run(config, params, (Span(0, 1), Span(1, 3, queries=8, keys=8)))
    _, before_BSD, _ = run(dataclasses.replace(config, depth=1), layers_of(params, 0), whole(1))
    equal(after_BSD[:, 8:], before_BSD[:, 8:])
    assert not np.any(np.all(np.asarray(after_BSD == before_BSD)[:, :8], axis=-1))


def test_permuting_the_tokens_permutes_the_hidden_states():
    params, order_S = reference.random_params(POST), np.random.default_rng(0).permutation(12)
    ordered = {key: BATCH[key][:, order_S] for key in ("ids", "positions", "types", "segments")}
    back_S = np.argsort(order_S).astype(np.int32)
    ordered |= {"slots": back_S[BATCH["slots"]], "cls": back_S[BATCH["cls"]]}
    loss, x_BSD, grads = run(POST, params)
    close(run(POST, params, batch=BATCH | ordered), (loss, x_BSD[:, order_S], grads))


def products(config, params, frozen, plan):
    """Number of matrix products in the forward and backward passes."""
    loss_of = lambda params: losses_sum(config, params, frozen, BATCH, plan, Route(), None)[0]  # noqa: E731
    return str(jax.make_jaxpr(jax.grad(loss_of))(params)).count("dot_general[")


@pytest.mark.parametrize(("config", "of_first"), [(POST, 1), (PRE, 0)], ids=["post", "pre"])
def test_frozen_layers_have_no_backward_pass(config, of_first):
    params = reference.random_params(config)
    dense = products(config, params, {}, DENSE)
    for depth in (1, 2):
        plan = edit(DENSE, 0, depth, frozen=True)
        # A layer has 6 products, each with a gradient for both operands. In the lowest trainable layer, the product for
        # query, key and value needs no gradient for its input, unless a trainable LayerNorm comes before it.
        assert dense - products(config, *partition(params, program_of(config, plan)), plan) == 12 * depth + of_first
    plan = edit(DENSE, 0, 3, frozen=True)
    assert dense - products(config, *partition(params, program_of(config, plan)), plan) >= 12 * 3


@both_norms
def test_freezing_changes_no_gradient_above_the_frozen_layers(config):
    params = reference.random_params(config)
    loss, x_BSD, grads = run(config, params)
    plan = edit(DENSE, 0, 2, frozen=True)
    learns, frozen = partition(params, program_of(config, plan, (r"embed/norm/", r"mlm/dense/bias$")))
    frozen_loss, frozen_x_BSD, frozen_grads = run(config, learns, plan, frozen=frozen)
    close((frozen_loss, frozen_x_BSD), (loss, x_BSD))
    close(frozen_grads["layers"], layers_of(grads, 2)["layers"])
    close({name: frozen_grads[name] for name in ("next", "mlm")}, {"next": grads["next"], "mlm": without_bias(grads)})
    assert frozen_grads["embed"].keys() == {"word", "position", "type"}
    equal(frozen_grads["embed"]["position"], np.zeros_like(params["embed"]["position"]))
    assert np.any(frozen_grads["embed"]["word"])  # it is also the output table of the MLM head


def without_bias(grads):
    return {**grads["mlm"], "dense": {"kernel": grads["mlm"]["dense"]["kernel"]}}


@both_norms
def test_slim_layers_equal_full_layers_with_the_other_units_zeroed(config):
    slim, params = dataclasses.replace(config, **UNEVEN), reference.random_params(config)
    layers = params["layers"]
    masks = {
        "attention_output": np.arange(2) < np.array(UNEVEN["heads"])[:, None],
        "mlp_output": np.arange(24) < np.array(UNEVEN["mlp_dim"])[:, None],
    }
    masked = {name: {**layers[name], "kernel": (layers[name]["kernel"].T * mask.T).T} for name, mask in masks.items()}
    loss, x_BSD, grads = run(slim, params)
    whole_loss, whole_x_BSD, whole_grads = run(config, {**params, "layers": {**layers, **masked}})
    close((loss, x_BSD), (whole_loss, whole_x_BSD))
    for name, mask in masks.items():
        of_slim, of_whole = grads["layers"][name]["kernel"], whole_grads["layers"][name]["kernel"]
        close(of_slim, (np.asarray(of_whole).T * mask.T).T)  # weights that are not read get a gradient of zero
        whole_grads["layers"][name]["kernel"] = of_slim
    close(grads, whole_grads)


def test_layers_of_different_width_cannot_be_gathered():
    slim = dataclasses.replace(POST, **UNEVEN)
    with pytest.raises(ValueError, match="differ in width"):
        run(slim, reference.random_params(slim), scale_L=[1, 0, 1])


def test_ids_beyond_the_vocabulary_are_never_predicted():
    params = reference.random_params(POST)
    params["mlm"]["bias"] = params["mlm"]["bias"] + 100 * (np.arange(POST.table_rows) >= 150)
    x_BSD = bert.encode(POST, params, {}, BATCH, DENSE, Route(), None)
    logits_BPV = bert.predict(POST, params, {}, x_BSD, BATCH["slots"])
    assert logits_BPV.shape[-1] == POST.table_rows == 256
    assert np.all(np.isneginf(logits_BPV[..., 150:]))
    assert np.all(np.isfinite(logits_BPV[..., :150]))
    loss, _, grads = run(POST, params)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    equal((grads["embed"]["word"][150:], grads["mlm"]["bias"][150:]), (np.zeros((106, 16)), np.zeros(106)))


@pytest.mark.parametrize("seed", [None, 0], ids=["no dropout", "dropout"])
def test_padding_examples_are_finite_and_change_no_other_example(seed):
    config = dataclasses.replace(POST, **DROPOUTS)
    params = reference.random_params(config)
    empty = {key: BATCH[key] * (np.arange(3) != 1)[:, None] for key in ("ids", "types", "segments", "weights")}
    loss, x_BSD, grads = run(config, params, batch=BATCH | empty, seed=seed)
    _, full_x_BSD, _ = run(config, params, seed=seed)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((x_BSD, grads)))
    close(x_BSD[np.array([0, 2])], full_x_BSD[np.array([0, 2])])


def test_packed_documents_equal_separate_examples():
    params, rng = reference.random_params(POST), np.random.default_rng(0)
    first, second = rng.integers(1, 150, (2, 5)).astype(np.int32)
    batch = {key: np.zeros((3, 12), np.int32) for key in ("ids", "positions", "types", "segments")}
    for row, start, segment, ids in ((0, 0, 1, first), (0, 5, 2, second), (1, 0, 1, first), (2, 0, 1, second)):
        batch["ids"][row, start : start + 5] = ids
        batch["positions"][row, start : start + 5] = range(5)
        batch["segments"][row, start : start + 5] = segment
    x_BSD = bert.encode(POST, params, {}, batch, DENSE, Route(), None)
    close(x_BSD[0, :5], x_BSD[1, :5])
    close(x_BSD[0, 5:10], x_BSD[2, :5])


IN_FLOAT32 = {"exp", "log", "rsqrt", "reduce_sum", "reduce_max"}


def equations(jaxpr):
    """Every equation of a jaxpr and of its inner jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@both_norms
@pytest.mark.parametrize("seed", [None, 0], ids=["no dropout", "dropout"])
def test_bfloat16_activations_keep_statistics_in_float32(config, seed):
    config = dataclasses.replace(config, dtype="bfloat16", **DROPOUTS)
    params = bert.shapes(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    found = None if seed is None else draws(jax.random.key(seed), 3)
    forward = lambda params: losses_sum(config, params, {}, BATCH, DENSE, Route(), found)  # noqa: E731
    jaxpr = jax.make_jaxpr(forward)(params)
    assert [aval.dtype for aval in jaxpr.out_avals] == [np.dtype("float32"), jnp.bfloat16]
    seen, in_float32 = set(), 0
    for equation in equations(jaxpr.jaxpr):
        name = equation.primitive.name
        if name in IN_FLOAT32 or name == "dot_general":
            expected = np.float32 if name in IN_FLOAT32 else jnp.bfloat16
            assert all(operand.aval.dtype == expected for operand in equation.invars), equation
            seen.add(name)
            in_float32 += name == "dot_general" and equation.outvars[0].aval.dtype == np.float32
    assert seen == {"dot_general", *IN_FLOAT32}
    assert in_float32 == config.depth + 1  # the attention logits of each layer, and the MLM logits


def test_dropout_is_off_without_draws():
    params = reference.random_params(POST)
    config = dataclasses.replace(POST, **DROPOUTS)
    equal(run(config, params), run(POST, params))
    _, x_BSD, _ = run(config, params, seed=0)
    equal(x_BSD, run(config, params, seed=0)[1])
    assert np.any(x_BSD != run(config, params, seed=1)[1])
    assert np.any(x_BSD != run(config, params)[1])


def test_each_dropout_draws_its_own_mask(monkeypatch):
    seen, config, salts = [], dataclasses.replace(POST, **DROPOUTS), Draws.salts

    def spy(self, seq_len):
        seen.append((seq_len, *map(int, self.words)))
        return salts(self, seq_len)

    monkeypatch.setattr(Draws, "salts", spy)
    bert.encode(config, reference.random_params(config), {}, BATCH, DENSE, Route(), draws(jax.random.key(0), 3))
    assert len(seen) == len(set(seen)) == 1 + 3 * config.depth
    assert {seq_len for seq_len, *_ in seen} == {12}


def test_draws_are_the_same_in_every_micro_batch_and_for_joined_examples():
    """A step's masks therefore do not depend on how its batch is divided."""
    config = dataclasses.replace(PRE, **DROPOUTS)
    params, batch = reference.random_params(config), reference.random_batch(config, rows=4, length=12, slots=4)
    found = draws(jax.random.key(0), 4)
    whole_BSD = bert.encode(config, params, {}, batch, DENSE, Route(), found)
    part = np.array([1, 3])
    part_BSD = bert.encode(
        config,
        params,
        {},
        {name: x[part] for name, x in batch.items()},
        DENSE,
        Route(),
        found._replace(examples_B=found.examples_B[part]),
    )
    close(part_BSD, whole_BSD[part])
    joined = tuple(dataclasses.replace(span, examples_per_row=2) for span in DENSE)
    close(bert.encode(config, params, {}, batch, joined, Route(), found), whole_BSD)


def test_init_has_the_right_standard_deviations_and_lower_layers_do_not_depend_on_the_depth():
    config = dataclasses.replace(PRE, width=32, heads=4, mlp_dim=128, residual_init_std=0.01)
    init = jax.jit(bert.init, static_argnums=0)
    deep, shallow = (init(dataclasses.replace(config, depth=depth), jax.random.key(0)) for depth in (3, 2))
    equal(layers_of(deep, 0, 1), shallow)
    stack = deep["layers"]
    assert np.any(stack["qkv"]["kernel"][0] != stack["qkv"]["kernel"][1])
    for name, std in {"qkv": 0.02, "mlp_hidden": 0.02, "attention_output": 0.01, "mlp_output": 0.01}.items():
        # A normal distribution truncated at 2 sigma has a standard deviation of 0.88 sigma. BERT does not rescale it.
        np.testing.assert_allclose(np.std(stack[name]["kernel"]), 0.8796 * std, rtol=0.05)
        assert np.abs(stack[name]["kernel"]).max() <= 2 * std * (1 + 1e-6)
        assert not np.any(stack[name]["bias"])
