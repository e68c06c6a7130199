"""Examples before masking. Each objective has a class that maps an example's number to the example.

    FullSentences   windows of the stream of all tokens; they cross documents       "mlm"
    PackedPieces    whole pieces of documents, several per example                  "mlm_packed"
    SegmentPairs    two segments; the second follows the first, or is random text   "mlm+nsp"

No class carries state from one example to the next: example i depends only on i and on its own random generator.

Axes: S positions of an example, D documents, T tokens, N sentences or pieces, R examples.
"""

import difflib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bert_fast import BadInput
from bert_fast.data import packing
from bert_fast.data.masking import prediction_slots
from bert_fast.data.shards import Document, Split
from bert_fast.data.vocab import Vocab


@dataclass(frozen=True)
class ExampleSettings:
    """How examples are made. BERT: `masked_share` 0.15, `whole_word` False, `short_seq_prob` 0.1 ("mlm+nsp" only).

    room: if it is above `seq_len`, the positions of an example start at a random number, and stay below `room`. In this
    way, short examples train the embeddings of all `room` positions.
    """

    seq_len: int
    objective: str
    masked_share: float
    whole_word: bool
    short_seq_prob: float
    slots: int | None = None  # None: prediction_slots(seq_len, masked_share)
    room: int = 0

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            near = difflib.get_close_matches(self.objective, OBJECTIVES, cutoff=0.3)
            raise BadInput(f"unknown objective {self.objective!r}: did you mean {' or '.join(near or OBJECTIVES)}?")
        if self.seq_len < (least := OBJECTIVES[self.objective].least_seq_len):
            raise BadInput(f"seq_len is {self.seq_len}: objective {self.objective!r} needs at least {least}")
        if not 0 < self.masked_share <= 1:
            raise BadInput(f"masked_share is {self.masked_share}: expected a share above 0 and at most 1 (BERT: 0.15)")
        if not 0 <= self.short_seq_prob <= 1:
            raise BadInput(f"short_seq_prob is {self.short_seq_prob}: expected a probability (BERT: 0.1)")
        if self.slots is not None and not 0 < self.slots <= self.seq_len:
            raise BadInput(f"slots is {self.slots}: expected 1 to seq_len ({self.seq_len})")

    @property
    def prediction_slots(self) -> int:
        return self.slots or prediction_slots(self.seq_len, self.masked_share)


class Content(NamedTuple):
    """One example. `segments_S` numbers the blocks from 1, and is 0 at padding. Attention stays within a block."""

    ids_S: np.ndarray
    types_S: np.ndarray
    positions_S: np.ndarray
    segments_S: np.ndarray
    next: int | None = None  # 0 if the second segment follows the first, 1 if it is random (as in BERT)


def fill(blocks: list[np.ndarray], seq_len: int, vocab: Vocab) -> Content:
    """One example, made by joining the blocks and padding to `seq_len`.

    Each block becomes [CLS] block [SEP], with positions from 0. All types are 0.
    """
    ids_S = np.full(seq_len, vocab.pad, np.int32)
    types_S, positions_S, segments_S = np.zeros((3, seq_len), np.int32)
    start = 0
    for number, block_T in enumerate(blocks, start=1):
        stop = start + len(block_T) + 2
        ids_S[start] = vocab.cls
        ids_S[start + 1 : stop - 1] = block_T
        ids_S[stop - 1] = vocab.sep
        positions_S[start:stop] = np.arange(stop - start)
        segments_S[start:stop] = number
        start = stop
    return Content(ids_S, types_S, positions_S, segments_S)


def read(split: Split, document: int, vocab: Vocab) -> Document:
    """Document number `document`. Raises BadInput if it has a token id outside the vocabulary."""
    found = split[document]
    # Unsigned, so that one comparison also finds negative ids.
    if len(found.tokens_T) and (largest := int(found.tokens_T.view(np.uint32).max())) >= vocab.size:
        raise BadInput(
            f"document {document} of split {split.name!r} in {split.folder} has token id {largest}, but the vocabulary "
            f"has {vocab.size} tokens: the shards belong to another vocabulary or are damaged; prepare again"
        )
    return found


