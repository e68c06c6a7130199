"""AdamW, LAMB and Muon for stacked layers. They compute a direction, which the train step multiplies by the learning
rate.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from bert_fast import BadInput, qkv
from bert_fast.bert import Params

# Only these leaves get weight decay and a trust ratio: google-research/bert excludes LayerNorm and biases from
# decay, and tf-models-official's lamb.py excludes them from both. Leaves that a method adds under other names are
# excluded too.
DECAYED = ("kernel", "word", "position", "type")

# Kernels of the layers, stacked as [L, ...]: their input axes and their output axes. Muon treats each kernel of a layer
# as one matrix. Query, key and value have one matrix each, for all heads together.
MATRICES = {
    "query": ((1,), (2, 3)),
    "key": ((1,), (2, 3)),
    "value": ((1,), (2, 3)),
    "attention_output": ((1, 2), (3,)),
    "mlp_hidden": ((1,), (2,)),
    "mlp_output": ((1,), (2,)),
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Settings of an optimizer.

    bias_correction: whether Adam's moments are corrected for their start at zero. This is off in google-research/bert
        and in DeepSpeed's progressive layer dropping.
    clip_norm: the gradient is scaled down to this global norm; 0 turns clipping off.
    eps_before_correction: adds epsilon to the root of v before v's bias is corrected, as in Keras, fairseq and
        transformers 2.11 (`epsilon hat` in section 2 of Kingma & Ba, arXiv 1412.6980). Otherwise epsilon is added after
        the correction, as in algorithm 1 of that paper and in optax. Epsilon that is added before the correction has 32
        times the effect in step 1, and 3 times the effect in step 100 (b2 0.999).
    momentum: for Muon only, the decay of its momentum.
    matrix_rms: for Muon only, the root mean square of each matrix's direction (0.2 in Liu et al., arXiv 2502.16982,
        section 2.2).

    The fields with a default were added after the first runs. Each default reproduces what those runs did.
    """

    name: str
    b1: float
    b2: float
    eps: float
    weight_decay: float
    bias_correction: bool
    clip_norm: float
    eps_before_correction: bool = False
    momentum: float = 0.9
    matrix_rms: float = 0.4


class Moments(NamedTuple):
    """Adam's state: steps taken, and running means of the gradient and of its square."""

    count: jax.Array
    mu: Params
    nu: Params


