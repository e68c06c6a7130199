"""Turns shards into shuffled, masked batches with Grain. One integer addresses each example.

Example i of epoch e depends only on (seed, e, i), not on workers, hosts, prefetching or batching. One
*global index* g counts examples through all epochs: with n examples per epoch, g is in epoch g // n. Each
epoch holds every example once, in its own order. A run's position in its data is therefore one integer,
and the run resumes from it immediately.

Keys of a batch, with their axes (B examples, S positions, P prediction slots):

    ids types positions   [B, S] int32
    segments              [B, S] int32    0 at padding; a token attends only to its own segment
    slots labels          [B, P] int32    predicted positions (ascending), and their tokens; 0 in unfilled slots
    weights               [B, P] float32  1 for a filled slot, else 0
    cls                   [B]    int32    position of the first [CLS]
    next                  [B]    int32    "mlm+nsp" only: 0 if the second segment follows the first, 1 if it is random
"""

import functools
import sys
from collections.abc import Generator, Iterator

import grain
import grain.experimental
import numpy as np
from absl import flags
from grain.experimental import index_shuffle

from bert_fast import BadInput
from bert_fast.data.examples import OBJECTIVES, ExampleSettings
from bert_fast.data.masking import Masking
from bert_fast.data.shards import Split
from bert_fast.data.vocab import Vocab
from bert_fast.data.workers import belong, kill_loaders

Batch = dict[str, np.ndarray]

# What a seed is used for. The use is part of the random key, so the evaluation seed may equal the training seed.
ORDER, TRAINING, EVALUATION = range(3)


class ExampleSource:
    """The examples of a split. `len(rows)` is the number of examples in an epoch.

    `rows(epoch, i)` is example i of an epoch. `rows[g]` is the example at global index g, in shuffled order.
    """

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
        # Draws advance the two low words of Philox's counter. Its high words are i and epoch, so no two examples share
        # draws.
        rng = np.random.Generator(np.random.Philox(key=self.key, counter=(0, 0, i, epoch)))
        content = self.content(i, rng)
        row = self.masking(content.ids_S, content.segments_S, rng)
        positions_S = content.positions_S
        if (spare := self.settings.room - self.settings.seq_len) > 0:
            positions_S = np.where(content.segments_S > 0, positions_S + np.int32(rng.integers(spare + 1)), 0)
        row |= {"types": content.types_S, "positions": positions_S, "segments": content.segments_S}
        row["cls"] = np.array(0, np.int32)
        if content.next is not None:
            row["next"] = np.array(content.next, np.int32)
        return row

    def __getitem__(self, g: int) -> Batch:
        epoch, position = divmod(g, len(self))
        return self(epoch, shuffled(self.seed, epoch, position, len(self)))

    def absent(self) -> Batch:
        """A filler for an incomplete batch: all padding, with segments 0 and weights 0."""
        row = {key: np.zeros_like(value) for key, value in self(0, 0).items()}
        return row | {"ids": np.full_like(row["ids"], self.pad)}


class EvaluationExamples:
    """The first `limit` examples of a split, in order, followed by absent examples."""

    def __init__(self, rows: ExampleSource, limit: int):
        self.rows, self.limit = rows, limit

    def __len__(self) -> int:
        return min(self.limit, len(self.rows))

    def __getitem__(self, g: int) -> Batch:
        return self.rows(0, g) if g < len(self) else self.rows.absent()


def training_examples(split: Split, vocab: Vocab, settings: ExampleSettings, seed: int) -> ExampleSource:
    """The training examples of a split.

    Raises BadInput if the split does not fill one example.
    """
    rows = ExampleSource(split, vocab, settings, seed, TRAINING)
    if (tokens := int(split.ends_D[-1])) < settings.seq_len - 2:
        raise BadInput(
            f"split {split.name!r} in {split.folder} has {tokens} tokens, but an example of seq_len "
            f"{settings.seq_len} takes {settings.seq_len - 2}: prepare more text or train with shorter sequences"
        )
    return rows


