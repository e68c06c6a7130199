"""Muon: each matrix of each layer is orthogonalised, Adam updates everything else, and all methods work with it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import bert, qkv
from bert_fast.train import optim
from bert_fast.train.log import read_rows
from helpers.interruption import interrupted
from helpers.small_runs import rows_without_clock, run, small_config
from helpers.tiers import tiers

MUON = optim.Optimizer("muon", 0.9, 0.999, 1e-6, 0.0, True, 0.0, momentum=0.8, matrix_rms=0.4)
CONFIG = bert.Config(50, depth=3, width=16, heads=2, head_size=8, mlp_dim=24, max_len=8)


def random_like(params, seed):
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)


@pytest.fixture(scope="module")
def trees():
    params = bert.init(CONFIG, jax.random.key(0))
    return params, [random_like(params, seed) for seed in (1, 2, 3)]


def directions(settings, params, grads):
    """The direction of every step, and the last state."""
    optimizer = optim.make(settings)
    state, found = optimizer.init(params), []
    for grad in grads:
        direction, state = optimizer.update(grad, state, params)
        found.append(direction)
    return found, state


def newton_schulz(matrix):
    """The matrix after five quintic Newton-Schulz steps in float64, with the coefficients of Jordan et al. 2024."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = np.asarray(matrix, np.float64)
    x = x / (np.linalg.norm(x) + 1e-8)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


def matrix_of(tree, name, layer):
    """The kernel of one layer as a matrix: inputs by outputs."""
    kernel = np.asarray(qkv.separate(tree["layers"])[name]["kernel"][layer], np.float64)
    rows = int(np.prod([kernel.shape[axis - 1] for axis in optim.MATRICES[name][0]]))
    return kernel.reshape(rows, -1)


@pytest.mark.parametrize("name", optim.MATRICES)
def test_update_of_stacked_matrices_equals_a_layer_by_layer_update(trees, name):
    params, grads = trees
    found, _ = directions(MUON, params, grads)
    for layer in range(CONFIG.depth):
        momentum = 0.0
        for grad, direction in zip(grads, found, strict=True):
            gradient = matrix_of(grad, name, layer)
            momentum = 0.8 * momentum + 0.2 * gradient
            expected = newton_schulz(0.8 * momentum + 0.2 * gradient)
            expected *= 0.4 * np.sqrt(max(expected.shape))
            np.testing.assert_allclose(
                matrix_of(direction, name, layer), expected, atol=1e-6 * np.abs(expected).max() * 50
            )


def test_orthogonalising_a_stack_equals_orthogonalising_each_layer_alone(trees):
    _, [grad, *_] = trees
    for name, axes in optim.MATRICES.items():
        kernel_L = qkv.separate(grad["layers"])[name]["kernel"]
        alone_L = [optim.orthogonal(kernel_L[layer : layer + 1], *axes, 0.4)[0] for layer in range(CONFIG.depth)]
        np.testing.assert_allclose(optim.orthogonal(kernel_L, *axes, 0.4), jnp.stack(alone_L), rtol=1e-6, atol=1e-6)


def test_every_kernel_of_the_layers_has_input_and_output_axes(trees):
    params, _ = trees
    layers = qkv.separate(params["layers"])
    kernels = {name for name, leaves in layers.items() if "kernel" in leaves}
    assert kernels == optim.MATRICES.keys()
    for name, (inputs, outputs) in optim.MATRICES.items():
        assert sorted((*inputs, *outputs)) == list(range(1, layers[name]["kernel"].ndim))


def test_singular_values_are_near_one_and_the_rms_is_as_set(trees):
    params, grads = trees
    [direction, *_], _ = directions(MUON, params, grads)
    for name in optim.MATRICES:
        matrix = matrix_of(direction, name, 0)
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.4 * np.sqrt(max(matrix.shape)))
        assert 0.7 < np.median(singular) < singular.max() < 1.3, name
        assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.4, rel=0.2)


def test_everything_else_is_updated_by_adam(trees):
    params, grads = trees
    muon, state = directions(MUON, params, grads)
    adam, adams = directions(dataclasses.replace(MUON, name="adamw"), params, grads)

    def check(path, one, other):
        is_matrix = path[0].key == "layers" and path[-1].key == "kernel"
        assert np.array_equal(one, other) != is_matrix, path

    for one, other in zip(muon, adam, strict=True):
        jax.tree_util.tree_map_with_path(check, one, other)
    nu = state[0].nu["layers"]["qkv"]
    assert not np.any(nu["kernel"])
    assert np.array_equal(nu["bias"], adams[0].nu["layers"]["qkv"]["bias"])


def test_padding_of_narrow_layers_stays_zero_and_changes_only_the_scale(trees):
    rng = np.random.default_rng(0)
    narrow = jnp.asarray(rng.normal(size=(2, 16, 10)), jnp.float32)
    padded = jnp.pad(narrow, [(0, 0), (0, 0), (0, 14)])
    found = optim.orthogonal(padded, (1,), (2,), 0.4)
    alone = optim.orthogonal(narrow, (1,), (2,), 0.4)
    assert not np.any(found[..., 10:])
    scale = np.sqrt(24 / 16)  # the scale follows the longer side: 24 with padding, 16 without
    np.testing.assert_allclose(found[..., :10], alone * scale, rtol=1e-4, atol=1e-5)


def test_gradient_of_zero_gives_a_direction_of_zero():
    assert not np.any(optim.orthogonal(jnp.zeros((2, 8, 4)), (1,), (2,), 0.4))


ALL_FOUR = {
    "methods": "stacking,early_bert,token_drop,layer_drop",
    "phases": "16:1",
    "steps": 40,
    "early_bert__search": 0.4,
    "early_bert__mask_every": 2,
    "token_drop__keep": 0.5,
}
RUNS = {
    "dense": {"steps": 10},
    "all four": ALL_FOUR,
    "mslt, moments carried": {
        "methods": "stacking",
        "stacking__variant": "mslt",
        "stacking__optimizer": "carry",
        "steps": 20,
    },
}


@pytest.mark.parametrize("name", tiers(RUNS, slow=["dense"]))
def test_runs_with_muon_learn_and_resume_exactly(small_shards, tmp_path, monkeypatch, name):
    arguments = "size=tiny,debug,norm=pre,objective=mlm"
    config = small_config(small_shards, arguments, optimizer__name="muon", log_every=1, **RUNS[name])
    run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "stopped", 7, monkeypatch)
    run(config, tmp_path / "stopped")
    assert rows_without_clock(tmp_path / "whole") == rows_without_clock(tmp_path / "stopped")
    rows = [row for row in read_rows(tmp_path / "whole/metrics.jsonl") if row["split"] == "train"]
    assert rows[-1]["mlm_loss"] < rows[0]["mlm_loss"]
    assert json.loads((tmp_path / "whole/summary.json").read_text())["steps"] >= config["steps"]
