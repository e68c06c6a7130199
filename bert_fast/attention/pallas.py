"""Attention as a Pallas kernel for TPUs.

A grid step handles all heads of a row of up to 128 tokens, or two heads of a longer row. Softmax and dropout are in the
kernel; the backward pass recomputes both. Logits are stored as keys by queries, so that a sum over the keys adds whole
registers, not the lanes within a register. A head of size 64 fills half of the lanes, so two heads share a tile. In a
matrix product for one head, one operand has zeros in the lanes of the other head.

Axes: as in attention/__init__.py; C columns of a tile (two heads), U queries of a unit.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_fast import dropout

LANES = 128
HEAD = LANES // 2  # the head size that the kernel is written for
UNIT = 128  # queries in a unit. A unit is a block of queries of one head, and its logits are computed together.
IN_FLIGHT = 12  # units whose operations the compiler may interleave
WHOLE_ROW = 128  # rows up to this length have all of their heads in one grid step
MASKED = -1e30
VMEM = 100 * 2**20  # bytes; the default limit is lower than what the chip has


class Form(NamedTuple):
    """The static shapes of an attention call on one device.

    length: tokens per row (N). joined: examples per row. rate: the dropout rate.
    """

    rows: int
    length: int
    heads: int
    queries: int
    keys: int
    joined: int
    rate: float

    @property
    def pairs(self) -> int:
        """Pairs of heads in a grid step."""
        return self.all_pairs if self.length <= WHOLE_ROW else 1

    @property
    def all_pairs(self) -> int:
        return -(-self.heads // 2)

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.all_pairs // self.pairs

    def columns(self, per_head: int) -> int:
        """Columns of a block with `per_head` columns for each head."""
        return self.heads * per_head if self.pairs == self.all_pairs else 2 * per_head

    def units(self) -> list[list[tuple[int, int]]]:
        """Units of a grid step as (head, first query), in groups. The two heads of a pair are neighbours."""
        starts = range(0, self.queries, UNIT)
        units = [(2 * pair + odd, start) for pair in range(self.pairs) for start in starts for odd in (0, 1)]
        return [units[at : at + IN_FLIGHT] for at in range(0, len(units), IN_FLIGHT)]


def problem(shape, platform: str) -> str:
    """Why the kernel cannot be used for this shape; "" if it can. On a CPU, where tests run, it is interpreted."""
    if platform not in ("tpu", "cpu"):
        return "the Pallas kernel needs a TPU"
    if shape.head_size != HEAD:
        return f"the Pallas kernel needs a head size of {HEAD}, not {shape.head_size}"
    if shape.length % UNIT or shape.keys % UNIT or shape.queries % 8:
        tokens = f"{shape.queries} queries and {shape.keys} keys in rows of {shape.length}"
        return (
            f"the Pallas kernel needs row lengths and numbers of keys that are multiples of {UNIT}, and numbers of "
            f"queries that are multiples of 8, not {tokens}"
        )
    return ""


def attend(product_BNW, bias_W, segments_BN, salts_2BN, shape, joined: int, interpret: bool):
    """Does what `attention.attend` describes, for one device's share of the rows and heads."""
    rows, length, columns = product_BNW.shape
    form = Form(rows, length, columns // (3 * HEAD), shape.queries, shape.keys, joined, shape.rate)
    salts_B2N = jnp.swapaxes(jax.lax.bitcast_convert_type(salts_2BN, jnp.int32), 0, 1)
    if (
        jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1
    ):  # heads are numbered within the whole model, not within this device's share
        salts_B2N = salts_B2N.at[:, 0].add(jax.lax.axis_index("tensor") * form.heads * dropout.HEAD)
    return kernel(product_BNW, bias_W, segments_BN[:, None], salts_B2N, form, interpret)


def dot(a, b, over_a: int, over_b: int):
    """A matrix product over these axes, summed in float32."""
    return jax.lax.dot_general(a, b, (((over_a,), (over_b,)), ((), ())), preferred_element_type=jnp.float32)


def lanes_of(shape, odd: int):
    """Which lanes of a tile belong to one head of a pair: the first if `odd` is 0, the second if it is 1."""
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return lane >= HEAD if odd else lane < HEAD


def only(x_NC, odd: int):
    """The tile of one head: the lanes of the other head of the pair are zero."""
    return jnp.where(lanes_of(x_NC.shape, odd), x_NC, jnp.zeros_like(x_NC))


def swapped(x_NC):
    """The tile with its halves exchanged."""
    return pltpu.roll(x_NC, HEAD, 1)


def padded(x, rows: int):
    """The array with rows of zeros added, so that it has `rows` rows."""
    missing = rows - x.shape[0]
    return x if missing == 0 else jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)])


