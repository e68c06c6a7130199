"""Text to records: sentences, token ids, and the hash that decides a document's split.

This runs in the worker processes of the command `prepare`.

Axes: T tokens and N sentences of one document.
"""

import hashlib
import itertools
import os
import re
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bert_fast.data import shards
from bert_fast.data import vocab as vocabulary

MAX_TOKENS = 65_536  # in one record
# A sentence ends after a full stop ("?" and "!" count too), closing quotes and white space, if the next word does
# not begin with a-z. Initials and common abbreviations do not end a sentence. In scripts without a space after the
# full stop, the sentence ends at the full stop.
_END = re.compile(
    r"[.!?…؟।](?<!\b[A-Z]\.)(?<!\b(?:Mr|Ms|Dr|St|vs|pp|cf|Jr)\.)(?<!\b(?:Mrs|Col|Gen|Rev|Vol|Fig|e\.g|i\.e)\.)"
    r"[\"'”’)\]»]*\s+(?=[\"'“‘(\[«]*[^\W_a-z])|[。！？][”’」』）]*"
)
# BERT's pre-tokenisation of printable ASCII: it splits at spaces, and each punctuation mark is a word
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9 ]")
_CACHED_WORDS = 200_000  # about 40 MB


class Encoded(NamedTuple):
    """One document: a hash of its text in [0, 2^64), its records and its counts."""

    hash: int
    records: list[bytes]
    lengths: list[int]  # tokens of each record
    sentences: int
    unknown: int  # tokens that are [UNK]
    raw_bytes: int


class _Words(dict):
    """Token ids of each word. The first _CACHED_WORDS words are cached; the frequent ones are among them."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        ids = self._tokenizer.encode(word, add_special_tokens=False).ids
        if len(self) < _CACHED_WORDS:
            self[word] = ids
        return ids


class DocumentTokenizer:
    """Turns text into records with one vocabulary, in one thread.

    The library `tokenizers` looks up every occurrence of a word, and tracks its position in the text. Most
    sentences are printable ASCII. For these, BERT's normalisation is at most `str.lower`, and its splitting is a
    regular expression. So a table of known words gives the same ids several times faster.
    """

    def __init__(self, vocab: vocabulary.Vocab):
        self.unk = vocab.unk
        self.dtype = shards.token_dtype(vocab.size)
        self.tokenizer = vocab.tokenizer
        self.tokenizer.encode_special_tokens = True  # "[MASK]" in a corpus is text, not the mask
        self.cased, self.strip_accents = vocab.cased, vocab.strip_accents
        self._words = _Words(self.tokenizer)

    def __call__(self, texts: list[str]) -> list[Encoded]:
        """One `Encoded` per document; a document without tokens has no records."""
        texts = [vocabulary.composed(text, self.strip_accents) for text in texts]
        sentences = [sentences_of(text) for text in texts]
        rest = [sentence for own in sentences for sentence in own if not _is_plain(sentence)]
        others = iter(self.tokenizer.encode_batch_fast(rest, add_special_tokens=False))
        return [
            self._document(text, [self._plain(one) if _is_plain(one) else next(others).ids for one in own])
            for text, own in zip(texts, sentences, strict=True)
        ]

    def _plain(self, sentence: str) -> list[int]:
        """Token ids of a printable ASCII sentence."""
        words = _ASCII_WORD.findall(sentence if self.cased else sentence.lower())
        return list(itertools.chain.from_iterable(map(self._words.__getitem__, words)))

    def _document(self, text: str, ids: list[list[int]]) -> Encoded:
        pieces = [sentence for sentence in ids if sentence]
        if sum(map(len, pieces)) > MAX_TOKENS:  # only here can a sentence be too long for one record
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


def _is_plain(sentence: str) -> bool:
    return sentence.isascii() and sentence.isprintable()


def sentences_of(text: str) -> list[str]:
    """The lines of `text`, each split further at sentence ends."""
    found = []
    for line in text.split("\n"):
        start = 0
        for end in _END.finditer(line):
            found.append(line[start : end.end()].rstrip())
            start = end.end()
        if start < len(line):
            found.append(line[start:])
    return found


_encoder: DocumentTokenizer


def start_worker(vocab_path: str, cased: bool, strip_accents: bool) -> None:
    """Sets up a worker process to encode in one thread."""
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = DocumentTokenizer(vocabulary.load(vocab_path, cased, strip_accents))


def encode(texts: list[str]) -> list[Encoded]:
    """The records of each document, encoded in a worker."""
    return _encoder(texts)
