"""Replay: some steps compute their loss and gradient twice. The run stops if the results differ.

Processors and memories that compute wrongly without an error are rare but real: Google replays steps on suspicion, and
6% of the replayed steps were wrong (Gemini 2.5, arXiv 2507.06261, section 2). Before the optimizer of a replayed step
runs, three pairs of values are compared, by hashes of what every device holds:

    parameters    those at the end of the previous step, and those at the start of this step
    records       the batch on the devices, and the same batch read again from the shards
    gradient      the loss and gradient of the first computation, and those of the second

Every replica of an array must have the same hash too.
"""

import functools
import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast import BadInput
from bert_fast.method import Method, Program
from bert_fast.train.compile import Programs
from bert_fast.train.sharding import AXES, BATCH, global_batch, path_of, shard
from bert_fast.train.step import Gradient, Objective, TrainState, make_gradient, make_update

DETERMINISTIC = ("xla_gpu_deterministic_ops=true", "xla_gpu_exclude_nondeterministic_ops=true")

Hashes = dict[tuple[str, Any], tuple[str, int]]  # (leaf's path, device) -> (part of the leaf that it holds, its hash)


class Corrupted(BadInput):
    """Raised when two values that must be equal bit for bit are not."""

    exit_code = 5


def check(every: int, mesh: Mesh):
    """Raises BadInput if the devices do not compute deterministically."""
    flags = os.environ.get("XLA_FLAGS", "")
    if (
        every
        and mesh.devices.flat[0].platform in ("gpu", "cuda", "rocm")
        and not any(f in flags for f in DETERMINISTIC)
    ):
        raise BadInput(
            f"--config.replay_every={every} needs deterministic operations, which GPUs do not use by default: set the "
            f"environment variable XLA_FLAGS=--{DETERMINISTIC[0]}, or --config.replay_every=0"
        )


def hash_of(x):
    """A hash of an array as a uint32. One changed element always changes the hash. Several nearly always do.

    Each element's bits are combined with the element's place, then mixed by MurmurHash3's finalizer (fmix32,
    github.com/aappleby/smhasher), a one-to-one function. The hash is the sum of the results.
    """
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32).reshape(-1)
    h = words ^ (jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(0x9E3779B9))  # odd, so no two products are equal
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _hashes(leaves, mesh: Mesh, specs: tuple[P, ...]):
    def local(*leaves):
        return tuple(hash_of(leaf)[None] for leaf in leaves)

    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(AXES),) * len(specs), check_vma=False)(*leaves)


def dispatch(tree, mesh: Mesh) -> tuple[list, Any]:
    """Starts to compute the hashes of a tree of arrays; `collect` waits for them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = tuple(leaf for _, leaf in leaves)
    where = [(path_of(path), leaf.sharding.devices_indices_map(leaf.shape)) for path, leaf in leaves]
    return where, _hashes(arrays, mesh, tuple(leaf.sharding.spec for leaf in arrays))


def collect(dispatched: tuple[list, Any]) -> Hashes:
    """The hash of each leaf on each device of this process."""
    return {
        (path, shard.device): (str(places[shard.device]), int(np.asarray(shard.data)[0]))
        for (path, places), found in zip(*dispatched, strict=True)
        for shard in found.addressable_shards
    }


def compare(step: int, what: str, one: Hashes, two: Hashes):
    """Raises Corrupted if two sets of hashes differ, or if two replicas of a leaf differ in the second set."""
    known: dict[tuple[str, str], tuple[Any, int]] = {}
    for (path, device), (place, found) in two.items():
        reason = ""
        if one[path, device][1] != found:
            reason = f"differs from what it was before on device {device.id} ({device.device_kind})"
        other, expected = known.setdefault((path, place), (device, found))
        if found != expected:
            reason = f"differs between the devices {other.id} and {device.id} ({device.device_kind}), which hold copies"
        if reason:
            raise Corrupted(
                f"step {step}, {what}: {path} {reason}. This device, its memory or its host computes wrongly. "
                "Nothing of this step was kept. Run the same command again without that machine: it continues from the "
                "newest checkpoint"
            )


def make(every: int, method: Method, optimizer, objective: Objective, programs: Programs, again: Callable):
    """A Replay that checks every `every`-th step; None if `every` is 0. Raises BadInput if the devices cannot replay.

    again: (stage, index) -> this process's part of the batch that ends before example `index`, read again.
    """
    if not every:
        return None
    check(every, programs.mesh)
    parts = make_gradient(method, objective), make_update(method, optimizer, objective)
    return Replay(every, parts, programs, again)


class Replay:
    """Runs the replayed steps. `parts`: the two parts of the train step. For `again`, see `make`."""

    def __init__(self, every: int, parts: tuple[Callable, Callable], programs: Programs, again: Callable):
        self.every, self.programs, self.mesh, self.again = every, programs, programs.mesh, again
        self.parts = parts
        self.compiled: dict[Hashable, tuple[Callable, Callable]] = {}
        self.carried: Any = None  # hashes of the parameters after the last update

    def due(self, step: int) -> bool:
        """Whether the step with this number, counted from 0, is replayed."""
        return self.every > 0 and (step + 1) % self.every == 0

    def carry(self, state: TrainState):
        """Records the hashes of the parameters for the next step."""
        self.carried = dispatch(state.params, self.mesh)

    def has(self, key: Hashable) -> bool:
        return key in self.compiled

    def add(self, key: Hashable, program: Program, placed):
        """Compiles the two parts of a step in the background thread. The caller waits, but can be interrupted."""
        self.compiled[key] = self.programs.background.submit(self.compile, program, placed).result()

    def compile(self, program: Program, placed) -> tuple[Callable, Callable]:
        state, batch, route, rate, seed, limit = placed
        everywhere, examples = NamedSharding(self.mesh, P()), NamedSharding(self.mesh, BATCH)
        parts = Gradient(examples, everywhere, examples, everywhere, shard(state.params, self.mesh))  # type: ignore
        gradient, update = (functools.partial(part, program=program) for part in self.parts)
        with jax.set_mesh(self.mesh):  # kernels look up the mesh: see attention/
            one = jax.jit(gradient, out_shardings=parts).lower(state, batch, route, seed).compile()
        shapes = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            one.out_info,
            one.output_shardings,
        )
        outputs = jax.tree.map(lambda x: x.sharding, state), everywhere
        two = jax.jit(update, donate_argnums=0, out_shardings=outputs).lower(state, shapes, rate, limit).compile()
        return one, two

    def step(self, key: Hashable, number: int, placed, stage, next_index: int) -> tuple[TrainState, Mapping[str, Any]]:
        """The new state and the metrics of a step. Raises Corrupted before the optimizer runs if two values differ."""
        state, batch, route, rate, seed, limit = placed
        gradient, update = self.compiled[key]
        if self.carried is not None:
            compare(number, "parameters", *map(collect, (self.carried, dispatch(state.params, self.mesh))))
        made = global_batch(self.again(stage, next_index), self.mesh)
        compare(number, "records", *(collect(dispatch(tree, self.mesh)) for tree in (made, batch)))
        seen = []
        for _ in range(2):
            found = gradient(state, batch, route, seed)
            seen.append(collect(dispatch({"loss": found.loss, "gradient": found.grads}, self.mesh)))
        compare(number, "gradient", *seen)
        return update(state, found, rate, limit)