def tiles(ref, pair: int, count: int) -> list:
    """The `count` tiles of a pair of heads, [N, C] each, with zeros where the last head has no partner."""
    found = []
    for at in range(pair * count * LANES, (pair + 1) * count * LANES, LANES):
        here = ref[:, at : at + LANES] if at < ref.shape[1] else jnp.zeros((ref.shape[0], LANES), ref.dtype)
        if here.shape[1] < LANES:
            missing = jnp.zeros((ref.shape[0], LANES - here.shape[1]), ref.dtype)
            here = jnp.concatenate([here, missing], axis=1)
        found.append(here)
    return found


def put(ref, pair: int, start: int, values: Sequence[Any]):
    """Writes the tiles of a pair of heads, beginning at row `start`. Skips what lies outside `ref`."""
    for index, value in enumerate(values):
        at = (pair * len(values) + index) * LANES
        rows, width = min(value.shape[0], ref.shape[0] - start), min(LANES, ref.shape[1] - at)
        if width > 0:
            ref[start : start + rows, at : at + width] = value[:rows, :width].astype(ref.dtype)


def real(form: Form, x_NC):
    """The tile of this grid step's pair, with zeros in the lanes after the last head. A block that extends past the end
    of an array has undefined values there.
    """
    if form.heads % 2 == 0 or form.pairs == form.all_pairs:
        return x_NC
    beyond = jnp.logical_and(pl.program_id(1) == form.all_pairs - 1, lanes_of(x_NC.shape, 1))
    return jnp.where(beyond, jnp.zeros_like(x_NC), x_NC)


def load(form: Form, ref, pair: int):
    """Queries, keys and values of a pair of heads, [N, C] each. In `ref`, their tiles are q0 k0 | v0 q1 | k1 v1."""
    first, middle, last = tiles(ref, pair, 3)
    low = lanes_of(first.shape, 0)
    found = jnp.where(low, first, middle), swapped(jnp.where(low, last, first)), jnp.where(low, middle, last)
    return tuple(real(form, x_NC) for x_NC in found)


def store(ref, pair: int, dq_NC, dk_NC, dv_NC):
    """The inverse of `load`."""
    low, dk_NC = lanes_of(dq_NC.shape, 0), swapped(dk_NC)
    tiles_NC = jnp.where(low, dq_NC, dk_NC), jnp.where(low, dv_NC, dq_NC), jnp.where(low, dk_NC, dv_NC)
    put(ref, pair, 0, tiles_NC)


def masks(form: Form, segments_1N) -> dict[int, Any]:
    """The masks to add to the logits of units, [K, U] each, by the index of a unit's first query."""
    segments_1N = segments_1N.astype(jnp.float32)
    of_keys_KU = jnp.broadcast_to(segments_1N[:, : form.keys], (UNIT, form.keys)).T
    starts = range(0, form.queries, UNIT)
    return {at: jnp.where(of_keys_KU == segments_1N[:, at : at + UNIT], 0.0, MASKED) for at in starts}


