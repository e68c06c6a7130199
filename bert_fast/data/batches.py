"""Shards to batches: rows addressed by one number, shuffled, masked and stacked, through Grain.

Row i of epoch e is a function of (seed, e, i) and of nothing else: not of workers, hosts, prefetching or
how rows are grouped. One *global index* g runs through all epochs; epoch g // rows holds every row once,
in an order of its own. So the position of a run in its data is one integer, and going on from any is
immediate.

Keys of a batch, and their axes (B rows, S positions, P prediction slots):

    ids types positions   [B, S] int32
    segments              [B, S] int32    0 at padding; attention is allowed between equal others
    slots labels          [B, P] int32    predicted positions, ascending, and their tokens; unfilled: 0
    weights               [B, P] float32  1 where a slot is filled
    cls                   [B]    int32    position of the (first) [CLS]
    next                  [B]    int32    "mlm+nsp" only: 0 B follows A, 1 B is random
"""

import functools
from collections.abc import Generator, Iterator

import grain
import numpy as np
from absl import flags
from grain.experimental import index_shuffle

from bert_fast import BadInput
from bert_fast.data.examples import OBJECTIVES, ExampleSettings
from bert_fast.data.masking import Masking
from bert_fast.data.shards import Split
from bert_fast.data.vocab import Vocab
from bert_fast.data.workers import belong

Batch = dict[str, np.ndarray]

# Uses of a seed. Part of every key, so that an evaluation seed equal to the training seed is harmless.
ORDER, TRAINING, EVALUATION = range(3)


class ExampleSource:
    """Rows of a split: `rows(epoch, i)` is one, `len(rows)` how many an epoch has, `rows[g]` the training order."""

    def __init__(self, split: Split, vocab: Vocab, settings: ExampleSettings, seed: int, use: int):
        if seed < 0:
            raise BadInput(f"the data seed is {seed}: expected 0 or more")
        if len(split) == 0 or split.ends_D[-1] == 0:
            raise BadInput(f"split {split.name!r} in {split.folder} is empty: prepare more text")
        self.settings, self.seed, self.pad = settings, seed, vocab.pad
        self.masking = Masking(vocab, settings.masked_share, settings.prediction_slots, settings.whole_word)
        self.key = np.random.SeedSequence(seed, spawn_key=(use,)).generate_state(2, np.uint64)
        self.content = OBJECTIVES[settings.objective](split, vocab, settings)

    def __len__(self) -> int:
        return len(self.content)

    def __call__(self, epoch: int, i: int) -> Batch:
        # The counter's low half stays free for the draws: no two rows share a number.
        rng = np.random.Generator(np.random.Philox(key=self.key, counter=(0, 0, i, epoch)))
        content = self.content(i, rng)
        row = self.masking(content.ids_S, content.segments_S, rng)
        row |= {"types": content.types_S, "positions": content.positions_S, "segments": content.segments_S}
        row["cls"] = np.array(0, np.int32)
        if content.next is not None:
            row["next"] = np.array(content.next, np.int32)
        return row

    def __getitem__(self, g: int) -> Batch:
        epoch, position = divmod(g, len(self))
        return self(epoch, shuffled(self.seed, epoch, position, len(self)))

    def absent(self) -> Batch:
        """A row that fills up a batch and counts for nothing: padding only, segments 0, weights 0."""
        row = {key: np.zeros_like(value) for key, value in self(0, 0).items()}
        return row | {"ids": np.full_like(row["ids"], self.pad)}


class EvaluationExamples:
    """The first `limit` rows of a split in their order; behind them, absent rows."""

    def __init__(self, rows: ExampleSource, limit: int):
        self.rows, self.limit = rows, limit

    def __len__(self) -> int:
        return min(self.limit, len(self.rows))

    def __getitem__(self, g: int) -> Batch:
        return self.rows(0, g) if g < len(self) else self.rows.absent()


def training_examples(split: Split, vocab: Vocab, settings: ExampleSettings, seed: int) -> ExampleSource:
    """The training rows of a split.

    Raises BadInput for a split that does not fill one row.
    """
    rows = ExampleSource(split, vocab, settings, seed, TRAINING)
    if (tokens := int(split.ends_D[-1])) < settings.seq_len - 2:
        raise BadInput(
            f"split {split.name!r} in {split.folder} has {tokens} tokens, a row of seq_len {settings.seq_len} "
            f"takes {settings.seq_len - 2}: prepare more text or train with shorter sequences"
        )
    return rows


