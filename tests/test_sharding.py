"""Meshes of eight devices compared with one device, and the table of sharding rules."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bert_fast import BadInput, bert
from bert_fast.train import optim, sharding


@pytest.fixture(scope="module")
def meshes():
    script = pathlib.Path(__file__).parent / "helpers" / "eight_devices.py"
    root = pathlib.Path(__file__).parents[1]
    environment = {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    done = subprocess.run([sys.executable, script], capture_output=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", ["1x1x1 in 4", "8x1x1", "2x4x1", "2x2x2", "2x2x2 in 2"])
def test_steps_on_a_mesh_or_in_micro_batches_equal_steps_on_one_device(meshes, case):
    assert meshes[case]["relative"] < 1e-5
    assert meshes[case]["absolute"] < 1e-5


def test_kernels_on_several_devices_draw_the_same_masks_as_on_one(meshes):
    assert max(meshes["kernel"]) < 1e-4


def test_fsdp_and_tensor_axes_divide_the_parameters(meshes):
    assert meshes["8x1x1"]["share"] == 1
    assert meshes["2x4x1"]["share"] < 0.3
    assert meshes["2x2x2"]["share"] < 0.3


def one_device_mesh():
    return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


def test_every_parameter_and_moment_is_covered_by_a_rule():
    config = bert.Config(500, 2, 32, 4, 8, 64, 16, norm="pre", pooler=True)
    params = bert.shapes(config)
    state = jax.eval_shape(optim.make(optim.Optimizer("lamb", 0.9, 0.999, 1e-6, 0.01, True, 1.0)).init, params)
    for tree in (params, state):
        assert len(jax.tree.leaves(sharding.shard(tree, one_device_mesh()))) == len(jax.tree.leaves(tree))


def test_parameter_that_no_rule_covers_is_an_error():
    with pytest.raises(ValueError, match="no sharding rule covers the parameter somewhere/new"):
        sharding.shard({"somewhere": {"new": np.zeros(3)}}, one_device_mesh())


def test_every_rule_is_needed():
    config = bert.Config(500, 2, 32, 4, 8, 64, 16, norm="pre", pooler=True)
    params = bert.shapes(config)
    paths = [sharding.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    paths += ["layers/of_a_method", "0/count"]
    first = {next(i for i, (pattern, _) in enumerate(sharding.RULES) if sharding.re.search(pattern, p)) for p in paths}
    assert first == set(range(len(sharding.RULES)))


def test_axis_that_the_mesh_does_not_divide_is_named():
    mesh = type("Mesh", (), {"shape": {"data": 1, "fsdp": 1, "tensor": 3}})()
    with pytest.raises(BadInput, match=r"layers/attention_output/kernel has an axis of 4.*tensor=3"):
        sharding.spec_of("layers/attention_output/kernel", (2, 4, 8, 32), mesh)


def test_matrices_get_the_specs_of_the_table():
    mesh = one_device_mesh()
    assert sharding.spec_of("layers/qkv/kernel", (2, 32, 96), mesh) == P(None, "fsdp", "tensor")
    assert sharding.spec_of("0/mu/layers/mlp_output/kernel", (2, 64, 32), mesh) == P(None, "tensor", "fsdp")


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int


def test_tensor_axis_is_within_a_process_if_possible(monkeypatch):
    # A torus of 4 x 4 chips, listed row by row. Each host has 2 x 2 of them.
    devices = [Device(4 * y + x, 2 * (y // 2) + x // 2) for y in range(4) for x in range(4)]

    def in_rows(sizes, names, *, devices, axis_types):
        return jax.sharding.Mesh(np.array(devices).reshape(sizes), names, axis_types=axis_types)

    monkeypatch.setattr(jax, "make_mesh", in_rows)
    for tensor, crosses in ((1, False), (2, False), (4, False), (8, True)):
        mesh = sharding.make_mesh(-1, 1, tensor, devices=devices)
        assert sharding.tensor_crosses(mesh) == crosses
        assert set(mesh.devices.flat) == set(devices)


@pytest.mark.parametrize("sizes", [(2, 1, 1), (-1, 3, -1), (0, 1, 1), (-1, 2, 1)])
def test_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(BadInput, match="does not fit the number of devices, 1:"):
        sharding.make_mesh(*sizes, devices=jax.devices()[:1])
