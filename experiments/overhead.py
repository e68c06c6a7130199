"""What the guard, the watchdog and the seals add to a training step of BERT-base.

    python -m experiments.overhead [--rounds=30]

The guard is part of the compiled step, so the optimizer's part of a step is timed with it and without it, in turns. The
watchdog, the limit of the gradient's norm and the seals of rows are Python code of the loop: each is repeated many
times. A checkpoint's checksums are computed in the thread that saves it; they are timed too, and divided by the steps
between two saves. Everything is compared with a step of 16 x 128 tokens. Writes experiments/overhead.md.
"""

import functools
import os
import pathlib
import platform
import statistics
import tempfile
import time
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax

from bert_fast import bert
from bert_fast.bert import Config
from bert_fast.configs.common import size
from bert_fast.data.shards import sha256
from bert_fast.method import Method, Program, Stage
from bert_fast.plan import whole
from bert_fast.planner.timing import alternate, stepper
from bert_fast.schedule import Schedule
from bert_fast.train import host_memory
from bert_fast.train.guard import Guard, limit
from bert_fast.train.log import sealed
from bert_fast.train.step import Gradient, Objective, TrainState, make_update
from bert_fast.train.waiting import Waiting
from bert_fast.train.watchdog import Limits
from experiments import common
from experiments.timing import adamw, one_device

CONFIG = Config(30_522, **size("base"))
PROGRAM = Program(CONFIG, whole(CONFIG.depth), 16, 1, 128, 20, "mlm")
STAGE = Stage("base", PROGRAM, 1_000, Schedule(1e-4, 1_000))
NOTHING = Objective(lambda *_: None, lambda *_: None, lambda *_: {})  # the update needs none of it
WAITS = 4  # in each step: for the input, for the dispatch, for the previous step, for the other processes
EVERY, LOG_EVERY = 10_000, 100  # as in configs/common.py
ROW = {"step": 1000, "split": "train"} | {f"number {i}": 1 / (i + 3) for i in range(25)}


class Part(NamedTuple):
    """A part of the machinery, and its seconds per step."""

    name: str
    seconds: float
    how: str


def unguarded(optimizer: optax.GradientTransformation):
    """As `make_update`, but every update is kept, and only clipping computes a norm."""

    def update(state: TrainState, found: Gradient, learning_rate, limit, program: Program):
        updates, opt_state = optimizer.update(found.grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        return TrainState(state.step + 1, params, state.frozen, opt_state, state.method), {"loss": found.loss}

    return update


class Updater:
    """Calls a compiled update on a state of its own."""

    def __init__(self, update, optimizer: optax.GradientTransformation, params: bert.Params, found: Gradient):
        self.compiled, self.found = jax.jit(update, static_argnames="program", donate_argnums=0), found
        self.state = TrainState(
            jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), {}, optimizer.init(params), {}
        )

    def __call__(self):
        rate, largest = jnp.float32(1e-4), jnp.float32(1e9)
        self.state, metrics = self.compiled(self.state, self.found, rate, largest, program=PROGRAM)
        jax.block_until_ready((self.state, metrics))


def guard_seconds(rounds: int) -> dict[str, list[float]]:
    """Seconds of an update with and without the guard. In both, AdamW clips the gradient, as in configs/common.py."""
    optimizer = adamw(1.0)
    params = jax.jit(functools.partial(bert.init, CONFIG))(jax.random.key(0))
    found = Gradient({}, jnp.ones(()), None, jnp.zeros(()), jax.tree.map(lambda p: 1e-3 * p, params))
    updates = {"with": make_update(Method(), optimizer, NOTHING), "without": unguarded(optimizer)}
    return alternate({name: Updater(update, optimizer, params, found) for name, update in updates.items()}, rounds)


def each(work, times: int = 20_000) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def waiting_seconds() -> float:
    with Waiting(Limits(), None) as waits:

        def wait():
            with waits.until("step", 1):
                pass

        return each(wait)


def checksum_rate(mib: int = 256) -> float:
    """Bytes per second of a file's checksum."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "file")
        path.write_bytes(os.urandom(mib * 2**20))
        seconds = [each(functools.partial(sha256, path), 1) for _ in range(3)]
    return mib * 2**20 / statistics.median(seconds)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="how often each kind of update is timed")
    args = parser.parse_args()
    host_memory.keep_freed()  # as in commands that compute
    step = stepper(Method(), STAGE, True, adamw(1.0), one_device()).add(PROGRAM)
    (steps,) = alternate({"step": step}, max(3, args.rounds // 6)).values()
    del step
    updates = guard_seconds(args.rounds)
    differences = [a - b for a, b in zip(updates["with"], updates["without"], strict=True)]
    norms, guard = [1.0 + 1e-3 * i for i in range(100)], Guard()
    state = 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(bert.shapes(CONFIG)))
    rate = checksum_rate()
    whole_step = statistics.median(steps)
    rounds = f"median of {args.rounds} rounds, in turns"
    parts = [
        Part("guard, in the compiled step", statistics.median(differences), rounds),
        Part("guard, limit of the norm", each(lambda: limit(guard, norms), 2_000), "every step"),
        Part("watchdog", WAITS * waiting_seconds(), f"{WAITS} waits per step"),
        Part("seals of rows", each(lambda: sealed(ROW)) / LOG_EVERY, f"one row every {LOG_EVERY} steps"),
        Part(
            "checksums of checkpoints",
            state / rate / EVERY,
            f"{state / 2**20:,.0f} MiB every {EVERY:,} steps, in a thread",
        ),
    ]
    lines = [
        f"| {part.name} | {1e3 * part.seconds:.3f} | {part.seconds / whole_step:.3%} | {part.how} |" for part in parts
    ]
    total = sum(part.seconds for part in parts)
    common.write_page(
        "overhead",
        f"""# What the guard, the watchdog and the seals cost

`python -m experiments.overhead --rounds={args.rounds}`, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, jax {jax.__version__}. BERT-base, AdamW, 16 x 128 tokens: a step takes
{common.with_range(common.extremes(steps), ".2f")} s (least to most).

| | ms per step | share of the step | measured as |
|---|---|---|---|
{chr(10).join(lines)}
| **together** | {1e3 * total:.3f} | **{total / whole_step:.2%}** | |

An update of the parameters takes {common.with_range(common.extremes([1e3 * s for s in updates["with"]]), ",.0f")} ms with the guard and {common.with_range(common.extremes([1e3 * s for s in updates["without"]]), ",.0f")} ms without it.
Gradients are clipped in both, so their norm is computed in both. Without the guard, every update is kept, and the norm of the parameters is
not computed.
""",
    )


if __name__ == "__main__":
    main()