def evaluation_examples(
    split: Split, vocab: Vocab, settings: ExampleSettings, seed: int, limit: int
) -> EvaluationExamples:
    """The first `limit` examples of a split (all, if it has fewer), the same for every training seed.

    Raises BadInput for an empty split, or a limit below 1.
    """
    if limit < 1:
        raise BadInput(f"the number of evaluation examples is {limit}: expected 1 or more")
    return EvaluationExamples(ExampleSource(split, vocab, settings, seed, EVALUATION), limit)


def shuffled(seed: int, epoch: int, position: int, rows: int) -> int:
    """The example at `position` of an epoch. Each epoch permutes range(rows), keyed by (seed, epoch)."""
    if rows <= 1 << 16:
        # index_shuffle permutes numbers of at least 16 bits, and repeats until the result is in range. With few
        # examples, this takes milliseconds per index.
        return int(_permutation(seed, epoch, rows)[position])
    # Grain's own shuffle uses 4 rounds, after which successive indices are visibly related: at a million examples,
    # the chi-square statistic of their differences is 200 times its expected value. After 16 rounds they are not.
    return index_shuffle(position, max_index=rows - 1, seed=_order_seed(seed, epoch), rounds=16)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch))).permutation(rows)


@functools.lru_cache(maxsize=4)
def _order_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch)).generate_state(1)[0])


def check_batch(rows: ExampleSource, batch_size: int) -> None:
    """Raises BadInput if a batch has more examples than an epoch."""
    if batch_size > len(rows):
        raise BadInput(
            f"a batch has {batch_size} examples, but an epoch of seq_len {rows.settings.seq_len} has {len(rows)}: "
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
    """Yields `(global index after the batch, this process's part of the batch)` endlessly, from index `start` on.

    Batch b holds the global indices start + [b B, (b+1) B). Process p gets part p of `process_count` equal parts.
    `prefetch` batches are made ahead by a thread, or by each of `workers` processes. Worker processes import the
    main module, so a script must run its code under `if __name__ == "__main__"`. Close the generator after use
    (`contextlib.closing`).

    Raises BadInput if a batch is larger than an epoch, or cannot be divided evenly among the processes.
    """
    check_batch(rows, batch_size)
    # Large enough to be endless in practice, small enough for the length of a Python sequence.
    stop = start + batch_size * 2**40
    return _stream(rows, batch_size, start, stop, process_index, process_count, workers, prefetch)


def batch_at(rows: ExampleSource, batch_size: int, start: int, *, process_index: int, process_count: int) -> Batch:
    """This process's part of the batch that begins at global index `start`."""
    part = batch_size // process_count
    return _make(rows, process_index * part, part, batch_size, start)[1]


def evaluation_batches(
    rows: EvaluationExamples,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """This process's part of each batch, in one pass over the examples. Absent examples fill the last batch.

    Absent examples have `weights` 0 and `segments` 0: exclude them from means with `segments[:, 0] > 0`.
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
            f"the batch size is {batch_size}: expected a multiple of {process_count}, the number of "
            "processes that share each batch"
        )
    part = batch_size // process_count
    make = functools.partial(_make, rows, process_index * part, part, batch_size)
    # A Grain element is a whole batch. With one example per element, Grain's overhead would be as large as the time
    # to make the examples. One thread is enough, because Python runs only one thread at a time.
    dataset = grain.MapDataset.range(start, stop, batch_size).map(make)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its flags here, and would fail outside absl's app.run
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch)
        # Arrays go through a pipe: shared memory is never freed if a worker and its parent are killed together.
        pipe = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, pipe).mp_prefetch(options, worker_init_fn=belong)
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
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        code = str(error).partition("exit code ")[2].partition(".")[0]
        raise BadInput(
            f"a data worker died (exit code {code}; -9: killed, perhaps by the system's out-of-memory killer): run the "
            "same command again, with fewer --config.data.workers if memory ran out"
        ) from error
    except BaseException as error:
        if not isinstance(error, Exception | GeneratorExit):  # otherwise closing would wait long for a stopped worker
            kill_loaders()
        raise
    finally:
        # Threads and processes left open can hang the interpreter at exit (github.com/google/grain/issues/1196).
        iterator.close()
