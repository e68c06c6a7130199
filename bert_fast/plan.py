"""Which layers and tokens work in a step, and which layers learn: the plan (static) and the route (traced).

Axes: M micro-batches, L layers, R layers that run in this step.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Plan = tuple["Span", ...]


@dataclasses.dataclass(frozen=True)
class Span:
    """Consecutive layers [start, stop) that are treated alike; a plan is a tuple of spans that covers every one."""

    start: int
    stop: int
    queries: int | None = None  # update the first so many tokens (None: all)
    keys: int | None = None  # attend to the first so many tokens (None: all)
    examples_per_row: int = 1  # examples laid side by side in a row; only where queries and keys are the same
    frozen: bool = False  # does not learn, nor does anything below; frozen spans are a prefix of the plan
    dropout: bool = True  # False: no dropout, and none on the embeddings where it is the lowest span
    cond: bool = False  # skip layers by lax.cond instead of by gathering those that run
    run: int | None = None  # how many of its layers run in this step; only pack() sets it


class Route(NamedTuple):
    """What changes from step to step without a new program: None means not in use.

    `layers_R` are the indices of the layers that run, `scale_R` what their residual branches are
    multiplied by. In a span with `cond` all layers are listed, and a scale of 0 skips one.
    """

    layers_R: Any = None
    scale_R: Any = None


def whole(depth: int) -> Plan:
    """The plan of ordinary BERT: every layer updates every token and learns."""
    return (Span(0, depth),)


def edit(plan: Plan, start: int, stop: int, **changes) -> Plan:
    """The plan with `changes` in layers [start, stop); spans are split where they begin or end inside one."""
    spans = []
    for span in plan:
        cuts = [span.start, *(at for at in (start, stop) if span.start < at < span.stop), span.stop]
        for low, high in itertools.pairwise(cuts):
            inside = start <= low and high <= stop
            spans.append(dataclasses.replace(span, start=low, stop=high, **(changes if inside else {})))
    return tuple(span for span in spans if span.start < span.stop)


def frozen_depth(plan: Plan) -> int:
    """How many layers, from the lowest, do not learn. Raises ValueError where they are no prefix."""
    depth = sum(span.stop - span.start for span in plan if span.frozen)
    if any(span.frozen != (span.start < depth) for span in plan):
        raise ValueError(f"frozen spans must come first, below every span that learns: {plan}")
    return depth


def drops_tokens(plan: Plan) -> bool:
    """Whether a layer of the plan leaves out a token."""
    return any(span.queries is not None or span.keys is not None for span in plan)


def at_length(plan: Plan, seq_len: int, other: int) -> Plan:
    """A plan for rows of `seq_len` tokens with the same shares of rows of another length, examples each in a row."""

    def same_share(count):
        return None if count is None else max(1, round(count * other / seq_len))

    return tuple(
        dataclasses.replace(s, queries=same_share(s.queries), keys=same_share(s.keys), examples_per_row=1) for s in plan
    )


def pack(plan: Plan, scale_ML: np.ndarray | None, widths_L: Sequence = ()) -> tuple[Plan, Route]:
    """The plan with the number of layers that run made static, and the route that says which.

    `scale_ML` holds a row for each micro-batch; 0 means "does not run", other values multiply the
    residual branches. None: everything runs. `widths_L` are the layers' (heads, neurons), () if all
    are alike: where they differ within a span it becomes a `cond` span, since a traced index cannot
    choose a static width.
    Host only. Raises ValueError where micro-batches differ in how many layers of a span run: that
    number is static, and one program serves a step.
    """
    if scale_ML is None:
        return plan, Route()
    spans, layers_MS, scales_MS = [], [], []
    for span in plan:
        uneven = len(set(widths_L[span.start : span.stop])) > 1
        span = dataclasses.replace(span, cond=span.cond or uneven)
        scale_ML_span = scale_ML[:, span.start : span.stop]
        runs_ML = np.ones_like(scale_ML_span, bool) if span.cond else scale_ML_span != 0
        counts_M = runs_ML.sum(1)
        if (counts_M != counts_M[0]).any():
            raise ValueError(f"micro-batches run {counts_M} layers of {span}: they must run equally many")
        spans.append(span if span.cond else dataclasses.replace(span, run=int(counts_M[0])))
        layers_MS.append(np.stack([np.flatnonzero(runs_L) + span.start for runs_L in runs_ML]))
        scales_MS.append(np.stack([scale_L[runs_L] for scale_L, runs_L in zip(scale_ML_span, runs_ML, strict=True)]))
    layers_MR = np.concatenate(layers_MS, 1).astype(np.int32)
    return tuple(spans), Route(layers_MR, np.concatenate(scales_MS, 1).astype(np.float32))
