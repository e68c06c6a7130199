"""Batches of examples of similar length, so that most positions hold real tokens.

There are only a few batch widths. Each example goes to the narrowest width that holds it. Examples that do not fill a
batch at their width move to the next larger width. At most one batch of an epoch is not full. That batch has the
largest width. Each epoch shuffles the examples again, but the number of batches of each width stays the same. The first
epoch therefore compiles all programs of a run.

Axes: N examples, B examples of a batch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bert_fast.data.vocab import Vocab

STEP = 8  # `choose_widths` returns multiples of 8: TPU register tiles and GPU tensor-core tiles have 8 rows
NO_LABEL = -1  # the value for a word piece without a label
_AT_ONCE = 10_000  # texts tokenised per call


class TaskExamples(NamedTuple):
    """Tokenised examples, `[CLS] text [SEP]` or `[CLS] text [SEP] second text [SEP]`.

    labels: an array with one label per example, or a list of arrays [S] with one per word piece; None if unknown.
    """

    ids_N: list[np.ndarray]
    types_N: list[np.ndarray]
    labels: np.ndarray | list[np.ndarray] | None

    @property
    def lengths_N(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.ids_N], np.int64)


def tokenize(texts: Sequence[str], vocab: Vocab) -> list[list[int]]:
    """The word-piece ids of each text. A special token in a text, such as "[SEP]", is treated like any other word."""
    tokenizer, found = vocab.for_text(), []
    for first in range(0, len(texts), _AT_ONCE):
        encoded = tokenizer.encode_batch(texts[first : first + _AT_ONCE], add_special_tokens=False)
        found += [encoding.ids for encoding in encoded]
    return found


def make_examples(
    texts: Sequence[Sequence[str]], labels: np.ndarray | None, vocab: Vocab, seq_len: int
) -> TaskExamples:
    """Examples of at most `seq_len` tokens, from one or two columns of texts.

    A pair that is too long loses one token at a time from the end of its longer text, as in `_truncate_seq_pair` of
    google-research/bert (run_classifier.py).
    """
    columns = [tokenize(column, vocab) for column in texts]
    ids_N, types_N = [], []
    for pieces in zip(*columns, strict=True):
        room = seq_len - 1 - len(pieces)
        if len(pieces) == 1:
            kept = [pieces[0][:room]]
        else:
            a, b = map(len, pieces)
            over = max(a + b - room, 0)
            # Cut the longer text to the length of the shorter, then cut both in turn, starting with the second.
            from_longer = min(over, abs(a - b))
            a, b = (a - from_longer, b) if a > b else (a, b - from_longer)
            left = over - from_longer
            kept = [pieces[0][: a - left // 2], pieces[1][: b - (left + 1) // 2]]
        parts = [[vocab.cls, *kept[0], vocab.sep], *([*part, vocab.sep] for part in kept[1:])]
        ids_N.append(np.concatenate(parts).astype(np.int32))
        types_N.append(np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts]))
    return TaskExamples(ids_N, types_N, labels)


def choose_widths(lengths_N: np.ndarray, most: int) -> tuple[int, ...]:
    """At most `most` widths, with the least padding for examples of these lengths. The largest width holds the longest
    example.

    The widths are found by dynamic programming over the multiples of STEP.
    """
    counts = np.bincount(-(-lengths_N // STEP))
    upto = np.cumsum(counts)  # upto[k]: the number of examples of at most k * STEP tokens
    last = len(counts) - 1
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] + [(np.inf, ())] * last
    for _ in range(most):
        best = [
            min(
                [best[wide]]
                + [
                    (best[narrow][0] + wide * float(upto[wide] - upto[narrow]), (*best[narrow][1], wide))
                    for narrow in range(wide)
                ],
                key=lambda found: found[0],
            )
            for wide in range(last + 1)
        ]
    return tuple(STEP * wide for wide in best[last][1])


class Batch(NamedTuple):
    """A batch's width and the indices of its examples."""

    width: int
    rows_B: np.ndarray


def epoch(
    lengths_N: np.ndarray, widths: Sequence[int], batch_size: int, rng: np.random.Generator | None
) -> list[Batch]:
    """The batches of one epoch, with every example once.

    With `rng`, the contents and the order of the batches are random. Without it, examples are sorted by length.
    """
    bucket_N = np.searchsorted(widths, lengths_N)
    batches, over_B = [], np.zeros(0, np.int64)
    for bucket, width in enumerate(widths):
        rows_N = np.concatenate([over_B, np.flatnonzero(bucket_N == bucket)])
        if rng is not None:
            rng.shuffle(rows_N)
        else:
            rows_N = rows_N[np.argsort(lengths_N[rows_N], kind="stable")]
        full = len(rows_N) // batch_size * batch_size
        batches += [Batch(width, rows_B) for rows_B in rows_N[:full].reshape(-1, batch_size)]
        over_B = rows_N[full:]
    if len(over_B):
        # This batch has the width of the longest of all examples, even if that example is in another batch. So every
        # epoch has the same batch widths.
        batches.append(Batch(widths[bucket_N.max()], over_B))
    if rng is not None:
        rng.shuffle(order := np.arange(len(batches)))
        batches = [batches[i] for i in order]
    return batches


def fill(rows: TaskExamples, batch: Batch, batch_size: int, pad: int) -> dict[str, np.ndarray]:
    """The arrays of a batch, with `batch_size` rows. Rows without an example are padding with weight 0.

    Labels are in `labels`. Labels of word pieces are in `tags` [B, S] instead.
    """
    shape = (batch_size, batch.width)
    arrays: dict[str, np.ndarray] = {name: np.zeros(shape, np.int32) for name in ("ids", "types", "segments")}
    arrays["ids"][:] = pad
    for b, row in enumerate(batch.rows_B):
        length = len(rows.ids_N[row])
        arrays["ids"][b, :length] = rows.ids_N[row]
        arrays["types"][b, :length] = rows.types_N[row]
        arrays["segments"][b, :length] = 1
    arrays["positions"] = np.broadcast_to(np.arange(batch.width, dtype=np.int32), shape).copy()
    arrays["weights"] = (np.arange(batch_size) < len(batch.rows_B)).astype(np.float32)
    if isinstance(rows.labels, list):
        arrays["tags"] = np.full(shape, NO_LABEL, np.int32)
        for b, row in enumerate(batch.rows_B):
            arrays["tags"][b, : len(rows.labels[row])] = rows.labels[row]
    elif rows.labels is not None:
        labels = np.zeros((batch_size, *rows.labels.shape[1:]), rows.labels.dtype)
        labels[: len(batch.rows_B)] = rows.labels[batch.rows_B]
        arrays["labels"] = labels
    return arrays


def train_batches(
    rows: TaskExamples, widths: Sequence[int], batch_size: int, pad: int, seed: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, starting at batch `start`. The shuffle of epoch e depends only on (seed, e)."""
    lengths_N = rows.lengths_N
    number = start // (per_epoch := len(epoch(lengths_N, widths, batch_size, None)))
    skip = start % per_epoch
    while True:
        for batch in epoch(lengths_N, widths, batch_size, np.random.default_rng((seed, number)))[skip:]:
            yield fill(rows, batch, batch_size, pad)
        number, skip = number + 1, 0


def real_share(rows: TaskExamples, widths: Sequence[int], batch_size: int) -> float:
    """The share of an epoch's positions that hold real tokens. Padding rows count as positions."""
    batches = epoch(rows.lengths_N, widths, batch_size, None)
    return float(rows.lengths_N.sum() / sum(batch.width * batch_size for batch in batches))
