"""Attention: one interface, and a file for each backend.

- `plain`: JAX operations; the reference, and what runs on a CPU.
- `pallas`: a kernel for TPUs.
- `cudnn`: the kernel of NVIDIA's library.

Axes: as in layers.py; A = H E, the width of all heads together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bert_fast import BadInput
from bert_fast.attention import cudnn, pallas, plain
from bert_fast.dropout import Draws

BACKENDS = ("auto", "plain", "pallas", "cudnn")
ROWS = ("data", "fsdp")  # axes of the mesh that rows are split over; heads are split over "tensor"


class Shape(NamedTuple):
    """What the choice of a backend depends on. The first `queries` of `length` tokens attend to the first `keys`."""

    length: int
    queries: int
    keys: int
    head_size: int
    dtype: str
    rate: float  # the dropout rate


def choose(asked: str, platform: str, shape: Shape) -> tuple[str, str]:
    """The backend for this shape on a platform ("cpu", "tpu" or "gpu"), and the reason.

    Raises BadInput if `asked` names a backend that cannot be used.
    """
    problems = {"plain": "", "pallas": pallas.problem(shape, platform), "cudnn": cudnn.problem(shape, platform)}
    if asked != "auto":
        if problems[asked]:
            raise BadInput(f"--config.model.attention={asked}: {problems[asked]}. Use auto, or plain")
        return asked, "as set by --config.model.attention"
    fast = {"tpu": "pallas", "gpu": "cudnn", "cuda": "cudnn"}.get(platform)
    if fast is None:
        return "plain", "the device is a CPU" if platform == "cpu" else f"there is no kernel for {platform}"
    return ("plain", problems[fast]) if problems[fast] else (fast, f"the fastest on {platform}")


def backends(model, plan, seq_len: int, platform: str) -> list[tuple[str, str]]:
    """The backends that a training step of a plan uses, each with the reason, in the plan's order.

    Raises BadInput if `model.attention` names a backend that cannot be used.
    """
    found: dict[tuple[str, str], None] = {}
    for span in plan:
        queries, keys = ((count or seq_len) * span.examples_per_row for count in (span.queries, span.keys))
        rate = model.attention_dropout if span.dropout else 0.0
        shape = Shape(max(queries, keys), queries, keys, model.head_size, model.dtype, rate)
        found[choose(model.attention, platform, shape)] = None
    return list(found)


def platform_of_mesh() -> str:
    """The platform that the traced function is compiled for: the current mesh's, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def attend(
    product_BNW,
    bias_W,
    segments_BN,
    queries: int,
    keys: int,
    head_size: int,
    rate: float = 0.0,
    draws: Draws | None = None,
    asked: str = "auto",
):
    """Softmax attention of the first `queries` tokens to the first `keys` tokens of the same segment: [B, Q, A].

    product_BNW: queries, keys and values of N tokens, ordered as in qkv.py. bias_W: the bias to add to them. rate: the
    dropout rate of the probabilities; without `draws`, there is no dropout. A row may hold several examples: then
    `draws` has more examples than there are rows.
    """
    rows, length, _ = product_BNW.shape
    joined, salts_2BN = 1, None
    if draws is not None and rate:
        joined = len(draws.examples_B) // rows
        salts_2BN = draws.salts(length // joined).reshape(2, rows, length)
    rate = rate if salts_2BN is not None else 0.0
    shape = Shape(length, queries, keys, head_size, str(product_BNW.dtype), rate)
    platform = platform_of_mesh()
    name, _ = choose(asked, platform, shape)
    if name == "plain":
        return plain.attend(product_BNW, bias_W, segments_BN, salts_2BN, shape, joined)
    if name == "cudnn":
        return cudnn.attend(product_BNW, bias_W, segments_BN, shape)

    def on_device(product_BNW, bias_W, segments_BN, salts_2BN):
        return pallas.attend(product_BNW, bias_W, segments_BN, salts_2BN, shape, joined, interpret=platform == "cpu")

    mesh = jax.sharding.get_abstract_mesh()
    if salts_2BN is None:
        salts_2BN = jnp.zeros((2, rows, length), jnp.uint32)
    if mesh.size > 1:
        specs = P(ROWS, None, "tensor"), P("tensor"), P(ROWS, None), P(None, ROWS, None)
        on_device = jax.shard_map(on_device, in_specs=specs, out_specs=specs[0], check_vma=False)
    return on_device(product_BNW, bias_W, segments_BN, salts_2BN)
