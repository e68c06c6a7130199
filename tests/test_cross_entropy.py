"""The fused loss equals the exact one, and caps logits that would overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast.cross_entropy import cap, cross_entropy, fused

rng = np.random.default_rng(0)
X_TD = rng.normal(size=(6, 8)).astype(np.float32)
WORD_VD = rng.normal(size=(40, 8)).astype(np.float32)
BIAS_V = np.where(np.arange(40) < 37, 0.1 * rng.normal(size=40), -np.inf).astype(np.float32)  # padded ids
LABELS_T = rng.integers(0, 37, 6)
WEIGHTS_T = rng.random(6).astype(np.float32)


def exact(x_TD, word_VD, bias_V):
    return cross_entropy(x_TD @ word_VD.T + bias_V[None], jnp.asarray(LABELS_T))


def test_losses_and_gradients_equal_the_exact_ones():
    def total(of):
        return lambda *inputs: jnp.sum(of(*inputs)[0] * WEIGHTS_T)

    def of_fused(*inputs):
        return fused(*inputs, jnp.asarray(LABELS_T))

    ours, theirs = (jax.value_and_grad(total(of), (0, 1, 2))(X_TD, WORD_VD, BIAS_V) for of in (of_fused, exact))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)
    _, correct_T, capped_T = of_fused(X_TD, WORD_VD, BIAS_V)
    np.testing.assert_array_equal(correct_T, exact(X_TD, WORD_VD, BIAS_V)[1])
    assert not capped_T.any()


@pytest.mark.parametrize("vocab", [100, 30_592, 250_112])
def test_sum_does_not_overflow_if_the_logits_of_all_words_are_at_the_cap(vocab):
    limit = np.float32(cap(vocab))
    assert np.isfinite(np.sum(np.full(vocab, np.exp(limit)), dtype=np.float32))
    assert limit > 70


def test_logits_above_the_cap_are_reported_and_still_have_a_gradient():
    x_TD, word_VD = np.zeros((2, 8), np.float32), np.zeros((40, 8), np.float32)
    x_TD[0, 0], word_VD[3, 0] = 20, 10  # a logit of 200 for id 3

    def loss(x_TD):
        losses_T, _, capped_T = fused(x_TD, word_VD, np.zeros(40, np.float32), jnp.array([5, 5]))
        return losses_T.sum(), (losses_T, capped_T)

    (_, (losses_T, capped_T)), dx_TD = jax.value_and_grad(loss, has_aux=True)(x_TD)
    assert capped_T.tolist() == [True, False]
    assert losses_T[0] == pytest.approx(cap(40), rel=1e-3)
    assert dx_TD[0, 0] == pytest.approx(10, rel=1e-3)  # the wrong word's logit still decreases
    assert np.isfinite(losses_T).all()
