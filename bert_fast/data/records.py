"""Text to records: sentences, token ids, and the split a document belongs to. The part of prepare that workers do.

Axes: T tokens of one document, N its sentences.
"""

import hashlib
import itertools
import os
import re
import signal
import sys
import threading
from multiprocessing import process
from typing import NamedTuple

import numpy as np

from bert_fast.data import shards
from bert_fast.data import vocab as vocabulary

MAX_TOKENS = 65_536  # of one record
# A sentence ends at a full stop, closing quotes and a space, where no lower-case letter follows;
# scripts that write no space after theirs end at the stop itself.
_END = re.compile(
    r"(?:(?<!\b[A-Z])(?<!\b(?:Mr|Ms|Dr|St|vs|pp|cf|Jr))(?<!\b(?:Mrs|Col|Gen|Rev|Vol|Fig))(?<!\be\.g)(?<!\bi\.e)"
    r"[.!?…؟।][\"'”’)\]»]*\s+(?=[\"'“‘(\[«]*[^\W_a-z])|[。！？][”’」』）]*)"
)


class Encoded(NamedTuple):
    """One document: its place in [0, 2^64) by a hash of its text, its records and what was counted."""

    hash: int
    records: list[bytes]
    lengths: list[int]  # tokens of each record
    sentences: int
    unknown: int  # tokens that are [UNK]
    raw_bytes: int


class Encoder:
    """Text to records with one vocabulary, in one thread."""

    def __init__(self, vocab: vocabulary.Vocab):
        self.unk = vocab.unk
        self.dtype = shards.token_dtype(vocab.size)
        self.tokenizer = vocab.tokenizer
        self.tokenizer.encode_special_tokens = True  # "[MASK]" in a corpus is a word, not the mask

    def __call__(self, texts: list[str]) -> list[Encoded]:
        """The records of each document; none where no token is left of it."""
        sentences = [sentences_of(text) for text in texts]
        flat = list(itertools.chain.from_iterable(sentences))
        ids = iter([encoding.ids for encoding in self.tokenizer.encode_batch_fast(flat, add_special_tokens=False)])
        return [
            self._document(text, list(itertools.islice(ids, len(own))))
            for text, own in zip(texts, sentences, strict=True)
        ]

    def _document(self, text: str, ids: list[list[int]]) -> Encoded:
        pieces = [sentence for sentence in ids if sentence]
        if sum(map(len, pieces)) > MAX_TOKENS:  # rare: only then look for sentences too long for any record
            pieces = [piece[i : i + MAX_TOKENS] for piece in pieces for i in range(0, len(piece), MAX_TOKENS)]
        documents = []
        while pieces:
            ends_N = np.cumsum([len(piece) for piece in pieces])
            fit = int(np.searchsorted(ends_N, MAX_TOKENS, "right"))
            tokens_T = np.fromiter(itertools.chain.from_iterable(pieces[:fit]), self.dtype)
            documents.append(shards.Document(tokens_T, np.concatenate([[0], ends_N[: fit - 1]])))
            pieces = pieces[fit:]
        raw = text.encode()
        return Encoded(
            hash=int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest()),
            records=[shards.encode(document, self.dtype) for document in documents],
            lengths=[len(document.tokens_T) for document in documents],
            sentences=sum(len(document.starts_N) for document in documents),
            unknown=sum(int((document.tokens_T == self.unk).sum()) for document in documents),
            raw_bytes=len(raw),
        )


def sentences_of(text: str) -> list[str]:
    """Its lines, each split again at sentence ends."""
    found = []
    for line in text.split("\n"):
        start = 0
        for end in _END.finditer(line):
            found.append(line[start : end.end()].rstrip())
            start = end.end()
        if start < len(line):
            found.append(line[start:])
    return found


_encoder: Encoder


def start_worker(vocab_path: str, cased: bool, strip_accents: bool | None) -> None:
    """Readies a worker process: one thread, deaf to Ctrl-C (its parent ends it), gone when its parent is."""
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    _encoder = Encoder(vocabulary.load(vocab_path, cased, strip_accents))


def _follow_parent() -> None:
    """A worker of a killed parent would wait for work for ever: the queue has no end that it could see."""
    if parent := process.parent_process():
        parent.join()
        sys.stderr.flush()
        os._exit(1)


def encode(texts: list[str]) -> list[Encoded]:
    """The records of each document, in a worker."""
    return _encoder(texts)