class FullSentences:
    """Example i holds tokens [i(S-2), (i+1)(S-2)) of the stream, between [CLS] and [SEP]. The last example is padded.

    Windows cross documents, as in RoBERTa's FULL-SENTENCES (arXiv 1907.11692, section 4.2), but without an
    extra separator between documents. So token t of the stream is always in example t // (S-2).
    """

    least_seq_len = 3  # one token between [CLS] and [SEP]

    def __init__(self, split: Split, vocab: Vocab, settings: ExampleSettings):
        self.split, self.vocab, self.seq_len = split, vocab, settings.seq_len
        self.tokens = int(split.ends_D[-1])

    def __len__(self) -> int:
        return -(-self.tokens // (self.seq_len - 2))

    def __call__(self, i: int, rng: np.random.Generator) -> Content:
        start = i * (self.seq_len - 2)
        stop = min(start + self.seq_len - 2, self.tokens)
        ends_D = self.split.ends_D
        document = int(np.searchsorted(ends_D, start, side="right"))
        parts = []
        while start < stop:
            end = int(ends_D[document])
            if end > start:
                begin = end - int(self.split.lengths_D[document])
                parts.append(read(self.split, document, self.vocab).tokens_T[start - begin : stop - begin])
                start = end
            document += 1
        return fill([np.concatenate(parts)], self.seq_len, self.vocab)


class PackedPieces:
    """Example i holds whole pieces, packed so that almost no position is padding (packing.py).

    A document of up to S-2 tokens is one piece. A longer document is cut into pieces of S-2 tokens; the last piece
    may be shorter. The packing is the same in every epoch. Pieces do not attend to each other, so it does not
    matter which pieces share an example.
    """

    least_seq_len = 3  # one token between [CLS] and [SEP]

    def __init__(self, split: Split, vocab: Vocab, settings: ExampleSettings):
        self.split, self.vocab, self.seq_len = split, vocab, settings.seq_len
        size = self.seq_len - 2
        lengths_D = np.asarray(split.lengths_D, np.int64)
        pieces_D = -(-lengths_D // size)
        self.first_piece_D = np.cumsum(pieces_D) - pieces_D
        lengths_N = np.full(int(pieces_D.sum()), size, np.int32)
        some_D = pieces_D > 0  # an empty document has no last piece
        last_N = (self.first_piece_D + pieces_D - 1)[some_D]
        lengths_N[last_N] = (lengths_D - (pieces_D - 1) * size)[some_D]
        self.order_N, self.starts_R = packing.pack(lengths_N + 2, self.seq_len)

    def __len__(self) -> int:
        return len(self.starts_R) - 1

    def __call__(self, i: int, rng: np.random.Generator) -> Content:
        size, blocks = self.seq_len - 2, []
        for piece in self.order_N[self.starts_R[i] : self.starts_R[i + 1]].tolist():
            document = int(np.searchsorted(self.first_piece_D, piece, side="right")) - 1
            start = (piece - int(self.first_piece_D[document])) * size
            blocks.append(read(self.split, document, self.vocab).tokens_T[start : start + size])
        return fill(blocks, self.seq_len, self.vocab)


class SegmentPairs:
    """Example i is [CLS] A [SEP] B [SEP]: BERT's next-sentence pairs (arXiv 1810.04805, appendix A.2).

    A document of T tokens has ceil(T / (S-3)) examples. Its example r starts at the first sentence at or after
    token r(S-3), or at that token if no sentence starts within the next S-3 tokens. Sentences are added until they
    reach a target length: S-3 tokens, or with probability `short_seq_prob` a random length of at least 2. They are
    split between A and B at a random sentence boundary.

    In half of the examples, and whenever there is only one sentence, B is random instead: text from another
    document, starting at a random sentence of it. All other documents are equally likely. If a pair is too long,
    tokens are removed one by one from its longer segment, at the front or at the back with equal probability.

    One difference from Google's create_pretraining_data.py: if B is random, Google's next pair starts with the
    sentences that B replaced, so an example depends on the draws of all examples before it. Here the starts are
    fixed. The replaced sentences are used in epochs in which B is not random.
    """

    least_seq_len = 5  # [CLS] [SEP] [SEP], and one token in each segment

    def __init__(self, split: Split, vocab: Vocab, settings: ExampleSettings):
        self.split, self.vocab = split, vocab
        self.seq_len, self.short_seq_prob = settings.seq_len, settings.short_seq_prob
        if (documents := np.count_nonzero(split.lengths_D)) < 2:
            raise BadInput(
                f"split {split.name!r} in {split.folder} has {documents} document: next-sentence prediction takes "
                "random segments from another document; prepare more text or choose the objective 'mlm'"
            )
        self.ends_D = np.cumsum(-(-np.asarray(split.lengths_D, np.int64) // (self.seq_len - 3)))

    def __len__(self) -> int:
        return int(self.ends_D[-1])

    def __call__(self, i: int, rng: np.random.Generator) -> Content:
        room = self.seq_len - 3
        document = int(np.searchsorted(self.ends_D, i, side="right"))
        tokens_T, starts_N = read(self.split, document, self.vocab)
        rows = -(-len(tokens_T) // room)
        bounds = sentences(tokens_T, starts_N, (i - int(self.ends_D[document]) + rows) * room, room)
        target = int(rng.integers(2, room + 1)) if rng.random() < self.short_seq_prob else room
        bounds = bounds[: enough(bounds, target) + 1]

        count = len(bounds) - 1
        middle = int(rng.integers(1, count)) if count > 1 else 1
        a_T, b_T = tokens_T[bounds[0] : bounds[middle]], tokens_T[bounds[middle] : bounds[-1]]
        random_next = bool(rng.random() < 0.5) or count == 1
        if random_next:
            b_T = self._random_segment(document, target - len(a_T), rng)
        a_T, b_T = truncate(a_T, b_T, room, rng)

        content = fill([np.concatenate([a_T, [self.vocab.sep], b_T])], self.seq_len, self.vocab)
        content.types_S[len(a_T) + 2 : len(a_T) + len(b_T) + 3] = 1
        return content._replace(next=int(random_next))

    def _random_segment(self, document: int, target: int, rng: np.random.Generator) -> np.ndarray:
        other = document
        while other == document or self.split.lengths_D[other] == 0:
            other = int(rng.integers(len(self.split)))
        tokens_T, starts_N = read(self.split, other, self.vocab)
        bounds = np.append(starts_N[int(rng.integers(len(starts_N))) :], len(tokens_T))
        return tokens_T[bounds[0] : bounds[enough(bounds, target)]]


def sentences(tokens_T: np.ndarray, starts_N: np.ndarray, start: int, room: int) -> np.ndarray:
    """The start of each sentence at or after token `start`, then the end of the document."""
    bounds = np.append(starts_N[np.searchsorted(starts_N, start) :], len(tokens_T))
    # If no sentence starts in the next `room` tokens, `start` itself comes first. Without it, the end of a sentence
    # that is longer than an example would be in no example.
    return bounds if bounds[0] < min(start + room, len(tokens_T)) else np.insert(bounds, 0, start)


def enough(bounds: np.ndarray, target: int) -> int:
    """Number of sentences, from the first of `bounds` on, that reach `target` tokens. At least 1, and all if they are
    too short.
    """
    return min(max(1, int(np.searchsorted(bounds, bounds[0] + target))), len(bounds) - 1)


def truncate(a_T: np.ndarray, b_T: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Both segments, cut to `room` tokens in total, as in BERT's truncate_seq_pair.

    BERT removes one token at a time from the longer segment (from b if they are equally long), at the front or
    back with equal probability. The number of tokens removed at the front is therefore binomial.
    """
    length_b = min(len(b_T), max(room // 2, room - len(a_T)))
    length_a = min(len(a_T), room - length_b)
    front_a, front_b = rng.binomial([len(a_T) - length_a, len(b_T) - length_b], 0.5)
    return a_T[front_a : front_a + length_a], b_T[front_b : front_b + length_b]


OBJECTIVES = {"mlm": FullSentences, "mlm_packed": PackedPieces, "mlm+nsp": SegmentPairs}
