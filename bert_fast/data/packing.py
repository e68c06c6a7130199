"""Shortest-pack-first histogram packing: which pieces of text share an example.

The algorithm packs the histogram of the lengths, so its cost does not depend on the number of pieces.
Source: SPFHP in Krell et al. 2021, arXiv 2107.02027, section 3.1 and listing 1 of the appendix.

Axes: N pieces, R examples, L lengths 0..size.
"""

import collections

import numpy as np


def strategies(counts_L: np.ndarray, size: int) -> list[tuple[int, tuple[int, ...]]]:
    """Kinds of packs as `(times, lengths)`: a pack of these lengths is used `times` times. No pack exceeds `size`.

    Lengths are placed from longest to shortest, each into the packs with the most free space.
    """
    finished = []
    open_packs = collections.defaultdict(list)  # free space -> (times, lengths)
    for length in range(size, 0, -1):
        left = int(counts_L[length])
        while left:
            space = max((s for s in open_packs if s >= length), default=None)
            if space is None:
                times, lengths, space = left, (), size
            else:
                times, lengths = open_packs[space].pop()
                if times > left:
                    open_packs[space].append((times - left, lengths))
                    times = left
                if not open_packs[space]:
                    del open_packs[space]
            left -= times
            packed = (times, (*lengths, length))
            if space == length:
                finished.append(packed)
            else:
                open_packs[space - length].append(packed)
    return finished + [pack for packs in open_packs.values() for pack in packs]


def pack(lengths_N: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`order_N` and `starts_R`: example r holds the pieces `order_N[starts_R[r]:starts_R[r + 1]]`.

    Each piece is in one example, and the pieces of an example are in ascending order. Examples are ordered by
    their first piece, so the first examples hold the first documents of a corpus, not the longest ones.
    With R examples, `starts_R` has R + 1 entries. Lengths must be from 1 to `size`.
    """
    by_length_N = np.argsort(lengths_N, kind="stable")
    counts_L = np.bincount(lengths_N, minlength=size + 1)
    unused_L = np.concatenate([[0], np.cumsum(counts_L)[:-1]])

    blocks, block_widths, block_times = [], [], []
    for times, lengths in strategies(counts_L, size):
        columns = []
        for length in lengths:
            columns.append(by_length_N[unused_L[length] : unused_L[length] + times])
            unused_L[length] += times
        blocks.append(np.sort(np.stack(columns, axis=1), axis=1))
        block_widths.append(len(lengths))
        block_times.append(times)

    widths_R = np.repeat(block_widths, block_times)
    firsts_R = np.concatenate([block[:, 0] for block in blocks])
    flat_N = np.concatenate([block.ravel() for block in blocks])
    starts_R = np.cumsum(widths_R) - widths_R

    rows_R = np.argsort(firsts_R, kind="stable")
    widths_R, starts_R = widths_R[rows_R], starts_R[rows_R]
    new_starts_R = np.concatenate([[0], np.cumsum(widths_R)])
    source_N = np.repeat(starts_R - new_starts_R[:-1], widths_R) + np.arange(len(flat_N))
    return flat_N[source_N], new_starts_R
