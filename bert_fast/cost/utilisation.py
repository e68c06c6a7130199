"""Utilisation: the matrix-product FLOPs of a run per second, divided by the peak of all its devices.

FLOPs of recomputation do not count. `utilisation` counts real tokens only: FLOPs spent on padding are waste.
`utilisation_padded` counts padding too, and is what most publications report. `utilisation_dense` counts what dense
training on the same examples would have needed: it exceeds `utilisation_padded` by what a method saves.
"""

from collections.abc import Mapping


def utilisation(counts: Mapping[str, float], seconds: float, peak: float | None) -> dict[str, float]:
    """The three shares of the peak that a run used. {} if the peak is unknown.

    counts: what the run counted (train/counters.py) in these `seconds`.
    peak: FLOP/s of all devices together. FLOPs are split between padding and real tokens by the number of
    positions. That is exact only for products that are linear in the length; attention's are quadratic.
    """
    if peak is None or seconds <= 0:
        return {}
    padded = counts["flops"] / seconds / peak
    return {
        "utilisation": padded * counts["tokens_real"] / counts["tokens_padded"],
        "utilisation_padded": padded,
        "utilisation_dense": counts["flops_dense"] / seconds / peak,
    }
