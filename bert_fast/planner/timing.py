"""Builds and times train steps. Programs take turns in one process, so a change in the machine's speed affects all of
them equally.
"""

import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_fast.method import Method, Program, Stage
from bert_fast.plan import Route
from bert_fast.train import compile, initial_params
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import global_batch
from bert_fast.train.state import enter_state
from bert_fast.train.step import make_step


def make_batch(program: Program) -> dict[str, np.ndarray]:
    """A batch of random tokens without padding."""
    rng, size = np.random.default_rng(0), program.model.vocab_size
    B, S, P = program.batch_size, program.seq_len, program.slots
    batch = {
        "ids": rng.integers(size // 2, size, (B, S)),
        "types": np.zeros((B, S)),
        "positions": np.tile(np.arange(S), (B, 1)),
        "segments": np.ones((B, S)),
        "slots": np.sort([rng.permutation(S)[:P] for _ in range(B)], axis=1),
        "labels": rng.integers(size // 2, size, (B, P)),
        "cls": np.zeros(B),
    }
    if "nsp" in program.objective:
        batch["next"] = rng.integers(0, 2, B)
    return {key: value.astype(np.int32) for key, value in batch.items()} | {"weights": np.ones((B, P), np.float32)}


class Stepper:
    """Runs train steps of several programs on one shared state. Every call blocks until its step is done."""

    def __init__(self, programs: compile.Programs, state, mesh):
        self.programs, self.state, self.mesh = programs, state, mesh

    def add(self, program: Program, route: Route | None = None) -> Callable[[], float]:
        """Compiles a program with a packed plan. Returns a function that runs one step and returns the loss."""
        batch = global_batch(make_batch(program), self.mesh)
        arguments = (program, self.state, batch, route or Route(), 1e-4, 0)
        if not self.programs.has(program, self.state, arguments[3]):
            self.programs.add(*arguments)

        def step() -> float:
            self.state, metrics = self.programs(program, self.state, *arguments[2:])
            return float(metrics["loss"])

        return step


def alternate(runs: Mapping[str, Callable], rounds: int, warm: int = 2, rest: float = 0.3) -> dict[str, list[float]]:
    """The seconds that each function takes, round by round. A round runs every function once.

    `warm` more rounds come first, and are not timed.
    """
    seconds = {name: [] for name in runs}
    for round_ in range(rounds + warm):
        for name, run in runs.items():
            time.sleep(rest)  # the previous run's threads keep spinning for a while and would slow this one
            began = time.perf_counter()
            run()
            if round_ >= warm:  # the first rounds fill caches and allocators
                seconds[name].append(time.perf_counter() - began)
    return seconds


def stepper(method: Method, stage: Stage, first: bool, optimizer: optax.GradientTransformation, mesh) -> Stepper:
    """A Stepper for a stage, on fresh parameters.

    first: whether it is the run's first stage. Only that stage gets the parameters that the method adds.
    """
    params, method_state = method.init(initial_params.fresh(stage.program.model, 0, mesh), stage.program.model)
    if not first:
        params, _ = method.weights(params)
    state = enter_state(
        jnp.zeros((), jnp.int32), params, stage.program, optimizer.init, jax.tree.map(jnp.array, method_state), mesh
    )
    return Stepper(compile.Programs(make_step(method, optimizer, PRETRAINING), mesh), state, mesh)
