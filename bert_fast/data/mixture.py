"""One stream of documents from one or more sources, which are read one after another or mixed by given shares of text.

    files:a/*.txt                               all of it
    files:a/*.txt  hf:ORG/NAME:train            all of the first, then all of the second
    0.7*files:a/*.txt  0.3*hf:ORG/NAME:train    mixed

In a mixture, shares are counted in bytes. The next document comes from the source that has been read least in
proportion to its share; in a tie, it comes from the first of the tied sources. So a source is never more than one
document above its share of the text so far. Without `repeat`, no document is read twice: the mixture ends when it is
the turn of a source that has no documents left. With `repeat`, that source starts again, and the mixture ends when
every source has been read to its end at least once.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.data.corpora import Bad, Corpus, open_corpus

_WEIGHTED = re.compile(r"\s*([0-9.eE+-]+)\s*\*\s*(\S.*)", re.DOTALL)


class Position(NamedTuple):
    """How far a source has been read.

    text: a hash of all documents up to here (see `follow`). before: the same hash at the beginning of this part.
    """

    part: int = 0
    documents: int = 0  # read from this part, in this pass
    passes: int = 0  # finished passes over the source
    total: int = 0  # documents read in all passes; bytes and skipped also count all passes
    bytes: int = 0
    skipped: int = 0
    before: str = ""
    text: str = ""


def digest(document: bytes) -> bytes:
    """A hash of a document's text."""
    return hashlib.blake2b(document, digest_size=8).digest()


def follow(text: str, document: bytes) -> str:
    """The hash of a text after one more document. text: the hash so far. document: the document's `digest`."""
    return digest(bytes.fromhex(text) + document).hex()


class Reader:
    """Reads a source from a position. `position` moves to the end of the last document that was returned."""

    def __init__(self, source: Corpus, position: Position, skip_bad: bool):
        self.source, self.position = source, position
        self._bad = Bad(skip_bad)
        self._texts = self._read(position)

    def next(self) -> str | None:
        """The next document. At the end, returns None and moves the position to the beginning, with one more pass."""
        text = next(self._texts, None)
        if text is None:
            if not self.position.total:
                raise BadInput(f"--source={self.source.spec} has no documents: expected text")
            self.position = self.position._replace(
                part=0,
                documents=0,
                passes=self.position.passes + 1,
                skipped=self._bad.count,
                before=self.position.text,
            )
            self._texts = self._read(self.position)
        return text

    def _read(self, start: Position) -> Iterator[str]:
        self._bad.count = start.skipped
        hashed = start.before
        if start.documents and start.part >= len(self.source.parts):
            self._compare(self.source.spec, start, "")
        for number in range(start.part, len(self.source.parts)):
            part, before, documents = self.source.parts[number], hashed, 0
            skip = start.documents if number == start.part else 0
            for documents, text in enumerate(self.source.documents(part, self._bad), 1):
                raw = text.encode()
                hashed = follow(hashed, digest(raw))
                if documents == skip:
                    self._bad.count = start.skipped  # start.skipped includes the bad documents read again
                    self._compare(part.name, start, hashed)
                if documents > skip:
                    position = self.position
                    self.position = Position(
                        part=number,
                        documents=documents,
                        passes=position.passes,
                        total=position.total + 1,
                        bytes=position.bytes + len(raw),
                        skipped=self._bad.count,
                        before=before,
                        text=hashed,
                    )
                    yield text
            if documents < skip:
                self._compare(part.name, start, "")

    def _compare(self, name: str, start: Position, text: str) -> None:
        """Raises BadInput if the documents before `start` are no longer the same. text: their hash now."""
        if text != start.text:
            raise BadInput(
                f"{name} has changed: its first {start.documents} documents, which were read before, "
                "are no longer the same. Changes after them are allowed. Restore the file, "
                "or delete the folder --out to start over"
            )


