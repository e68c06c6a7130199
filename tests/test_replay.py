"""Replay finds a flipped bit in the parameters, records or gradient of a step, and names the array.

It does so before the optimizer runs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from bert_fast import BadInput
from bert_fast.train import checkpoint, replay
from bert_fast.train.replay import Corrupted, Replay
from bert_fast.train.sharding import AXES
from helpers.interruption import interrupted
from helpers.small_runs import rows_without_clock, run, small_config

SMALL = {"steps": 8, "phases": "16:1", "eval__every": 0, "log_every": 1, "learning_rate__peak": 1e-3, "replay_every": 3}
FLIPS = 34  # flipped bits in each test


def flipped(x, rng):
    """The array on the same devices, with one random bit flipped."""
    words = np.array(x).view(np.uint32).reshape(-1)
    words[rng.integers(words.size)] ^= np.uint32(1) << np.uint32(rng.integers(32))
    return jax.device_put(words.view(x.dtype).reshape(x.shape), x.sharding)


def flip_in(tree, rng):
    """A tree with one random bit of one random leaf flipped, and the leaf's name."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    number = rng.integers(len(leaves))
    found = [leaf for _, leaf in leaves]
    found[number] = flipped(found[number], rng)
    return jax.tree.unflatten(structure, found), replay.path_of(leaves[number][0])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32])
def test_every_single_flipped_bit_gives_another_hash(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)) * 100).astype(dtype)
    bits = 8 * x.dtype.itemsize
    words = np.asarray(x).view(f"uint{bits}")
    seen, original = set(), int(replay.hash_of(x))
    for place in np.ndindex(words.shape):
        for bit in range(bits):
            other = words.copy()
            other[place] ^= other.dtype.type(1) << other.dtype.type(bit)
            seen.add(int(replay.hash_of(jnp.asarray(other.view(x.dtype)))))
    assert original not in seen
    assert len(seen) == words.size * bits


@pytest.mark.slow
def test_replayed_run_trains_like_any_other(small_shards, tmp_path):
    run(small_config(small_shards, **SMALL), tmp_path / "replayed")
    run(small_config(small_shards, **SMALL | {"replay_every": 0}), tmp_path / "plain")
    for one, two in zip(*(rows_without_clock(tmp_path / name) for name in ("replayed", "plain")), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


@pytest.mark.slow
def test_replayed_run_resumes_exactly(small_shards, tmp_path, monkeypatch):
    config = small_config(small_shards, **SMALL, methods="layer_drop,token_drop", micro_batches=2, model__norm="pre")
    run(config, tmp_path / "once")
    interrupted(config, tmp_path / "twice", 5, monkeypatch)
    run(config, tmp_path / "twice")
    once, twice = (checkpoint.restore_params(checkpoint.find(tmp_path / name)) for name in ("once", "twice"))
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    assert rows_without_clock(tmp_path / "once") == rows_without_clock(tmp_path / "twice")


@pytest.fixture(scope="module")
def replayed(small_shards, tmp_path_factory):
    """A Replay and the arguments of one of its steps."""
    kept = {}
    step = Replay.step

    def keep(self, *arguments):
        if not kept:
            copies = jax.tree.map(jnp.copy, arguments[2])
            kept.update(replay=self, arguments=(*arguments[:2], copies, *arguments[3:]), carried=self.carried)
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replay, "step", keep)
        run(small_config(small_shards, **SMALL | {"steps": 3}), tmp_path_factory.mktemp("replayed"))
    return kept


def step_with(kept, *, state=None, batch=None, gradient=None):
    """Takes the step again, with other parameters, another batch, or another function for the gradient."""
    self, (key, number, placed, *rest) = kept["replay"], kept["arguments"]
    placed = [jax.tree.map(jnp.copy, placed[0] if state is None else state), batch or placed[1], *placed[2:]]
    self.carried = kept["carried"]
    one, two = self.compiled[key]
    self.compiled[key] = gradient or one, two
    try:
        return self.step(key, number, placed, *rest)
    finally:
        self.compiled[key] = one, two


def test_every_flip_in_the_parameters_is_found(replayed):
    rng, state = np.random.default_rng(0), replayed["arguments"][2][0]
    step_with(replayed)
    for _ in range(FLIPS):
        params, name = flip_in(state.params, rng)
        with pytest.raises(Corrupted, match=f"^step 3, parameters: {name} differs from what it was before on device 0"):
            step_with(replayed, state=state._replace(params=params))


def test_every_flip_in_the_records_is_found(replayed):
    rng, batch = np.random.default_rng(1), replayed["arguments"][2][1]
    for _ in range(FLIPS):
        other, name = flip_in(batch, rng)
        with pytest.raises(Corrupted, match=f"^step 3, records: {name} differs"):
            step_with(replayed, batch=other)


def test_every_flip_in_the_gradient_is_found_before_the_optimizer(replayed):
    rng, gradient = np.random.default_rng(2), replayed["replay"].compiled[replayed["arguments"][0]][0]
    for number in range(FLIPS):
        calls, names = [], []

        def wrong(*arguments, bad=number % 2, calls=calls, names=names):
            calls.append(1)
            found = gradient(*arguments)
            if len(calls) - 1 != bad:
                return found
            grads, name = flip_in(found.grads, rng)
            names.append(name)
            return found._replace(grads=grads)

        with pytest.raises(Corrupted, match=r"^step 3, gradient: gradient/") as stopped:
            step_with(replayed, gradient=wrong)
        assert f"gradient/{names[0]} differs" in str(stopped.value)
        assert stopped.value.exit_code == 5


def test_copies_that_differ_between_devices_are_found():
    devices = [Device(0), Device(1)]
    one = {("w", devices[0]): ("all", 7), ("w", devices[1]): ("all", 8)}
    with pytest.raises(Corrupted, match="differs between the devices 0 and 1"):
        replay.compare(4, "parameters", one, one)
    apart = {("w", devices[0]): ("upper", 7), ("w", devices[1]): ("lower", 8)}
    replay.compare(4, "parameters", apart, apart)


class Device:
    device_kind, platform = "gpu of a test", "gpu"

    def __init__(self, number):
        self.id = number


def test_gpus_need_deterministic_operations(monkeypatch):
    mesh = Mesh(np.array([Device(0)]).reshape(1, 1, 1), AXES)
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(BadInput, match=r"replay_every=3 needs .*XLA_FLAGS=--xla_gpu_deterministic_ops=true"):
        replay.check(3, mesh)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    replay.check(3, mesh)
