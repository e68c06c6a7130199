"""Activations and their gradients equal JAX's, and "auto" depends on the dtype."""

import jax
import numpy as np
import pytest

from bert_fast.activations import ACTIVATIONS, resolved

X = np.linspace(-8, 8, 4001).astype(np.float32)


@pytest.mark.parametrize(("name", "approximate"), [("gelu", False), ("gelu_tanh", True)])
def test_activations_and_gradients_equal_jax(name, approximate):
    ours, theirs = ACTIVATIONS[name], lambda x: jax.nn.gelu(x, approximate=approximate)
    np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-5, atol=1e-6)
    of = [jax.vmap(jax.grad(lambda x, f=f: f(x[None])[0]))(X) for f in (ours, theirs)]
    np.testing.assert_allclose(*of, rtol=1e-5, atol=5e-6)


def test_the_tanh_form_is_near_the_erf_form():
    assert np.abs(ACTIVATIONS["gelu"](X) - ACTIVATIONS["gelu_tanh"](X)).max() < 5e-4


def test_auto_is_the_tanh_form_in_bfloat16_only():
    assert [resolved("auto", dtype) for dtype in ("float32", "bfloat16")] == ["gelu", "gelu_tanh"]
    assert resolved("gelu", "bfloat16") == "gelu"
