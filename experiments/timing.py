"""Building and timing train steps. Programs take turns in one process, so that a drift of the machine's speed slows all
of them alike."""

import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_fast.method import Clock, Method, Program, Stage
from bert_fast.plan import Route
from bert_fast.train import compile, initial_params, optim, timeline
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import global_batch, make_mesh
from bert_fast.train.state import enter_state
from bert_fast.train.step import make_step


def one_device():
    """A mesh of the first device."""
    return make_mesh(1, 1, 1, jax.devices()[:1])


def adamw(clip_norm: float) -> optax.GradientTransformation:
    """AdamW with BERT's settings and bias correction; `clip_norm` 0: no clipping."""
    return optim.make(optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, True, clip_norm))


def count_compilations() -> list[str]:
    """A list that grows by one entry with every program compiled from now on."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: events.append(event) if event.endswith("backend_compile_duration") else None
    )
    return events


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
    """Runs train steps of several programs on one state; every call blocks until its step is done."""

    def __init__(self, programs: compile.Programs, state, mesh):
        self.programs, self.state, self.mesh = programs, state, mesh

    def add(self, program: Program, route: Route | None = None) -> Callable[[], float]:
        """Compiles a program (its plan packed) and returns a function that runs one step and returns its loss."""
        batch = global_batch(make_batch(program), self.mesh)
        arguments = (program, self.state, batch, route or Route(), 1e-4, 0)
        if not self.programs.has(program, self.state, arguments[3]):
            self.programs.add(*arguments)

        def step() -> float:
            self.state, metrics = self.programs(program, self.state, *arguments[2:])
            return float(metrics["loss"])

        return step


def peak(dtype: str = "float32", n: int = 3072):
    """A function that computes one large matrix product, and the product's FLOPs."""
    product = jax.jit(lambda a, b: a @ b)
    a = jnp.ones((n, n), dtype) / n
    return lambda: product(a, a).block_until_ready(), 2 * n**3


def alternate(runs: Mapping[str, Callable], rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each function, one value per round. Each runs once a round, and `warm` rounds go untimed."""
    seconds = {name: [] for name in runs}
    for round_ in range(rounds + warm):
        for name, run in runs.items():
            time.sleep(0.3)  # the previous run's threads keep spinning for a while and would slow this one
            began = time.perf_counter()
            run()
            if round_ >= warm:  # earlier rounds fill caches and allocators
                seconds[name].append(time.perf_counter() - began)
    return seconds


def steady(method: Method, stage: Stage, steps: int) -> list[timeline.Draw]:
    """What a stage draws at 90 % of a run of `steps` steps, most frequent first."""
    return timeline.draws(method, stage, [Clock(9 * steps // 10, steps)] * timeline.TIMES)


def stepper(method: Method, stage: Stage, first: bool, optimizer: optax.GradientTransformation, mesh) -> Stepper:
    """A Stepper for a stage on fresh parameters. `first`: the run's first stage has the method's own parameters."""
    params, method_state = method.init(initial_params.fresh(stage.program.model, 0, mesh), stage.program.model)
    if not first:
        params, _ = method.weights(params)
    state = enter_state(
        jnp.zeros((), jnp.int32), params, stage.program, optimizer.init, jax.tree.map(jnp.array, method_state), mesh
    )
    return Stepper(compile.Programs(make_step(method, optimizer, PRETRAINING), mesh), state, mesh)