def evaluation_examples(
    split: Split, vocab: Vocab, settings: ExampleSettings, seed: int, limit: int
) -> EvaluationExamples:
    """The first `limit` rows of a split (fewer where it has fewer), the same for whatever training seed.

    Raises BadInput for an empty split, or a limit below 1.
    """
    if limit < 1:
        raise BadInput(f"the number of evaluation rows is {limit}: expected 1 or more")
    return EvaluationExamples(ExampleSource(split, vocab, settings, seed, EVALUATION), limit)


def shuffled(seed: int, epoch: int, position: int, rows: int) -> int:
    """Which row stands at a position of an epoch: a permutation of range(rows) keyed by (seed, epoch)."""
    if rows <= 1 << 16:
        # index_shuffle works on blocks of 16 bits or more: with few rows it takes milliseconds an index.
        return int(_permutation(seed, epoch, rows)[position])
    # Grain's own shuffle takes 4 rounds; at a million rows successive indices are then visibly related (the
    # chi-square of their differences is 200 times its expectation), with 16 they are not.
    return index_shuffle(position, max_index=rows - 1, seed=_order_seed(seed, epoch), rounds=16)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch))).permutation(rows)


@functools.lru_cache(maxsize=4)
def _order_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch)).generate_state(1)[0])


def check_batch(rows: ExampleSource, batch_size: int) -> None:
    """Raises BadInput where a batch has more rows than an epoch."""
    if batch_size > len(rows):
        raise BadInput(
            f"a batch has {batch_size} rows, an epoch of seq_len {rows.settings.seq_len} has {len(rows)}: "
            "prepare more text or lower the batch size"
        )


def batches(
    rows: ExampleSource,
    batch_size: int,
    start: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 4,
) -> Generator[tuple[int, Batch], None, None]:
    """Endless `(global index after the batch, this process's part of it)`, from global index `start` on.

    Batch b holds the global indices start + [b B, (b+1) B); process p of n the p-th of n equal parts.
    `prefetch` batches are made ahead, by a thread, or by `workers` processes: for these the caller must be
    importable (an `if __name__ == "__main__"` around what runs). Close it after use (`contextlib.closing`).

    Raises BadInput where the batch exceeds an epoch, or cannot be shared out.
    """
    check_batch(rows, batch_size)
    # As good as endless, and still a length that fits an index.
    stop = start + batch_size * 2**40
    return _stream(rows, batch_size, start, stop, process_index, process_count, workers, prefetch)


def evaluation_batches(
    rows: EvaluationExamples,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """This process's part of each batch, until all rows were given; absent rows fill up the last.

    Absent rows have `weights` 0 and `segments` 0: leave them out of means by `segments[:, 0] > 0`.
    """
    stream = _stream(rows, batch_size, 0, len(rows), process_index, process_count, workers, prefetch)
    return (batch for _, batch in stream)


def _stream(
    rows: ExampleSource | EvaluationExamples,
    batch_size: int,
    start: int,
    stop: int,
    process_index: int,
    process_count: int,
    workers: int,
    prefetch: int,
) -> Generator[tuple[int, Batch], None, None]:
    if batch_size < 1 or batch_size % process_count:
        raise BadInput(
            f"the batch size is {batch_size}: expected a multiple of the {process_count} processes "
            "that share each batch"
        )
    part = batch_size // process_count
    make = functools.partial(_make, rows, process_index * part, part, batch_size)
    # An element is a whole batch: one row at a time spends as long in Grain as in making rows.
    # One thread, since Python runs no two of them at once.
    dataset = grain.MapDataset.range(start, stop, batch_size).map(make)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags here, and fails outside absl's app.run
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch)
        dataset = dataset.mp_prefetch(options, worker_init_fn=belong)
    return _closing(dataset)


def _make(
    rows: ExampleSource | EvaluationExamples, offset: int, part: int, batch_size: int, g: int
) -> tuple[int, Batch]:
    made = [rows[g + offset + k] for k in range(part)]
    return g + batch_size, {key: np.stack([row[key] for row in made]) for key in made[0]}


def _closing(dataset: grain.IterDataset) -> Generator[tuple[int, Batch], None, None]:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        # Left open, its threads and processes can hang the interpreter's exit (github.com/google/grain/issues/1196).
        iterator.close()
