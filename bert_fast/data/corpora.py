"""Sources of text. A corpus lists its parts, and streams the documents of each part.

    docs                                   the documentation installed with Python and its packages (docs.py)
    files:GLOB                             .txt, .jsonl and .parquet files, each optionally gzipped (.gz)
    hf:ORG/NAME[/CONFIG]:SPLIT[:COLUMN]    a data set of the Hugging Face Hub, or a folder (hf_datasets.py)
    tfds:NAME[/CONFIG]:SPLIT               a data set of tensorflow-datasets, prepared as ArrayRecord (tfds.py)

A document is a string with one stripped paragraph per line and no empty lines. In a `.txt` file, a blank
line ends a document. In the other formats, each record is a document. A document longer than LONGEST
characters is split into several, which bounds memory.
"""

import functools
import glob
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.data import docs, hf_datasets, parquet, tfds

LONGEST = 1 << 20  # characters
_CHUNK = 1 << 22  # bytes read at once
_BLANK = re.compile(r"\n\s*\n")
KINDS = (".txt", ".jsonl", ".parquet")


class Part(NamedTuple):
    """A file or a data set split, with the size of its text in bytes: exact for a plain .txt file, else an estimate."""

    name: str
    bytes: int


class Bad:
    """Called for each unusable document. Raises BadInput, or counts the document if `skip` is True."""

    def __init__(self, skip: bool = False):
        self.skip = skip
        self.count = 0

    def __call__(self, place: str, problem: str, remedy: str) -> None:
        if not self.skip:
            raise BadInput(f"{place}: {problem}. {remedy}, or pass --skip_bad to skip and count such documents")
        self.count += 1


class Corpus:
    """Documents in a fixed order. `identity` changes with the source, unless a file gets other text of the same size.

    stamp: maps the name of a part to a string. Another string means that the part's text, or the way it is read, may
        have changed.
    changed: returns when the source last changed, in seconds since 1970, or 0 if `identity` shows all changes.
    """

    def __init__(
        self,
        spec: str,
        identity: str,
        parts: Callable[[], list[Part]],
        read: Callable,
        stamp: Callable[[str], str] = lambda name: "",
        changed: Callable[[], float] = lambda: 0.0,
    ):
        self.spec = spec
        self.identity = identity
        self.stamp = stamp
        self.changed = changed
        self._parts = parts
        self._read = read

    @functools.cached_property
    def parts(self) -> list[Part]:
        return self._parts()

    def documents(self, part: Part, bad: Bad) -> Iterator[str]:
        """The cleaned documents of one part. Unusable documents are reported to `bad`."""
        try:
            for text in self._read(part.name, bad):
                if not is_unicode(text):
                    bad(part.name, "not UTF-8", "Convert it")
                    continue
                text = "\n".join(filter(None, map(str.strip, text.split("\n"))))
                while len(text) > LONGEST:
                    piece, text = cut(text)
                    yield piece
                if text:
                    yield text
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            bad(part.name, f"the gzip file is truncated or damaged ({error})", "Copy or download it again")


def open_corpus(
    spec: str, *, text_key: str = "text", tfds_data_dir: str | None = None, processes: int | None = None
) -> Corpus:
    """The corpus that `spec` names. `text_key` is the field of a record that holds the text.

    Raises BadInput for an unknown kind of source, a pattern that matches no file, an unsupported file
    type, an empty corpus, and a data set that does not exist or whose preparation needs a missing package.
    """
    kind, _, rest = spec.partition(":")
    if spec == "docs":

        def collected() -> list[Part]:
            path = docs.cached(processes or default_processes())
            return [Part(str(path), path.stat().st_size)]

        return Corpus(spec, docs.version(), collected, _read_text)
    if kind == "files" and rest:
        return _files(spec, rest, text_key)
    if kind == "tfds" and rest:
        source = tfds.source(rest, tfds_data_dir)
        part = Part(rest, source.bytes)
        return Corpus(
            spec, source.identity, lambda: [part], lambda name, bad: source.read(text_key, bad), lambda name: text_key
        )
    if kind == "hf" and rest:
        source = hf_datasets.source(rest, text_key)
        parts = [Part(name, size) for name, size in source.files.items()]
        local = [str(path) for path in source.local]

        def changed() -> float:
            return max(map(last_change, local), default=0.0)

        return Corpus(
            spec,
            source.identity,
            lambda: parts,
            source.read,
            lambda name: f"changed at {changed()} {text_key}",
            changed,
        )
    raise BadInput(
        f"--source={spec}: expected docs, files:GLOB, hf:ORG/NAME[/CONFIG]:SPLIT[:COLUMN] or tfds:NAME[/CONFIG]:SPLIT"
    )


def cut(text: str) -> tuple[str, str]:
    """Cuts a text in two at the last line end within LONGEST characters, else at the last space, else at LONGEST."""
    at = max(text.rfind("\n", 1, LONGEST), 0) or max(text.rfind(" ", 1, LONGEST), 0) or LONGEST
    return text[:at], text[at:].lstrip()


