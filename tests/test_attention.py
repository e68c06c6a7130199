"""Attention: the reference equals the formula, and the kernel equals the reference, in values and gradients."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import BadInput, attention, bert, dropout
from bert_fast.attention import Shape, choose, pallas, plain
from bert_fast.plan import Span
from helpers.attention_case import KEY, Case


def close(ours, theirs, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_and_its_gradient_equal_the_formula(rate):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, count, 2, 8)).astype(np.float32) for count in (5, 7, 7))
    allowed_BQK = rng.random((2, 5, 7)) < 0.5
    allowed_BQK[0, 1] = False  # a query that may attend to no key
    weights_BQHE = rng.standard_normal(q.shape).astype(np.float32)
    weights_BQHE[0, 1] = 0  # nothing depends on its output
    salts_2BQ = dropout.draws(KEY, 2).salts(5) if rate else None

    def formula(q, k, v):
        logits_BHQK = jnp.einsum("BQHE,BKHE->BHQK", q, k) / np.sqrt(8)
        probs_BHQK = jax.nn.softmax(jnp.where(allowed_BQK[:, None], logits_BHQK, -1e30))
        return jnp.einsum("BHQK,BKHE->BQHE", plain.dropped(probs_BHQK, salts_2BQ, rate, 1), v)

    def gradients(attend):
        return jax.value_and_grad(lambda *qkv: jnp.sum(attend(*qkv) * weights_BQHE), (0, 1, 2))(q, k, v)

    ours = gradients(lambda *qkv: plain.of_heads(*qkv, allowed_BQK, salts_2BQ, rate, 1))
    close(ours, gradients(formula))
    if not rate:
        theirs = gradients(lambda *qkv: jax.nn.dot_product_attention(*qkv, mask=allowed_BQK[:, None]))
        close(ours, theirs)


def test_attention_dropout_has_the_given_rate_and_different_masks_for_heads_queries_and_examples():
    ones = jnp.ones((3, 4, 16, 32))
    found = np.asarray(plain.dropped(ones, dropout.draws(KEY, 3).salts(16), 0.25, 1)) == 0
    assert abs(found.mean() - 0.25) < 0.02
    assert len({row.tobytes() for row in found.reshape(-1, 32)}) == 3 * 4 * 16


QUICK = {
    "odd heads, fewer queries than keys": Case(2, 128, 3, 64, 128),
    "joined examples": Case(2, 128, 2, 128, 128, joined=2),
    "longer rows, odd heads": Case(1, 256, 3, 256, 256),
}
SLOW = {
    "without dropout": Case(2, 128, 4, 128, 128, rate=0.0),
    "longer rows": Case(1, 256, 4, 256, 256),
    "longer rows, fewer queries": Case(1, 256, 2, 128, 256),
    "longer rows, fewer keys": Case(1, 256, 2, 256, 128),
    "more units than are in flight": Case(1, 896, 2, 896, 896),
}
FORMS = [
    *(pytest.param(case, id=name) for name, case in QUICK.items()),
    *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW.items()),
]


@pytest.mark.parametrize("case", FORMS)
def test_the_kernel_equals_the_reference(case):
    close(jax.jit(lambda: case.run("pallas"))(), case.run("plain"))


def test_the_kernel_equals_the_reference_within_rounding_in_bfloat16():
    case = Case(1, 256, 2, 256, 256, dtype="bfloat16")
    for ours, theirs in zip(jax.jit(lambda: case.run("pallas"))(), case.run("plain"), strict=True):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


def shape(**changes) -> Shape:
    return Shape(128, 128, 128, 64, "bfloat16", 0.1)._replace(**changes)


@pytest.mark.parametrize(
    ("platform", "changes", "expected", "why"),
    [
        ("cpu", {}, "plain", "CPU"),
        ("tpu", {}, "pallas", "fastest on tpu"),
        ("tpu", {"queries": 64}, "pallas", "fastest on tpu"),
        ("tpu", {"length": 64, "queries": 64, "keys": 64}, "plain", "multiples of 128"),
        ("tpu", {"head_size": 32}, "plain", "head size of 64"),
        ("gpu", {}, "plain", "its own dropout masks"),
        ("gpu", {"rate": 0.0}, "cudnn", "fastest on gpu"),
        ("gpu", {"rate": 0.0, "dtype": "float32"}, "plain", "float32"),
        ("metal", {}, "plain", "no kernel for metal"),
    ],
)
def test_auto_takes_the_kernel_of_the_device_for_shapes_that_the_kernel_supports(platform, changes, expected, why):
    name, reason = choose("auto", platform, shape(**changes))
    assert name == expected
    assert why in reason


@pytest.mark.parametrize(
    ("asked", "platform", "changes", "why"),
    [
        ("pallas", "gpu", {}, "needs a TPU"),
        ("pallas", "tpu", {"keys": 100}, "multiples of 128"),
        ("cudnn", "tpu", {"rate": 0.0}, "needs an NVIDIA GPU"),
        ("cudnn", "gpu", {}, "its own dropout masks"),
        ("cudnn", "gpu", {"rate": 0.0, "head_size": 20}, "multiples of 8"),
        ("cudnn", "gpu", {"rate": 0.0, "head_size": 256}, "at most 128"),
        ("cudnn", "gpu", {"rate": 0.0, "keys": 77}, "even numbers of tokens"),
    ],
)
def test_a_backend_that_was_asked_for_is_never_replaced(asked, platform, changes, why):
    with pytest.raises(BadInput, match=re.escape(f"--config.model.attention={asked}")) as error:
        choose(asked, platform, shape(**changes))
    assert why in str(error.value)


def test_every_backend_can_be_asked_for():
    assert set(attention.BACKENDS) == {"auto", "plain", "pallas", "cudnn"}
    for name in attention.BACKENDS[1:]:
        assert callable(getattr(attention, name).attend)


def test_units_of_a_kernel_cover_each_head_and_each_query_once():
    """In a long row, a grid step handles two heads. Each head has a unit for every 128 queries."""
    form = pallas.Form(1, 512, 3, 500, 512, 1, 0.0)
    units = functools.reduce(list.__add__, form.units())
    assert len(set(units)) == len(units) == 2 * 4
    assert form.grid == (1, 2)


def test_a_plan_lists_each_backend_once_with_its_reason():
    model = bert.Config(100, depth=4, width=128, heads=2, max_len=128, dtype="bfloat16")
    plan = (Span(0, 1), Span(1, 2, queries=64), Span(2, 3, queries=64, keys=64), Span(3, 4))
    found = attention.backends(model, plan, 128, "tpu")
    assert [name for name, _ in found] == ["pallas", "plain"]
    assert "64 queries and 64 keys" in found[1][1]
    paired = tuple(dataclasses.replace(span, examples_per_row=2 if span.keys else 1) for span in plan)
    assert attention.backends(model, paired, 128, "tpu") == found[:1]
    with pytest.raises(BadInput, match="attention=pallas"):
        attention.backends(dataclasses.replace(model, attention="pallas"), plan, 128, "tpu")
