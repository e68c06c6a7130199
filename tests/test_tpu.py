"""The TPU compiler: results are cached, programs that do not fit are reported, an unknown topology is refused."""

import importlib.metadata
import pathlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

from bert_fast import BadInput, versions
from bert_fast.planner import estimate, tpu


def test_message_of_the_compiler_is_summed_up_in_one_line():
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 27.21G of 15.75G hbm. Exceeded hbm capacity by 11.46G.

  Largest program allocations in hbm:

  1. Size: 2.25G
     Operator: op_name="jit(train_step)/transpose(jvp(Block))/softmax"
     Shape: f32[12,128,12,128,128]{4,3,2,1,0:T(8,128)}
     Unpadded size: 2.25G
"""  # noqa: E501
    line = "uses 27.21G of 15.75G; largest tensors: 2.25G f32[12,128,12,128,128] (backward softmax)"
    assert tpu.too_large(message, "") == line
    assert tpu.too_large("RESOURCE_EXHAUSTED", "") == "out of memory"


def test_largest_tensors_come_from_the_program_if_the_compiler_lists_none():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (22.46G) exceeds "
        "available HBM (15.75G)."
    )

    def loss(x):
        return jnp.sum(jnp.tanh(x @ x.T)) + jnp.sum(x)

    lowered = jax.jit(jax.grad(loss)).lower(jax.ShapeDtypeStruct((256, 16), jnp.float32))
    line = tpu.too_large(message, lowered.as_text(debug_info=True))
    assert line.startswith(
        "uses 22.46G of 15.75G; largest tensors, over all devices together: 0.00G f32[256,256] (forward"
    )
    assert line.count("f32[256,256]") == 1
    assert "f32[256,16]" in line


class Memory:
    argument_size_in_bytes, temp_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 100, 10, 50, 45


class Lowered:
    """A lowered program that is also its own compiled program. `compiled` lists the programs compiled so far."""

    compiled: ClassVar[list[str]] = []

    def __init__(self, text):
        self.text = text

    def as_text(self):
        return self.text

    def compile(self):
        self.compiled.append(self.text)
        return self

    def memory_analysis(self):
        return Memory()


def test_a_program_is_compiled_once_for_each_topology_and_set_of_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(Lowered, "compiled", [])
    first = tpu.compile(Lowered("one"), "v5e:1x1", tmp_path, {})
    assert (first.arguments, first.temporaries, first.peak, first.text) == (100, 10, 115, "one")
    assert tpu.compile(Lowered("one"), "v5e:1x1", tmp_path, {}) == first
    tpu.compile(Lowered("other"), "v5e:1x1", tmp_path, {})
    tpu.compile(Lowered("one"), "v5e:2x4", tmp_path, {})
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=1024")
    tpu.compile(Lowered("one"), "v5e:1x1", tmp_path, {})
    tpu.compile(Lowered("one"), "v5e:1x1", tmp_path, {"xla_tpu_scoped_vmem_limit_kib": 1024})
    assert Lowered.compiled == ["one", "other", "one", "one", "one"]


@pytest.mark.parametrize("topology", ["v9:1x1", "v5e", "tpu"])
def test_unknown_topology_is_refused_and_known_ones_are_listed(topology):
    with pytest.raises(BadInput, match=rf"--topology={topology} is unknown: .*v5e:4x4.*or cpu, or gpu"):
        estimate.on(topology)


def test_missing_or_wrong_libtpu_is_reported_with_the_command_to_install_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(BadInput, match=r'needs libtpu, .*pip install "\.\[tpu\]" in a clone, .*requirements-tpu\.txt'):
        estimate.on("v5e:1x1")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.99")
    with pytest.raises(BadInput, match=r"libtpu 0\.0\.99 does not match jaxlib .*, which needs 0\.0\."):
        estimate.on("v5e:1x1")


def test_locked_libtpu_is_the_one_that_the_locked_jax_needs():
    lines = (pathlib.Path(__file__).parents[1] / "requirements-tpu.txt").read_text().splitlines()
    if f"jax=={importlib.metadata.version('jax')}" not in lines:
        pytest.skip("the installed jax is not the locked one")
    (locked,) = [line for line in lines if line.startswith("libtpu==")]
    assert f"{locked}.".startswith(f"libtpu=={versions.libtpu_of_jax()}.")
