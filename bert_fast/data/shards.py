"""The shards folder: tokenised documents in ArrayRecord files, with random access to each.

    manifest.json                           counts, checksums, vocabulary, source, settings; sealed (sealed.py)
    vocab.txt  tokenizer.json
    {train,valid}-00000-of-00007.array_record
    {train,valid}-lengths.npy               number of tokens of each document, in shard order

A record is one document: the number of sentences, where each begins, and the token ids (without [CLS]
and [SEP]). All documents of a split, one after another, are its *stream*. The lengths file is the index
that locates every example at every sequence length, so one preparation serves all sequence lengths.

A folder may also be in a bucket. Then fetched.py makes a local copy, and the copy is read.

Axes: D documents, N sentences of one document, T tokens.
"""

import bisect
import functools
import hashlib
import io
import itertools
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from bert_fast import BadInput, command
from bert_fast.data import fetched, sealed, vocab

FORMAT = 2
UNSEALED = 1  # this format had no seal, and no hash of the text
SPLITS = ("train", "valid")
REMEDY = "restore it from an undamaged copy, or delete the folder and prepare again"
# The keys that a manifest must have, and the types of their values. A list here has one entry: the type of every item.
_FILE = {"file": str, "sha256": str, "bytes": int}
_SPLIT = {"shards": [{**_FILE, "documents": int}], "lengths": _FILE, "tokens": int}
_VOCAB = {"size": int, "sha256": str, "cased": bool, "strip_accents": (bool, type(None)), "special_ids": dict}
_MANIFEST = {"fingerprint": str, "token_dtype": str, "vocab": _VOCAB, "splits": dict.fromkeys(SPLITS, _SPLIT)}


class Document(NamedTuple):
    """Token ids of one document, and where its sentences begin (the first at 0)."""

    tokens_T: np.ndarray
    starts_N: np.ndarray


def encode(document: Document, dtype: str) -> bytes:
    """The record of a document. `dtype` is the type of a token id: `uint16` or `uint32`."""
    count = np.array([len(document.starts_N)], "<u4")
    starts_N = np.asarray(document.starts_N, "<u4")
    return count.tobytes() + starts_N.tobytes() + np.asarray(document.tokens_T, dtype).tobytes()


def decode(record: bytes, dtype: str) -> Document:
    """The document in a record, as `int32` arrays. Raises ValueError if the record is too short."""
    (count,) = np.frombuffer(record, "<u4", 1)
    starts_N = np.frombuffer(record, "<u4", count, 4)
    tokens_T = np.frombuffer(record, dtype, -1, 4 + 4 * int(count))
    return Document(tokens_T.astype(np.int32), starts_N.astype(np.int32))


def token_dtype(vocab_size: int) -> str:
    """The narrowest type that holds every id of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def sha256(path: pathlib.Path) -> str:
    """Checksum of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: pathlib.Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}


def fingerprint(vocabulary: str, checksums: Iterable[str]) -> str:
    """A hash that identifies the content of a shards folder, from the checksums of its vocabulary and shards."""
    return hashlib.sha256("".join([vocabulary, *checksums]).encode()).hexdigest()