class Mixture:
    """Sources to read one after another (`shares_K` is None), or by shares of the text (`shares_K` sums to 1).

    Axis: K sources.
    """

    def __init__(self, sources: list[Corpus], shares_K: list[float] | None = None, repeat: bool = False):
        self.sources, self.shares_K, self.repeat = sources, shares_K, repeat
        self.identity = " + ".join(source.identity for source in sources)
        self.names = [source.spec for source in sources]
        if shares_K:
            self.names = [f"{share:.4g}*{name}" for share, name in zip(shares_K, self.names, strict=True)]
        self.spec = " + ".join(self.names)

    def sizes_K(self) -> list[int]:
        """Bytes of text in each source. Most are estimates."""
        return [sum(part.bytes for part in source.parts) for source in self.sources]

    def stamps_K(self) -> list[list[list[str]]]:
        """Name and stamp of each part of each source: see `Corpus`."""
        return [[[part.name, source.stamp(part.name)] for part in source.parts] for source in self.sources]

    def expected_K(self) -> list[float]:
        """Bytes of text that will be read from each source. Most are estimates."""
        sizes_K = self.sizes_K()
        if self.shares_K is None:
            return [float(size) for size in sizes_K]
        ends_K = [size / share for size, share in zip(sizes_K, self.shares_K, strict=True)]
        return [(max if self.repeat else min)(ends_K) * share for share in self.shares_K]

    def sample(self, limit: int, skip_bad: bool) -> Iterator[str]:
        """The beginning of each part of each source: at most about `limit` bytes of text, in the mixture's shares."""
        expected_K = self.expected_K()
        wanted = min(1.0, limit / max(1.0, sum(expected_K)))
        for source, size, expected in zip(self.sources, self.sizes_K(), expected_K, strict=True):
            share = min(1.0, wanted * expected / size) if size else 1.0  # `size` is 0 if unknown
            for part in source.parts:
                left = share * part.bytes if size else limit
                for text in source.documents(part, Bad(skip_bad)):
                    if (share < 1 or not size) and left <= 0:
                        break
                    left -= len(text.encode())
                    yield text


class Stream:
    """The documents of a mixture after the given positions; all of its documents if no positions are given."""

    def __init__(self, mixture: Mixture, after_K: Sequence[Position], skip_bad: bool):
        self._mixture = mixture
        after_K = after_K or [Position()] * len(mixture.sources)
        self._readers = [
            Reader(source, position, skip_bad) for source, position in zip(mixture.sources, after_K, strict=True)
        ]

    @property
    def positions_K(self) -> list[Position]:
        return [reader.position for reader in self._readers]

    def __iter__(self) -> Iterator[str]:
        while (reader := self._turn()) is not None:
            if (text := reader.next()) is not None:
                yield text

    def _turn(self) -> Reader | None:
        """The source of the next document; None at the end of the mixture."""
        ended = [reader.position.passes > 0 for reader in self._readers]
        shares_K = self._mixture.shares_K
        if shares_K is None:
            return next((reader for reader, end in zip(self._readers, ended, strict=True) if not end), None)
        if all(ended) if self._mixture.repeat else any(ended):
            return None
        read_K = [reader.position.bytes / share for reader, share in zip(self._readers, shares_K, strict=True)]
        return self._readers[read_K.index(min(read_K))]


def open_mixture(given: str | Sequence[str], repeat: bool, **options) -> Mixture:
    """The mixture of one or more sources, each with or without a weight. options: as for `open_corpus`.

    Raises BadInput where `open_corpus` does. Also raises BadInput if a weight is not positive, if only some sources
    have a weight, or if `repeat` is given without weights.
    """
    specs = [given] if isinstance(given, str) else list(given)
    found = [_WEIGHTED.fullmatch(spec) for spec in specs]
    weights = [_weight(match[0], match[1]) for match in found if match]
    if weights and len(weights) < len(specs):
        bare = next(spec for spec, match in zip(specs, found, strict=True) if not match)
        raise BadInput(f"--source={bare} has no weight, but another source has: give all of them a weight, or none")
    if repeat and not weights:
        raise BadInput("--repeat needs weights: without them, all of each source is read, once")
    sources = [open_corpus(match[2] if match else spec, **options) for spec, match in zip(specs, found, strict=True)]
    return Mixture(sources, [weight / sum(weights) for weight in weights] or None, repeat)


def _weight(spec: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise BadInput(f"--source={spec}: the weight is {text}: expected a positive number, as in 0.7*files:a/*.txt")
    return weight
