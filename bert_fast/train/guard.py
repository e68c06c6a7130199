"""The guard: which steps are kept, and when a run goes back to a checkpoint or stops.

The train step itself discards an update if its loss or gradient is not finite, or if the gradient's norm is above a
limit (step.py). This file computes the limit, and decides what happens when steps are skipped. After several skipped
steps in a row, the run goes back to its last good checkpoint and skips the data that it has read since. The reason is
that a spike comes from the data together with the state of the model (Chowdhery et al., arXiv 2204.02311, section 5.1).
The authors of that paper do the same by hand.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from bert_fast import BadInput
from bert_fast.train.step import LARGEST


@dataclasses.dataclass(frozen=True)
class Guard:
    """The policy.

    factor: a step is skipped if its gradient's norm is above this multiple of the median of the recent norms. With 0, a
        step is skipped only if its loss or gradient is not finite.
    recent: number of norms that the median covers. Until a stage has that many norms, every finite norm is accepted.
    in_a_row: after this many skipped steps in a row, the run goes back to a checkpoint.
    rollbacks: how often a run may go back before it stops.
    most: how many steps a run may skip in total before it stops.
    """

    factor: float = 100.0
    recent: int = 100
    in_a_row: int = 5
    rollbacks: int = 2
    most: int = 1000


STRICT = Guard(factor=0.0, in_a_row=1, rollbacks=0)  # the first bad step ends the run


class Diverged(BadInput):
    """Raised when a run skips too many steps, and may not or cannot go back to a checkpoint."""

    exit_code = 3


class BadSteps(ArithmeticError):
    """Raised when too many steps are skipped, or a step has made the parameters infinite or NaN."""


def limit(guard: Guard, norms: Sequence[float]) -> float:
    """The largest gradient norm that is accepted after gradients with these norms."""
    if not guard.factor or len(norms) < guard.recent:
        return LARGEST
    return min(guard.factor * statistics.median(norms[-guard.recent :]), LARGEST)


def past(avoided: Sequence[Sequence[Any]], order: str, index: int) -> int:
    """The first index at or after `index` that no avoided part of this order covers. avoided: (order, begin, end)."""
    for name, begin, end in sorted(avoided, key=lambda part: part[1]):
        if name == order and begin <= index < end:
            index = end
    return index