def dropped(form: Form, x: dict, salts_2N) -> dict:
    """Each unit's probabilities, or their gradients, with zeros where dropout drops. The rest is not scaled up."""
    return {u: jnp.where(kept(form, salts_2N, *u), x_KU, jnp.float32(0)) for u, x_KU in x.items()} if form.rate else x


def kept(form: Form, salts_2N, head: int, start: int):
    """Which of a unit's probabilities are kept by dropout: bool [K, U]."""
    index_KU = jax.lax.broadcasted_iota(jnp.int32, (form.keys, UNIT), 0)
    if form.joined > 1:
        index_KU = jax.lax.rem(index_KU, jnp.int32(form.keys // form.joined))
    first_1U, second_1U = (salts_2N[row : row + 1, start : start + UNIT] for row in (0, 1))
    head_of_row = pl.program_id(1) * (2 * form.pairs) + head
    bits_KU = dropout.bits(first_1U + head_of_row * dropout.HEAD, second_1U, index_KU)
    return bits_KU >= dropout.threshold(form.rate)


def softmax(logits_KU, scale: float = 1.0):
    """The softmax over the keys, times `scale`."""
    exp_KU = jnp.exp(logits_KU - logits_KU.max(0, keepdims=True))
    return exp_KU * (jnp.float32(scale) / exp_KU.sum(0, keepdims=True))


def forward_kernel(form: Form, segments, salts, qkv, out):
    """One grid step of the forward pass: qkv [1, N, W] to out [1, Q, A]."""
    mask = masks(form, segments[0])
    for units in form.units():
        of_pair = {pair: load(form, qkv.at[0], pair) for pair in {head // 2 for head, _ in units}}
        q = {u: unit_of(of_pair[u[0] // 2][0], *u, HEAD**-0.5) for u in units}
        k, v = ({u: of_pair[u[0] // 2][index][: form.keys] for u in units} for index in (1, 2))
        probs = {u: softmax(dot(k[u], q[u], 1, 1) + mask[u[1]], 1 / (1 - form.rate)) for u in units}
        probs = dropped(form, probs, salts[0])
        found = {u: dot(probs[u].astype(qkv.dtype), v[u], 0, 0) for u in units}
        for head, start in units[::2]:
            put(out.at[0], head // 2, start, [side_by_side(found[head, start], found[head + 1, start])])


def unit_of(x_NC, head: int, start: int, scale: float):
    """The rows of a unit's queries, times `scale`, with zeros for the other head: [U, C]."""
    return only(x_NC[start : start + UNIT] * np.asarray(scale, x_NC.dtype), head % 2)


def side_by_side(even_NC, odd_NC):
    """One tile with the lanes of both heads of a pair."""
    return jnp.where(lanes_of(even_NC.shape, 0), even_NC, odd_NC)


def backward_kernel(form: Form, segments, salts, qkv, dout, dqkv, dbias):
    """One grid step of the backward pass: dqkv [1, N, W], and its sum over the row's tokens, dbias [1, 1, W]."""
    mask, length = masks(form, segments[0]), -(-form.queries // UNIT) * UNIT
    summed: dict[int, list] = {pair: [[], [], []] for pair in range(form.pairs)}
    for units in form.units():
        of_pair = {pair: load(form, qkv.at[0], pair) for pair in {head // 2 for head, _ in units}}
        douts = {pair: padded(real(form, tiles(dout.at[0], pair, 1)[0]), length) for pair in of_pair}
        q = {u: unit_of(of_pair[u[0] // 2][0], *u, HEAD**-0.5) for u in units}
        k, v = ({u: of_pair[u[0] // 2][index][: form.keys] for u in units} for index in (1, 2))
        d = {u: unit_of(douts[u[0] // 2], *u, 1 / (1 - form.rate)) for u in units}
        probs = {u: softmax(dot(k[u], q[u], 1, 1) + mask[u[1]]) for u in units}
        dprobs = dropped(form, {u: dot(v[u], d[u], 1, 1) for u in units}, salts[0])
        sums = {u: (probs[u] * dprobs[u]).sum(0, keepdims=True) for u in units}
        dlogits = {u: (probs[u] * (dprobs[u] - sums[u])).astype(qkv.dtype) for u in units}
        probs = dropped(form, probs, salts[0])
        dq = {u: dot(dlogits[u], k[u], 0, 0) for u in units}
        for head, start in units[::2]:
            dq_UC = side_by_side(dq[head, start], dq[head + 1, start]) * jnp.float32(HEAD**-0.5)
            summed[head // 2][0].append(dq_UC)
        for u in units:
            summed[u[0] // 2][1].append(dot(dlogits[u], q[u], 1, 0))
            summed[u[0] // 2][2].append(dot(probs[u].astype(qkv.dtype), d[u], 1, 0))
    for pair, (dq, dk, dv) in summed.items():
        found = jnp.concatenate(dq), functools.reduce(jnp.add, dk), functools.reduce(jnp.add, dv)
        store(dqkv.at[0], pair, *(padded(x.astype(qkv.dtype), form.length) for x in found))
    dbias[0] = dqkv[0].astype(jnp.float32).sum(0, keepdims=True)


def specs(form: Form):
    """The blocks of segments, salts, qkv, out and the bias gradient."""

    def block(rows: int, per_head: int):
        return pl.BlockSpec((1, rows, form.columns(per_head)), lambda row, pair: (row, 0, pair))

    def whole(rows: int):
        return pl.BlockSpec((1, rows, form.length), lambda row, pair: (row, 0, 0))

    return whole(1), whole(2), block(form.length, 3 * HEAD), block(form.queries, HEAD), block(1, 3 * HEAD)


def call(form: Form, kernel, interpret: bool, **arguments):
    arguments |= {"grid": form.grid, "name": kernel.__name__, "interpret": interpret}
    parameters = pltpu.CompilerParams(vmem_limit_bytes=VMEM)
    return pl.pallas_call(functools.partial(kernel, form), compiler_params=parameters, **arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def kernel(product_BNW, bias_W, segments_B1N, salts_B2N, form: Form, interpret: bool):
    """Attention of one device's rows: [B, Q, A]. salts_B2N: int32, not read without dropout."""
    return _forward(product_BNW, bias_W, segments_B1N, salts_B2N, form, interpret)[0]


def _forward(product_BNW, bias_W, segments_B1N, salts_B2N, form: Form, interpret: bool):
    qkv_BNW = product_BNW + bias_W.astype(product_BNW.dtype)[None, None]
    *inputs, out, _ = specs(form)
    shape = jax.ShapeDtypeStruct((form.rows, form.queries, form.heads * HEAD), qkv_BNW.dtype)
    made = call(form, forward_kernel, interpret, in_specs=inputs, out_specs=out, out_shape=shape)
    return made(segments_B1N, salts_B2N, qkv_BNW), (qkv_BNW, segments_B1N, salts_B2N)


def _backward(form: Form, interpret: bool, residuals, dout_BQA):
    qkv_BNW, segments_B1N, salts_B2N = residuals
    *inputs, out, of_bias = specs(form)
    shapes = [
        jax.ShapeDtypeStruct(qkv_BNW.shape, qkv_BNW.dtype),
        jax.ShapeDtypeStruct((form.rows, 1, qkv_BNW.shape[2]), jnp.float32),
    ]
    outputs = {"out_specs": [inputs[2], of_bias], "out_shape": shapes}
    made = call(form, backward_kernel, interpret, in_specs=[*inputs, out], **outputs)
    dqkv_BNW, dbias_B1W = made(segments_B1N, salts_B2N, qkv_BNW, dout_BQA)
    return dqkv_BNW, dbias_B1W.sum((0, 1)), None, None


kernel.defvjp(_forward, _backward)