def scale_by_adam(settings: Optimizer) -> optax.GradientTransformation:
    """Adam's direction. `optax.scale_by_adam` cannot turn off the bias correction, or add epsilon before it."""
    b1, b2 = settings.b1, settings.b2

    def init(params):
        return Moments(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        steps = count.astype(jnp.float32)
        mu_scale = 1 / (1 - b1**steps) if settings.bias_correction else 1.0
        nu_scale = 1 / (1 - b2**steps) if settings.bias_correction else 1.0
        eps = settings.eps * jnp.sqrt(nu_scale) if settings.eps_before_correction else settings.eps
        direction = jax.tree.map(lambda m, v: m * mu_scale / (jnp.sqrt(v * nu_scale) + eps), mu, nu)
        return direction, Moments(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_muon(settings: Optimizer) -> optax.GradientTransformation:
    """Muon's direction for the matrices of the layers, Adam's for everything else.

    The direction of a matrix is its Nesterov momentum, orthogonalised by five Newton-Schulz steps (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon) and scaled to `matrix_rms`. Narrow layers are padded with zero rows and columns.
    The padding stays zero and does not affect the rest. The second moment of a matrix is not used and stays zero. It is
    kept so that growth and pruning can treat all moments in the same way.
    """
    adam: Any = scale_by_adam(settings)
    momentum = settings.momentum

    def update(updates, state, params=None):
        by_adam, moved = adam.update(updates, state, params)
        trees = (updates, by_adam, state.mu, moved.mu, state.nu, moved.nu)
        updates, *others = (qkv.in_layers(qkv.separate, tree) for tree in trees)

        def leaf(path, gradient, direction, mu_before, mu, nu_before, nu):
            if path[0].key != "layers" or path[-1].key != "kernel":
                return direction, mu, nu
            mu = momentum * mu_before + (1 - momentum) * gradient
            nesterov = momentum * mu + (1 - momentum) * gradient
            inputs, outputs = MATRICES[path[-2].key]
            return orthogonal(nesterov, inputs, outputs, settings.matrix_rms), mu, nu_before

        found = jax.tree_util.tree_map_with_path(leaf, updates, *others)
        changed = jax.tree.transpose(jax.tree.structure(updates), jax.tree.structure((0, 0, 0)), found)
        direction, mu, nu = (qkv.in_layers(qkv.join, tree) for tree in changed)
        return direction, Moments(moved.count, mu, nu)

    return optax.GradientTransformation(adam.init, update)


def orthogonal(x: jax.Array, inputs: tuple[int, ...], outputs: tuple[int, ...], rms: float) -> jax.Array:
    """Orthogonalises each matrix of a stack, and scales it to the root mean square `rms`."""
    axes = optax.contrib.MuonDimensionNumbers(inputs, outputs)
    # With its momentum turned off, optax's Muon only orthogonalises.
    muon = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=axes)
    with jax.numpy_dtype_promotion("standard"):  # optax raises the momentum to an integer power
        direction: Any = muon.update(x, muon.init(x))[0]
    longer = max(math.prod(x.shape[axis] for axis in side) for side in (inputs, outputs))
    return jnp.asarray(direction) * (
        rms * math.sqrt(longer)
    )  # an orthogonal matrix has an RMS of 1 / sqrt(longer side)


def decayed(params: Params) -> Params:
    """True for the leaves that get weight decay and a trust ratio."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """Multiplies the direction r of each tensor w by LAMB's trust ratio ||w|| / ||r||, or by 1 if either norm is 0
    (arXiv 1904.00962; phi is the identity, as in tf-models-official's lamb.py). A stacked leaf holds one tensor per
    layer, so its norms are per layer. Query, key and value have separate norms.
    """

    def scaled(path, direction, param):
        if path[-1].key not in DECAYED:
            return direction
        axes = tuple(range(1, param.ndim)) if path[0].key == "layers" else None
        w_norm = jnp.sqrt(jnp.sum(param * param, axes, keepdims=True))
        r_norm = jnp.sqrt(jnp.sum(direction * direction, axes, keepdims=True))
        defined = (w_norm > 0) & (r_norm > 0)
        return direction * jnp.where(defined, w_norm / jnp.where(defined, r_norm, 1), 1)

    def update(updates, state, params=None):
        updates, params = (qkv.in_layers(qkv.separate, tree) for tree in (updates, params))
        return qkv.in_layers(qkv.join, jax.tree_util.tree_map_with_path(scaled, updates, params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make(settings: Optimizer) -> optax.GradientTransformation:
    """The optimizer: clipping by the global norm, Adam or Muon, weight decay, and for LAMB the trust ratio.

    Raises BadInput for an unknown name.
    """
    names = ("adamw", "lamb", "muon")
    if settings.name not in names:
        raise BadInput(
            f"--config.optimizer.name={settings.name!r} is unknown: use {', '.join(names[:-1])} or {names[-1]}"
        )
    parts = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    parts.append(scale_by_muon(settings) if settings.name == "muon" else scale_by_adam(settings))
    if settings.weight_decay:
        parts.append(optax.add_decayed_weights(settings.weight_decay, decayed))
    if settings.name == "lamb":
        parts.append(scale_by_trust_ratio())
    return optax.chain(*parts)


def change_moments(opt_state, params: Params, change):
    """The optimizer state with every tree shaped like `params` replaced by `change(tree)`."""
    treedef = jax.tree.structure(params)

    def is_moment(node):
        return jax.tree.structure(node) == treedef

    return jax.tree.map(lambda node: change(node) if is_moment(node) else node, opt_state, is_leaf=is_moment)
