"""Examples per second that the input pipeline makes, compared with what a BERT of 4 layers of width 256 can consume.

    python -m experiments.input_speed [--data=DIR] [--consumed_128=X --consumed_512=Y]

--consumed_* are the examples per second of the training step on this machine. Without them, the model is assumed to run
at the machine's float32 matrix-product peak, which no training step reaches. Writes experiments/input_speed.md.
"""

import contextlib
import os
import pathlib
import platform
import statistics
import tempfile
import time

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from bert_fast.data import batches, examples, packing, shards
from bert_fast.data.masking import prediction_slots, read_vocab
from bert_fast.data.vocab import Vocab, parse
from experiments import common

WORDS = 30_522
BATCH = 64
REPEATS = 5


class Made(shards.Split):
    """A split of random documents that has no manifest. Sentences have 25 tokens.

    length: tokens of each document. None: lengths are random, with a median of 300 tokens.
    """

    def __init__(self, folder: pathlib.Path, documents: int, length: int | None):
        rng = np.random.default_rng(0)
        lengths_D = np.full(documents, length) if length else np.clip(rng.lognormal(5.7, 1.1, documents), 8, 65_536)
        self.folder, self.name, self.dtype, self._readers = folder, "train", "uint16", {}
        self.lengths_D = lengths_D.astype(np.int64)
        self.files, self.firsts = ["train.array_record"], [0, documents]
        writer = ArrayRecordWriter(str(folder / self.files[0]), "group_size:1")
        for size in self.lengths_D:
            document = shards.Document(rng.integers(1000, WORDS, size), np.arange(0, size, 25))
            writer.write(shards.encode(document, self.dtype))
        writer.close()


def made_vocab() -> Vocab:
    """A vocabulary of BERT's size with BERT's special ids. Every fifth piece is a continuation (`##`)."""
    pieces = [f"{'##' if number % 5 == 0 else ''}word{number}" for number in range(WORDS)]
    pieces[0], pieces[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return parse("\n".join(pieces).encode(), "vocab.txt", False, None)


def rows_per_second(made: batches.ExampleSource, workers: int, seconds: float = 1.5) -> float:
    """Median examples per second over REPEATS intervals of `seconds` each, after a warm-up of 20 batches."""
    found = []
    with contextlib.closing(batches.batches(made, BATCH, 0, workers=workers)) as stream:
        for _ in range(20):
            next(stream)
        for _ in range(REPEATS):
            count, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < seconds:
                next(stream)
                count += BATCH
            found.append(count / passed)
    return statistics.median(found)


def pieces(lengths_D: np.ndarray, size: int) -> np.ndarray:
    """Lengths of the pieces if documents are cut into pieces of at most `size` tokens."""
    pieces_D = -(-lengths_D // size)
    lengths_N = np.full(pieces_D.sum(), size)
    lengths_N[np.cumsum(pieces_D) - 1] = lengths_D - (pieces_D - 1) * size
    return lengths_N


def peak_flops() -> float:
    """FLOPs per second in the fastest of ten float32 products of 2,048 x 2,048 matrices."""
    a, b = np.ones((2, 2048, 2048), np.float32)
    best = min(_timed(lambda: a @ b) for _ in range(10))
    return 2 * 2048**3 / best


def _timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def mini_flops(seq_len: int, width: int = 256, layers: int = 4) -> float:
    """Matrix-product FLOPs of training on one example, forward and backward; the head runs on prediction slots only."""
    layer = 2 * seq_len * 12 * width**2 + 4 * seq_len**2 * width
    head = 2 * prediction_slots(seq_len) * width * (width + WORDS)
    return 3 * (layers * layer + head)


def main(data: str | None, consumed: dict[int, float | None]) -> str:
    """The text of the page."""
    settings = {"masked_share": 0.15, "whole_word": False, "short_seq_prob": 0.1}
    with tempfile.TemporaryDirectory() as temporary:
        if data:
            split, vocab = shards.Split(data, "train"), read_vocab(data)
            source = f"the train split of {pathlib.Path(data).name}"
            splits = {"": split}
        else:
            vocab = made_vocab()
            short, long = pathlib.Path(temporary, "short"), pathlib.Path(temporary, "long")
            short.mkdir()
            long.mkdir()
            splits = {"": Made(short, 20_000, None), ", documents of 65,536": Made(long, 60, 65_536)}
            source = "random ids, 20,000 documents of 300 tokens (median; log-normal), sentences of 25 tokens"
        peak = peak_flops()
        lines = []
        for seq_len in (128, 512):
            eats = consumed[seq_len] or peak / mini_flops(seq_len)
            for (label, split), objective in ((item, name) for item in splits.items() for name in examples.OBJECTIVES):
                for whole_word in (False, True) if objective == "mlm" and not label else (False,):
                    row_settings = examples.ExampleSettings(seq_len, objective, **settings | {"whole_word": whole_word})
                    made = batches.training_examples(split, vocab, row_settings, seed=0)
                    found = rows_per_second(made, workers=0)
                    name = objective + (", whole words" if whole_word else "") + label
                    lines.append(f"| {name} | {seq_len} | {found:,.0f} | {eats:,.0f} | {found / eats:,.0f} |")
        two = rows_per_second(
            batches.training_examples(splits[""], vocab, examples.ExampleSettings(128, "mlm", **settings), 0), workers=2
        )
        pieces_N = pieces(np.random.default_rng(0).lognormal(5.2, 1.1, 4_300_000).astype(np.int64) + 1, 128 - 2) + 2
        packing_seconds = _timed(lambda: packing.pack(pieces_N, 128))
        _, starts_R = packing.pack(pieces_N, 128)
    given = "an upper bound: the model at the machine's peak"
    if all(consumed.values()):
        given = "passed as `--consumed_128` and `--consumed_512`"
    return "\n".join(
        [
            "# Speed of the input pipeline",
            "",
            f"One thread (`workers=0`), batches of {BATCH}, median of {REPEATS}; {source}. {platform.machine()}, "
            f"{os.cpu_count()} cores, float32 peak {peak / 1e9:,.0f} GFLOP/s. *consumed*: examples per second that "
            f"training a model with 4 layers of width 256 consumes on this machine ({given}).",
            "",
            "| objective | seq_len | examples/s made | examples/s consumed | ratio |",
            "|---|---:|---:|---:|---:|",
            *lines,
            "",
            f"With two worker processes (`workers=2`), mlm at 128: {two:,.0f} examples/s.",
            "",
            f"Packing {len(pieces_N):,} pieces of 4,300,000 documents (log-normal lengths, median 180 tokens) at 128 tokens takes "
            f"{packing_seconds:.1f} s and fills {pieces_N.sum() / (128 * (len(starts_R) - 1)):.4f} of the positions.",
            "",
        ]
    )


if __name__ == "__main__":
    parser = common.parser(__doc__)
    parser.add_argument("--data", help="a shards folder; default: random documents")
    parser.add_argument(
        "--consumed_128", type=float, help="examples per second of the training step at 128 tokens, as measured"
    )
    parser.add_argument("--consumed_512", type=float, help="the same at 512 tokens")
    arguments = parser.parse_args()
    common.write_page("input_speed", main(arguments.data, {128: arguments.consumed_128, 512: arguments.consumed_512}))
