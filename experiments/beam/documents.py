"""What workers do with documents: read and tokenise them, and gather them into the units that `prepare` would make.
This module does not import Beam.

file -> blocks of text -> encoded blocks -> pieces, one for each unit -> units
             |                                        |
             +-> sizes of documents -> plan ----------+
"""

import bisect
import functools
import glob
import operator
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bert_fast.data import corpora, mixture, staging
from bert_fast.data import prepare_report as report
from bert_fast.data import vocab as vocabulary
from bert_fast.data.document_tokenizer import DocumentTokenizer, Encoded
from bert_fast.data.mixture import Position

_BLOCK = 1 << 19  # characters tokenised at once


class Sizes(NamedTuple):
    """What the plan needs to know about the D documents of a block.

    file: the file's number. first: how many documents of the file come before the block.
    sizes_D3: each document's characters, its bytes, and the number of unusable documents before it in the file.
    digests_D: a hash of each text. The positions of `prepare` are computed from these hashes.
    skipped: number of unusable documents in the file, up to the end of the block.
    """

    file: int
    first: int
    sizes_D3: np.ndarray
    digests_D: list[bytes]
    skipped: int


class Block(NamedTuple):
    """Documents that follow each other in a file."""

    texts: list[str]
    sizes: Sizes


class EncodedBlock(NamedTuple):
    """Tokenised documents that follow each other in a file, and one sentence of each as a sample."""

    file: int
    first: int
    documents: list[Encoded]
    samples: list[report.Sample]


class Plan(NamedTuple):
    """Where each of U units ends.

    ends_U: the number of the file, and how many of the file's documents come before the end of the unit.
    positions_U: the position that `prepare` has reached at the end of the unit.
    """

    ends_U: list[tuple[int, int]]
    positions_U: list[Position]


def texts_of(path: str, text_key: str, bad: corpora.Bad) -> Iterator[str]:
    """The cleaned documents of a file on this machine."""
    if os.path.getsize(path):  # `open_corpus` would refuse an empty file, although the other files may have text
        corpus = corpora.open_corpus(f"files:{glob.escape(path)}", text_key=text_key)
        yield from corpus.documents(corpus.parts[0], bad)


def blocks(number: int, path: str, text_key: str, skip_bad: bool) -> Iterator[Block]:
    """Splits the documents of a file into blocks: at least one block, even if the file has no documents.

    number: the file's place in the order of names.
    """
    bad = corpora.Bad(skip_bad)
    texts: list[str] = []
    sizes: list[tuple[int, int, int]] = []
    digests: list[bytes] = []
    read = characters = 0

    def block() -> Block:
        sizes_D3 = np.array(sizes, np.int64).reshape(-1, 3)
        return Block(texts, Sizes(number, read - len(texts), sizes_D3, digests, bad.count))

    for text in texts_of(path, text_key, bad):
        texts.append(text)
        raw = text.encode()
        sizes.append((len(text), len(raw), bad.count))
        digests.append(mixture.digest(raw))
        read += 1
        characters += len(text)
        if characters >= _BLOCK:
            yield block()
            texts, sizes, digests, characters = [], [], [], 0
    yield block()


@functools.lru_cache(1)
def _tokenizer(content: bytes, cased: bool, strip_accents: bool) -> DocumentTokenizer:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Beam runs one worker for each core
    return DocumentTokenizer(vocabulary.parse(content, "vocab.txt", cased, strip_accents))


def encoded(block: Block, vocab: bytes, cased: bool, strip_accents: bool) -> EncodedBlock:
    """A block after tokenisation. vocab: the bytes of vocab.txt."""
    documents = _tokenizer(vocab, cased, strip_accents)(block.texts)
    pairs = zip(documents, block.texts, strict=True)
    samples = [report.sample(document.hash, text) for document, text in pairs]
    return EncodedBlock(block.sizes.file, block.sizes.first, documents, samples)


def plan(found: Iterable[Sizes], unit: int) -> Plan:
    """Cuts the corpus where `prepare` does: a unit ends with the document that brings it to at least `unit`
    characters.
    """
    made = Plan([], [])
    at, before, characters = Position(), 0, 0  # before: unusable documents of earlier files
    for file, first, sizes_D3, digests_D, skipped in sorted(found, key=operator.itemgetter(0, 1)):
        if file != at.part:
            before, at = at.skipped, at._replace(part=file, before=at.text)
        for number, (length, size, bad) in enumerate(sizes_D3.tolist(), first + 1):
            text = mixture.follow(at.text, digests_D[number - first - 1])
            at = at._replace(documents=number, total=at.total + 1, bytes=at.bytes + size, text=text)
            at = at._replace(skipped=before + bad)
            characters += length
            if characters >= unit:
                made.ends_U.append((file, number))
                made.positions_U.append(at)
                characters = 0
        at = at._replace(skipped=before + skipped)
    made.ends_U.append((sys.maxsize, 0))  # the last unit has the rest, which may be nothing
    made.positions_U.append(at._replace(part=0, documents=0, passes=1, before=at.text))
    return made


def by_unit(block: EncodedBlock, planned: Plan) -> Iterator[tuple[int, EncodedBlock]]:
    """Splits a block by unit: the number of each unit, and the part of the block that belongs to it."""
    start = 0
    while start < len(block.documents):
        number = bisect.bisect_left(planned.ends_U, (block.file, block.first + start + 1))
        file, last = planned.ends_U[number]
        part = slice(start, last - block.first if file == block.file else None)
        documents = block.documents[part]
        yield number, EncodedBlock(block.file, block.first + start, documents, block.samples[part])
        start += len(documents)


def write_unit(
    number: int, found: Iterable[EncodedBlock], planned: Plan, valid_fraction: float, folder: pathlib.Path
) -> None:
    """Writes the files of a unit."""
    unit = staging.Unit(valid_fraction)
    samples: list[report.Sample] = []
    for block in sorted(found, key=operator.itemgetter(0, 1)):
        for document in block.documents:
            unit.add(document)
        samples = report.samples([*samples, *block.samples])
    if number == 0:
        unit.give_valid_one()
    last = number == len(planned.ends_U) - 1
    unit.write(folder, number, positions=[planned.positions_U[number]], samples=samples, last=last)
