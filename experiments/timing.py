"""Train steps that take turns in one process: what step_speed.py, speed.py and small_truth.py measure with."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_fast.method import Clock, Method, Program, Stage
from bert_fast.plan import Route
from bert_fast.train import compile, initial_params, timeline
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import global_batch
from bert_fast.train.state import enter_state
from bert_fast.train.step import make_step


def make_batch(program: Program) -> dict[str, np.ndarray]:
    """Random words in full rows."""
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
    """Runs train steps of any programs over one state; every call waits until its step is done."""

    def __init__(self, programs: compile.Programs, state, mesh):
        self.programs, self.state, self.mesh = programs, state, mesh

    def add(self, program: Program, route: Route | None = None) -> Callable[[], float]:
        """A function that runs one step of a program (its plan packed) and returns its loss; compiles it."""
        batch = global_batch(make_batch(program), self.mesh)
        arguments = (program, self.state, batch, route or Route(), 1e-4, 0)
        if not self.programs.has(program, self.state, arguments[3]):
            self.programs.add(*arguments)

        def step() -> float:
            self.state, metrics = self.programs(program, self.state, *arguments[2:])
            return float(metrics["loss"])

        return step


def peak(dtype: str = "float32", n: int = 3072):
    """A function that runs one large matrix product, and its FLOPs."""
    product = jax.jit(lambda a, b: a @ b)
    a = jnp.ones((n, n), dtype) / n
    return lambda: product(a, a).block_until_ready(), 2 * n**3


def alternate(runs: Mapping[str, Callable], rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each run, round by round; every run once a round."""
    seconds = {name: [] for name in runs}
    for round_ in range(rounds + warm):
        for name, run in runs.items():
            time.sleep(0.3)  # the threads of the run before still spin for a while, and would take from this one
            began = time.perf_counter()
            run()
            if round_ >= warm:  # the first ones warm up caches and allocators
                seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the range from the tenth to the ninetieth percentile."""
    low, high = np.quantile(values, (0.1, 0.9))
    return statistics.median(values), float(low), float(high)


def steady(method: Method, stage: Stage, steps: int) -> list[timeline.Draw]:
    """What a stage draws when nine tenths of a training of `steps` steps are over, the most frequent first."""
    return timeline.draws(method, stage, [Clock(9 * steps // 10, steps)] * timeline.TIMES)


def stepper(method: Method, stage: Stage, first: bool, optimizer: optax.GradientTransformation, mesh) -> Stepper:
    """Steps of a stage on fresh parameters; `first`: the stage is the run's first, and has what the method added."""
    params, method_state = method.init(initial_params.fresh(stage.program.model, 0, mesh), stage.program.model)
    if not first:
        params, _ = method.weights(params)
    state = enter_state(
        jnp.zeros((), jnp.int32), params, stage.program, optimizer.init, jax.tree.map(jnp.array, method_state), mesh
    )
    return Stepper(compile.Programs(make_step(method, optimizer, PRETRAINING), mesh), state, mesh)
