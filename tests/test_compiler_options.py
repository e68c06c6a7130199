"""The compiler's options reach every train step, in a real run and in a plan."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast.plan import Route
from bert_fast.train import compiler_options
from bert_fast.train.compile import Programs
from bert_fast.train.sharding import make_mesh


def lowered(options=None):
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    whole = NamedSharding(mesh, P())
    shape = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=whole)
    step = lambda state, batch, route, rate, seed, limit, program: (state + batch, rate)  # noqa: E731
    return Programs(step, mesh, options).lower(None, shape, shape, Route(), shape, shape, shape)


def test_options_are_passed_to_the_compiler():
    lowered({"xla_cpu_enable_fast_math": False}).compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        lowered({"xla_no_such_option": True}).compile()


def test_a_platform_has_its_own_options(monkeypatch):
    lowered().compile()
    monkeypatch.setitem(compiler_options.OPTIONS, "tpu", {"xla_no_such_option": True})
    lowered().compile()
    monkeypatch.setitem(compiler_options.OPTIONS, "cpu", {"xla_no_such_option": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        lowered().compile()
