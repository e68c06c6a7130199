"""A plan (static) and a route (traced) say which layers run, which tokens they update, and which layers are trained.

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
    """Consecutive layers [start, stop) that are treated alike; a plan is a tuple of spans that covers every layer."""

    start: int
    stop: int
    queries: int | None = None  # number of leading tokens to update (None: all)
    keys: int | None = None  # number of leading tokens to attend to (None: all)
    examples_per_row: int = 1  # examples joined along the token axis; requires queries == keys
    frozen: bool = False  # not trained, and neither is anything below; frozen spans come first in the plan
    dropout: bool = True  # False: no dropout; in the lowest span, none on the embeddings either
    cond: bool = False  # skip layers with lax.cond instead of gathering the ones that run
    run: int | None = None  # number of layers of the span that run in this step; only pack() sets it


class Route(NamedTuple):
    """The traced part of a plan, which changes from step to step without recompiling. A field not in use is None.

    `layers_R` holds the indices of the layers that run. `scale_R` holds the factors of their residual branches.
    For a span with `cond`, all layers are listed, and a layer with scale 0 is skipped.
    """

    layers_R: Any = None
    scale_R: Any = None


def whole(depth: int) -> Plan:
    """The plan of ordinary BERT: every layer is trained and updates every token."""
    return (Span(0, depth),)


def edit(plan: Plan, start: int, stop: int, **changes) -> Plan:
    """The plan with `changes` applied to layers [start, stop). Spans that cross `start` or `stop` are split."""
    spans = []
    for span in plan:
        cuts = [span.start, *(at for at in (start, stop) if span.start < at < span.stop), span.stop]
        for low, high in itertools.pairwise(cuts):
            inside = start <= low and high <= stop
            spans.append(dataclasses.replace(span, start=low, stop=high, **(changes if inside else {})))
    return tuple(span for span in spans if span.start < span.stop)


def frozen_depth(plan: Plan) -> int:
    """Number of frozen layers. Raises ValueError if they are not a prefix of the plan."""
    depth = sum(span.stop - span.start for span in plan if span.frozen)
    if any(span.frozen != (span.start < depth) for span in plan):
        raise ValueError(f"frozen spans must come first, below every trainable span: {plan}")
    return depth


def drops_tokens(plan: Plan) -> bool:
    """Whether any layer of the plan skips tokens."""
    return any(span.queries is not None or span.keys is not None for span in plan)


def at_length(plan: Plan, seq_len: int, other: int) -> Plan:
    """The plan for examples of `other` tokens, one per row. Queries and keys keep their shares of `seq_len`."""

    def same_share(count):
        return None if count is None else max(1, round(count * other / seq_len))

    return tuple(
        dataclasses.replace(s, queries=same_share(s.queries), keys=same_share(s.keys), examples_per_row=1) for s in plan
    )


def pack(plan: Plan, scale_ML: np.ndarray | None, widths_L: Sequence = ()) -> tuple[Plan, Route]:
    """The plan with the number of layers to run in each span (static), and the route with their indices (traced).

    `scale_ML` holds the factors of the layers' residual branches in each micro-batch; 0 skips the layer. If it is
    None, all layers run. `widths_L` are the layers' (heads, neurons), or () if all are equal. A span whose layers
    differ in width becomes a `cond` span, because a traced index cannot choose a static width.

    Runs on the host only. Raises ValueError unless all micro-batches run the same number of layers of each
    span: this number is static, and one program serves the whole step.
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
            raise ValueError(f"micro-batches run {counts_M} layers of {span}: the numbers must be equal")
        spans.append(span if span.cond else dataclasses.replace(span, run=int(counts_M[0])))
        layers_MS.append(np.stack([np.flatnonzero(runs_L) + span.start for runs_L in runs_ML]))
        scales_MS.append(np.stack([scale_L[runs_L] for scale_L, runs_L in zip(scale_ML_span, runs_ML, strict=True)]))
    layers_MR = np.concatenate(layers_MS, 1).astype(np.int32)
    return tuple(spans), Route(layers_MR, np.concatenate(scales_MS, 1).astype(np.float32))
