"""Code that the scripts for timing train steps share. More of it is in bert_fast/planner/timing.py."""

import jax
import jax.numpy as jnp
import optax

from bert_fast.method import Clock, Method, Stage
from bert_fast.train import optim, timeline
from bert_fast.train.sharding import make_mesh


def one_device():
    """A mesh with only the first device."""
    return make_mesh(1, 1, 1, jax.devices()[:1])


def adamw(clip_norm: float) -> optax.GradientTransformation:
    """AdamW with BERT's settings, but with bias correction. A `clip_norm` of 0 means no clipping."""
    return optim.make(optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, True, clip_norm))


def count_compilations() -> list[str]:
    """A list that gets one entry for every program compiled from now on."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: events.append(event) if event.endswith("backend_compile_duration") else None
    )
    return events


def peak(dtype: str = "float32", n: int = 3072):
    """Two things: a function that computes one large matrix product, and the product's FLOPs."""
    product = jax.jit(lambda a, b: a @ b)
    a = jnp.ones((n, n), dtype) / n
    return lambda: product(a, a).block_until_ready(), 2 * n**3


def steady(method: Method, stage: Stage, steps: int) -> list[timeline.Draw]:
    """The packed plans that a stage draws after 90 % of a run's `steps` steps, most frequent first."""
    return timeline.draws(method, stage, [Clock(9 * steps // 10, steps)] * timeline.TIMES)
