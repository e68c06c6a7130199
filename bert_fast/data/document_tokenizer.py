"""Turns text into records: sentences, token ids, and the hash that decides a document's split.

This runs in the worker processes of the command `prepare`.

Axes: P pieces, T tokens and N sentences, of one document or of all documents in a call.
"""

import array
import hashlib
import itertools
import os
import re
import string
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from bert_fast.data import shards
from bert_fast.data import vocab as vocabulary

MAX_TOKENS = 65_536  # in one record
# A sentence ends with a full stop (or "?", "!" and the like), closing quotes if there are any, and white space. The
# next word must not begin with a-z. Initials and common abbreviations do not end a sentence. In scripts without a space
# after the full stop, white space is not needed. The pattern begins with one class of all characters that can end a
# sentence, so that `re` quickly skips to the next such character.
_END = re.compile(
    r"([.!?…؟।。！？](?:(?<=[。！？])[”’」』）]*|"
    r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Ms|Dr|St|vs|pp|cf|Jr)\.)(?<!\b(?:Mrs|Col|Gen|Rev|Vol|Fig|e\.g|i\.e)\.)"
    r"[\"'”’)\]»]*\s+(?=[\"'“‘(\[«]*[^\W_a-z])))"
)
# The class of each byte of UTF-8: a space is 0, a mark (punctuation or a line end) is 2, all others are 1
_CLASSES = bytes(0 if c == " " else 2 if c in string.punctuation + "\n" else 1 for c in map(chr, range(256)))
_KNOWN = 500_000  # pieces whose ids are kept, about 90 MB
_LONGEST_KNOWN = 40  # longer pieces (in bytes) are not kept: text without spaces has many, and they rarely occur twice


class Encoded(NamedTuple):
    """One document: a hash of its text in [0, 2^64), its records and its counts."""

    hash: int
    records: list[bytes]
    lengths: list[int]  # tokens of each record
    sentences: int
    unknown: int  # tokens that are [UNK]
    raw_bytes: int


class _Pieces(dict):
    """Maps a piece of text to the bytes of its token ids in a record. Keeps the first _KNOWN pieces, which include the
    frequent ones.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: str):
        super().__init__()
        self._tokenizer, self._typecode = tokenizer, np.dtype(dtype).char

    def __missing__(self, piece: bytes) -> bytes:
        text = piece.decode()
        if text.isascii() and text.isprintable():  # one word, or a mark: no need to normalise it
            ids = [token.id for token in self._tokenizer.model.tokenize(text)]
        else:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        found = array.array(self._typecode, ids).tobytes()
        if len(self) < _KNOWN and len(piece) <= _LONGEST_KNOWN:
            self[piece] = found
        return found


class DocumentTokenizer:
    """Turns text into records with one vocabulary, in one thread.

    The library `tokenizers` looks up every occurrence of a word, and tracks its position in the text. This class avoids
    that work. BERT's normalisation and WordPiece never look across a space, and each ASCII punctuation mark is a word.
    So the text is cut into pieces at spaces and punctuation marks. Each call looks up only its distinct pieces, and the
    ids of frequent pieces are kept for later calls.
    """

    def __init__(self, vocab: vocabulary.Vocab):
        self.unk = vocab.unk
        self.dtype = shards.token_dtype(vocab.size)
        self.cased, self.strip_accents = vocab.cased, vocab.strip_accents
        self._pieces = _Pieces(vocab.tokenizer, self.dtype)

    def __call__(self, texts: list[str]) -> list[Encoded]:
        """One `Encoded` per document; a document without tokens has no records."""
        texts = [vocabulary.composed(text, self.strip_accents) for text in texts]
        sentences = [sentences_of(text) for text in texts]
        tokens_T, bounds_N = self.ids([sentence for own in sentences for sentence in own])
        lasts = itertools.accumulate(map(len, sentences), initial=0)
        return [
            self._document(text, tokens_T, bounds_N[first : last + 1])
            for text, (first, last) in zip(texts, itertools.pairwise(lasts), strict=True)
        ]

    def ids(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of the sentences, one after another, and the N + 1 bounds of the sentences among these ids.

        No sentence may contain a line end. "[MASK]" is treated as text, not as the mask.
        """
        text = "\n".join(["", *sentences, ""]).encode()
        text = text if self.cased else text.lower()  # lower-cases ASCII bytes; the tokenizer does the rest
        classes = np.frombuffer(text.translate(_CLASSES), np.uint8)
        begins = np.append(True, classes[1:] > (classes[:-1] & 1))  # a mark, or the first letter of a word
        text = text.translate(None, b" ")
        pieces = _strings(np.append(np.flatnonzero(begins[classes > 0]), len(text)), text)
        numbered = pieces.dictionary_encode()
        known = list(map(self._pieces.__getitem__, numbered.dictionary.to_pylist()))
        found = _strings(np.cumsum([0, *map(len, known)]), b"".join(known)).take(numbered.indices)
        tokens_T = np.frombuffer(found.buffers()[2], self.dtype)
        ends_P = _offsets(found)[1:] // tokens_T.itemsize
        return tokens_T, ends_P[np.frombuffer(text, np.uint8)[_offsets(pieces)[:-1]] == ord("\n")]

    def _document(self, text: str, tokens_T: np.ndarray, bounds_N: np.ndarray) -> Encoded:
        """A document with sentences between these bounds in `tokens_T`."""
        bounds_N = bounds_N[np.append(bounds_N[1:] > bounds_N[:-1], True)]  # without empty sentences
        if bounds_N[-1] - bounds_N[0] > MAX_TOKENS:  # only now can a sentence be too long for one record
            cuts = [np.arange(a, b, MAX_TOKENS) for a, b in itertools.pairwise(bounds_N)]
            bounds_N = np.concatenate([*cuts, bounds_N[-1:]])
        documents = []
        while len(bounds_N) > 1:
            last = int(np.searchsorted(bounds_N, bounds_N[0] + MAX_TOKENS, "right")) - 1
            own_T = tokens_T[bounds_N[0] : bounds_N[last]]
            documents.append(shards.Document(own_T, bounds_N[:last] - bounds_N[0]))
            bounds_N = bounds_N[last:]
        raw = text.encode()
        return Encoded(
            hash=int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest()),
            records=[shards.encode(document, self.dtype) for document in documents],
            lengths=[len(document.tokens_T) for document in documents],
            sentences=sum(len(document.starts_N) for document in documents),
            unknown=sum(int((document.tokens_T == self.unk).sum()) for document in documents),
            raw_bytes=len(raw),
        )


def _strings(offsets: np.ndarray, data: bytes) -> pa.Array:
    """The strings that begin at `offsets` in `data`; the last offset is the end. Copies nothing, and does not import
    pandas.
    """
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _offsets(strings: pa.Array) -> np.ndarray:
    return np.frombuffer(strings.buffers()[1], np.int32)[: len(strings) + 1]


def sentences_of(text: str) -> list[str]:
    """The lines of `text`, each split further at sentence ends."""
    found = []
    for line in text.split("\n"):
        *parts, last = _END.split(line)  # text, end, text, end, ..., text
        found += [(body + end).rstrip() for body, end in zip(parts[::2], parts[1::2], strict=True)]
        if last:
            found.append(last)
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
