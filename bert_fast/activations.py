"""The activations of the feed-forward network, with custom gradients.

A gradient is computed from the input alone. Otherwise, the backward pass would need three stored arrays, each as wide
as the feed-forward network. Writing them takes longer than recomputing them.
"""

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def gelu(x):
    """x times the standard normal CDF (the erf form). The result has the shape and type of x."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def _gelu_backward(x, dy):
    x = jax.lax.optimization_barrier(x)  # otherwise the compiler would keep the forward pass's erf, to reuse it
    density = jnp.exp(-0.5 * x * x) * np.sqrt(0.5 / np.pi).astype(x.dtype)
    return (dy * (0.5 * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype))) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def gelu_tanh(x):
    """GELU's approximation by tanh (Hendrycks and Gimpel 2016, arXiv 1606.08415), with the shape and type of x.

    It differs from the erf form by at most 5e-4, which is less than the rounding of bfloat16 near 1. On a TPU, it takes
    less time than the erf form. Hugging Face calls it `gelu_new`.
    """
    return 0.5 * x * (1 + jnp.tanh(_inner(x)))


def _inner(x):
    root, cubic = (np.asarray(number, x.dtype) for number in (np.sqrt(2 / np.pi), 0.044715))
    return root * (x + cubic * x * x * x)


def _gelu_tanh_backward(x, dy):
    x = jax.lax.optimization_barrier(x)
    tanh = jnp.tanh(_inner(x))
    root, cubic = (np.asarray(number, x.dtype) for number in (np.sqrt(2 / np.pi), 3 * 0.044715))
    return (dy * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * root * (1 + cubic * x * x)),)


gelu_tanh.defvjp(lambda x: (gelu_tanh(x), x), _gelu_tanh_backward)

ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh}


def resolved(name: str, dtype: str) -> str:
    """The name of the activation. "auto" stands for the erf form in float32, and for the tanh form in bfloat16. Other
    names stand for themselves.
    """
    return {"float32": "gelu", "bfloat16": "gelu_tanh"}[dtype] if name == "auto" else name
