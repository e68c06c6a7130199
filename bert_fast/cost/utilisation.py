"""How much of its accelerators' peak a run uses: matrix-product FLOPs a second over the peak of all its devices.

Recomputation counts as nothing. `utilisation` counts real tokens only: FLOPs spent on padding are waste.
`utilisation_padded` counts padding too, and is what most publications give. `utilisation_dense` counts what dense
training on the same rows would have needed: above `utilisation_padded` by what a method saves.
"""

from collections.abc import Mapping


def utilisation(counts: Mapping[str, float], seconds: float, peak: float | None) -> dict[str, float]:
    """The three of them from a run's counts (train/counters.py) over so many seconds; {} where the peak is not known.

    peak: FLOP/s of all devices together. Shares of it; padding is taken as a share of the positions, which also holds
    for all matrix products but those of attention, quadratic in the length.
    """
    if peak is None or seconds <= 0:
        return {}
    padded = counts["flops"] / seconds / peak
    return {
        "utilisation": padded * counts["tokens_real"] / counts["tokens_padded"],
        "utilisation_padded": padded,
        "utilisation_dense": counts["flops_dense"] / seconds / peak,
    }
