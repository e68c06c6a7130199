"""The shards folder: tokenised documents in ArrayRecord files, with random access to each.

    manifest.json                           counts, checksums, vocabulary, source, settings
    vocab.txt  tokenizer.json
    {train,valid}-00000-of-00007.array_record
    {train,valid}-lengths.npy               number of tokens of each document, in shard order

A record is one document: the number of sentences, where each begins, and the token ids (without [CLS]
and [SEP]). All documents of a split, one after another, are its *stream*. The lengths file is the index
that locates every example at every sequence length, so one preparation serves all sequence lengths.

Axes: D documents, N sentences of one document, T tokens.
"""

import bisect
import functools
import hashlib
import itertools
import json
import pathlib
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from bert_fast import BadInput, command

FORMAT = 1
SPLITS = ("train", "valid")


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
    """The document in a record, as `int32` arrays."""
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


def read_manifest(folder: str | pathlib.Path) -> dict:
    """The manifest of a shards folder. Raises BadInput if there is none or it has another format."""
    path = pathlib.Path(folder) / "manifest.json"
    if not path.is_file():
        raise BadInput(
            f"no manifest.json in {folder}: expected a folder made by `{command()} prepare "
            f"--source=... --out={folder}` (the same command continues an unfinished one)"
        )
    manifest = json.loads(path.read_text())
    if manifest.get("format") != FORMAT:
        raise BadInput(f"{path} has format {manifest.get('format')!r}, but this version reads {FORMAT}: prepare again")
    return manifest


def verify(folder: str | pathlib.Path) -> dict:
    """The manifest, after checking that every file it lists is undamaged.

    Raises BadInput naming the first file that is missing, truncated or changed.
    """
    folder = pathlib.Path(folder)
    manifest = read_manifest(folder)
    remedy = "delete the folder and prepare again, or restore the file from an undamaged copy"
    for split in manifest["splits"].values():
        for entry in [*split["shards"], split["lengths"]]:
            path = folder / entry["file"]
            if not path.is_file():
                raise BadInput(f"{path} is missing, but the manifest lists it: {remedy}")
            if (size := path.stat().st_size) != entry["bytes"]:
                raise BadInput(f"{path} has {size} bytes, expected {entry['bytes']}: {remedy}")
            if (digest := sha256(path)) != entry["sha256"]:
                raise BadInput(f"{path} has sha256 {digest[:12]}..., expected {entry['sha256'][:12]}...: {remedy}")
    if (digest := sha256(folder / "vocab.txt")) != manifest["vocab"]["sha256"]:
        raise BadInput(
            f"{folder / 'vocab.txt'} has sha256 {digest[:12]}..., but the shards were made with "
            f"{manifest['vocab']['sha256'][:12]}...: restore that vocabulary, or prepare again"
        )
    return manifest


class Split:
    """One split of a shards folder: `split[d]` is document d; `lengths_D` holds the token counts.

    Readers are opened on first use and left out of pickles, so a split can be sent to loader processes.
    """

    def __init__(self, folder: str | pathlib.Path, split: str):
        self.folder = pathlib.Path(folder)
        manifest = read_manifest(folder)
        entry = manifest["splits"][split]
        self.name = split
        self.dtype = manifest["token_dtype"]
        self.files = [shard["file"] for shard in entry["shards"]]
        self.firsts = [0, *itertools.accumulate(shard["documents"] for shard in entry["shards"])]
        self.lengths_D = np.load(self.folder / entry["lengths"]["file"], mmap_mode="r")
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
        shard = bisect.bisect_right(self.firsts, document) - 1
        if shard not in self._readers:
            # Without these options, the reader keeps a read-ahead thread pool for each file.
            options = "readahead_buffer_size:0,max_parallelism:0"
            self._readers[shard] = ArrayRecordReader(str(self.folder / self.files[shard]), options)
        (record,) = self._readers[shard].read([document - self.firsts[shard]])
        return decode(record, self.dtype)