def _fits(value, expected) -> bool:
    """Whether a JSON value has the types of `expected`, such as `_MANIFEST`. The value may have more keys."""
    if isinstance(expected, dict):
        return isinstance(value, dict) and all(key in value and _fits(value[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return isinstance(value, list) and all(_fits(one, expected[0]) for one in value)
    return isinstance(value, expected)


def read_manifest(folder: str | pathlib.Path) -> dict[str, Any]:
    """The manifest of a shards folder. Raises BadInput if it is missing, damaged, or of another format."""
    path = fetched.manifest(folder)
    if not path.is_file():
        raise BadInput(
            f"no manifest.json in {folder}: expected a folder made by `{command()} prepare "
            f"--source=... --out={folder}` (the same command continues an unfinished one)"
        )
    manifest = sealed.read(path, REMEDY, (UNSEALED,))
    if (number := manifest.get("format")) not in (UNSEALED, FORMAT):
        raise BadInput(f"{path} has format {number!r}, but this version reads {UNSEALED} and {FORMAT}: prepare again")
    if not _fits(manifest, _MANIFEST) or manifest["token_dtype"] != token_dtype(manifest["vocab"]["size"]):
        raise BadInput(f"{path} is damaged: it lacks keys of a manifest, or has values of the wrong type: {REMEDY}")
    checksums = [shard["sha256"] for split in SPLITS for shard in manifest["splits"][split]["shards"]]
    if manifest["fingerprint"] != fingerprint(manifest["vocab"]["sha256"], checksums):
        raise BadInput(
            f"{path} is damaged: its fingerprint does not match the vocabulary and shards that it lists: {REMEDY}"
        )
    return manifest


def verify(folder: str | pathlib.Path) -> dict[str, Any]:
    """The manifest, after checking that every file it lists is undamaged.

    Raises BadInput naming the first file that is missing, truncated or changed.
    """
    copy = fetched.folder(folder)
    try:
        return _verified(copy)
    except BadInput:
        if not fetched.repaired(folder):
            raise
    return _verified(copy)


def _verified(folder: pathlib.Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    for entry in fetched.listed(manifest):
        path = folder / entry["file"]
        if not path.is_file():
            raise BadInput(f"{path} is missing, but the manifest lists it: {REMEDY}")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise BadInput(f"{path} has {size} bytes, expected {entry['bytes']}: {REMEDY}")
        if (digest := sha256(path)) != entry["sha256"]:
            raise BadInput(f"{path} has sha256 {digest[:12]}..., expected {entry['sha256'][:12]}...: {REMEDY}")
    vocab.from_json(manifest["vocab"], folder / "vocab.txt")
    return manifest


def read_lengths(path: pathlib.Path, expected: str, remedy: str = REMEDY) -> np.ndarray:
    """The token counts of documents. Raises BadInput if the file does not have the expected sha256."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): {remedy}") from error
    if (digest := hashlib.sha256(content).hexdigest()) != expected:
        raise BadInput(f"{path} has sha256 {digest[:12]}..., expected {expected[:12]}...: {remedy}")
    return np.load(io.BytesIO(content))


class Split:
    """One split of a shards folder: `split[d]` is document d; `lengths_D` holds the token counts.

    Readers are opened on first use and left out of pickles, so a split can be sent to loader processes.
    """

    def __init__(self, folder: str | pathlib.Path, split: str):
        self.folder = fetched.folder(folder)
        manifest = read_manifest(self.folder)
        entry = manifest["splits"][split]
        self.name = split
        self.dtype = manifest["token_dtype"]
        self.files = [shard["file"] for shard in entry["shards"]]
        self.firsts = [0, *itertools.accumulate(shard["documents"] for shard in entry["shards"])]
        lengths = entry["lengths"]
        self.lengths_D = read_lengths(
            self.folder / lengths["file"], lengths["sha256"]
        )  # the file may have changed since `verify`
        self._readers: dict[int, ArrayRecordReader] = {}

    def __getstate__(self):
        return self.__dict__ | {"_readers": {}}

    def __len__(self):
        return len(self.lengths_D)

    @functools.cached_property
    def ends_D(self) -> np.ndarray:
        """Stream position at which each document ends."""
        return np.cumsum(self.lengths_D, dtype=np.int64)

    def __getitem__(self, document: int) -> Document:
        """Raises BadInput if the document cannot be read, or if its number of tokens differs from `lengths_D`."""
        shard = bisect.bisect_right(self.firsts, document) - 1
        path = self.folder / self.files[shard]
        try:
            if shard not in self._readers:
                # Without these options, the reader keeps a read-ahead thread pool for each file.
                options = "readahead_buffer_size:0,max_parallelism:0"
                self._readers[shard] = ArrayRecordReader(str(path), options)
            (record,) = self._readers[shard].read([document - self.firsts[shard]])
            found = decode(record, self.dtype)
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if "Too many open files" in str(error):
                raise BadInput(
                    f"{path} cannot be opened ({reason}): raise the limit on open files with `ulimit -n`"
                ) from error
            raise BadInput(f"{path} is damaged at document {document} ({reason}): {REMEDY}") from error
        if len(found.tokens_T) != self.lengths_D[document]:
            raise BadInput(
                f"{path} is damaged: document {document} has {len(found.tokens_T)} tokens, expected "
                f"{self.lengths_D[document]}: {REMEDY}"
            )
        return found
