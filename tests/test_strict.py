"""The strict settings of conftest.py and pyproject.toml are in force."""

import warnings

import jax
import jax.numpy as jnp
import pytest


def test_adding_arrays_of_different_rank_raises():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones(3) + jnp.ones((2, 3))


def test_adding_arrays_of_different_type_raises():
    with pytest.raises(jax.dtypes.TypePromotionError, match="dtype_promotion=strict"):
        jnp.ones(3, jnp.float32) + jnp.ones(3, jnp.int32)


def test_warning_raises():
    with pytest.raises(UserWarning, match="anything"):
        warnings.warn("anything", stacklevel=1)
