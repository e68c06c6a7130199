"""Compares five train steps on several emulated devices with the same steps on one device; prints JSON.

The steps have dropout: masks depend neither on the device that computes an example nor on its micro-batch.

test_sharding.py runs this in a separate process, because the number of emulated devices is fixed when JAX starts.
"""

import json
import os
import sys

from helpers import xla_flags

os.environ["XLA_FLAGS"] = xla_flags.devices(8)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast import bert
from bert_fast.method import Method, Program, Stage
from bert_fast.plan import Route, whole
from bert_fast.schedule import Schedule
from bert_fast.train import compile, initial_params, optim
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import global_batch, make_mesh
from bert_fast.train.state import first_state
from bert_fast.train.step import make_step
from helpers.attention_case import Case

jax.config.update("jax_disable_most_optimizations", True)
B, S, SLOTS = 16, 16, 3


def batch_of(step: int) -> dict:
    rng = np.random.default_rng(step)
    batch = {
        "ids": rng.integers(5, 500, (B, S)),
        "types": rng.integers(0, 2, (B, S)),
        "positions": np.tile(np.arange(S), (B, 1)),
        "segments": np.where(np.arange(S) < rng.integers(8, S + 1, (B, 1)), 1, 0),
        "slots": np.sort(rng.integers(0, 8, (B, SLOTS)), axis=1),
        "labels": rng.integers(5, 500, (B, SLOTS)),
        "cls": np.zeros(B),
        "next": rng.integers(0, 2, B),
    }
    weights = (rng.random((B, SLOTS)) < 0.8).astype(np.float32)
    return {key: value.astype(np.int32) for key, value in batch.items()} | {"weights": weights}


def run(sizes: tuple[int, int, int], micro_batches: int):
    """(loss and gradient norm of each of five steps, final parameters, share of the parameter bytes on one device)."""
    config = bert.Config(500, 2, 32, 4, 8, 64, S, pooler=True, dropout=0.1, attention_dropout=0.1)
    program = Program(config, whole(2), B, micro_batches, S, SLOTS, "mlm+nsp")
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    optimizer = optim.make(optim.Optimizer("lamb", 0.9, 0.999, 1e-6, 0.01, True, 1.0))
    params = initial_params.fresh(config, 0, mesh)
    state = first_state(params, Method(), Stage("five", program, 5, Schedule(1e-3, 5)), optimizer, mesh)
    programs = compile.Programs(make_step(Method(), optimizer, PRETRAINING), mesh)
    seen = []
    for step in range(5):
        arguments = (state, global_batch(batch_of(step), mesh), Route(), 1e-3, 0)
        if not programs.has(program, state, Route()):
            programs.add(program, *arguments)
        state, metrics = programs(program, *arguments)
        seen.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    leaves = jax.tree.leaves(state.params)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return seen, jax.tree.map(np.asarray, state.params), held / sum(leaf.nbytes for leaf in leaves)


def compare(sizes, micro_batches, one):
    seen, params, share = run(sizes, micro_batches)
    far = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, one[1])
    relative = np.abs(np.array(seen) / np.array(one[0]) - 1).max()
    return {"relative": float(relative), "absolute": max(jax.tree.leaves(far)), "share": share}


def difference_of_kernels(*sizes: int) -> float:
    """Largest difference in output and gradients between the TPU kernel on several devices and the reference on one."""
    case = Case(8, 128, 4, 128, 128)
    expected, mesh = case.run("plain"), make_mesh(*sizes)
    case.product_BNW = jax.device_put(case.product_BNW, NamedSharding(mesh, P(("data", "fsdp"), None, "tensor")))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda: case.run("pallas"))()
    far = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), list(found), list(expected))
    return max(far)


def main():
    one = run((1, 1, 1), 1)
    result = {"1x1x1 in 4": compare((1, 1, 1), 4, one)}
    for sizes in ((8, 1, 1), (2, 4, 1), (2, 2, 2)):
        result["x".join(map(str, sizes))] = compare(sizes, 1, one)
    result["2x2x2 in 2"] = compare((2, 2, 2), 2, one)
    result["kernel"] = [difference_of_kernels(*sizes) for sizes in ((4, 2, 1), (2, 2, 2))]
    json.dump(result, sys.stdout)
    assert jnp.isfinite(one[0][0][0])


if __name__ == "__main__":
    main()