def _files(spec: str, pattern: str, text_key: str) -> Corpus:
    paths = sorted(path for path in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(path))
    if not paths:
        hint = f"; it is a folder: files:{pattern}/*.txt matches the .txt files in it" if os.path.isdir(pattern) else ""
        raise BadInput(f"--source={spec}: no file matches {pattern} (from {os.getcwd()}){hint}")
    for path in paths:
        if not path.removesuffix(".gz").endswith(KINDS):
            raise BadInput(f"{path}: expected a name that ends in {', '.join(KINDS)}, optionally followed by .gz")
    try:
        parts = [Part(path, _text_bytes(path)) for path in paths]
    except PermissionError as error:
        raise BadInput(
            f"{error.filename}: no permission to read it: make it readable (chmod), or exclude it from the pattern"
        ) from error
    if not any(part.bytes for part in parts):
        raise BadInput(f"--source={spec}: all {len(parts)} files are empty (the first: {paths[0]}): expected text")
    identity = hashlib.sha256(json.dumps([(path, os.path.getsize(path)) for path in paths]).encode()).hexdigest()

    def read(path: str, bad: Bad) -> Iterator[str]:
        name = path.removesuffix(".gz")
        if name.endswith(".parquet"):
            return parquet.read(path, text_key, bad)
        return _read_jsonl(path, text_key, bad) if name.endswith(".jsonl") else _read_text(path, bad)

    def stamp(path: str) -> str:
        key = "" if path.removesuffix(".gz").endswith(".txt") else text_key
        return f"{os.path.getsize(path)} bytes, changed at {os.stat(path).st_mtime} {key}".strip()

    return Corpus(spec, identity[:16], lambda: parts, read, stamp, lambda: max(map(last_change, paths)))


def last_change(path: str) -> float:
    """When a file was last written, moved or replaced, in seconds since 1970."""
    found = os.stat(path)
    return max(found.st_mtime, found.st_ctime)  # a file that replaces another keeps its own modification time


def _text_bytes(path: str) -> int:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if path.endswith(".gz") and size >= 18:
            # RFC 1952, section 2.3.1: the last four bytes are the size before compression, modulo 2^32.
            file.seek(-4, os.SEEK_END)
            plain = int.from_bytes(file.read(4), "little")
            while plain < size:
                plain += 1 << 32
            return plain if plain < 100 * size else 3 * size  # a truncated file ends in arbitrary bytes
    return size


def _open(path: str):
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _read_text(path: str, bad: Bad) -> Iterator[str]:
    offset, rest, text = 0, b"", ""
    with _open(path) as file:
        while chunk := file.read(_CHUNK):
            data = rest + chunk
            # Hold back only the last character, which may be incomplete. The last line could be a whole corpus.
            starts = [at for at in range(max(0, len(data) - 4), len(data)) if data[at] & 0xC0 != 0x80]
            head, rest = (data[: starts[-1]], data[starts[-1] :]) if starts else (data, b"")
            text += decode(head, path, offset, bad)
            offset += len(head)
            *whole, text = _BLANK.split(text)
            yield from whole
            while len(text) > LONGEST:
                piece, text = cut(text)
                yield piece
    yield from _BLANK.split(text + decode(rest, path, offset, bad))


def _read_jsonl(path: str, text_key: str, bad: Bad) -> Iterator[str]:
    offset = 0
    with _open(path) as file:
        for number, raw in enumerate(file, 1):
            place = f"{path}, line {number}"
            line = decode(raw, place, offset, bad)
            offset += len(raw)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # such as a number of 5,000 digits or 100,000 nested brackets
                where = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                bad(place, f"not JSON ({where})", "Fix the line")
                continue
            if not isinstance(record, dict) or text_key not in record:
                keys = sorted(record) if isinstance(record, dict) else type(record).__name__
                bad(place, f"no key {text_key!r}, found {keys}", "Use --text_key to name the key of the text")
            elif not isinstance(text := record[text_key], str):
                bad(place, f"{text_key!r} is {type(text).__name__}, expected a string", "Fix the line")
            elif not text.strip():
                bad(place, "an empty document", "Remove the line")
            elif not is_unicode(text):
                bad(place, f"{text_key!r} has half of a surrogate pair, which is not a character", "Fix the line")
            else:
                yield text


def decode(data: bytes, place: str, offset: int, bad: Bad) -> str:
    """Decodes bytes that begin at `offset` of a file. With `bad.skip`, bytes that are not UTF-8 become surrogates."""
    if offset == 0 and data.startswith(b"\xef\xbb\xbf"):
        data, offset = data[3:], 3
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if not bad.skip:
            byte = data[error.start]
            bad(place, f"not UTF-8: byte 0x{byte:02x} at offset {offset + error.start}", "Convert it (iconv -t UTF-8)")
        return data.decode(errors="surrogateescape")


def is_unicode(text: str) -> bool:
    """Whether a text has only characters. JSON and undecodable bytes can give halves of surrogate pairs instead."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def default_processes() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
