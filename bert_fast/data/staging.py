"""An unfinished shards folder: units of text, each written atomically, and their assembly into shards.

.unfinished/settings.json               settings of the run, and the state of each part of its sources
.unfinished/unit-00003.json             written last: counts, checksums, and where the text continues
.unfinished/unit-00003-{train,valid}.array_record
.unfinished/unit-00003-{train,valid}.npy    number of tokens of each record
"""

import contextlib
import hashlib
import io
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from bert_fast import BadInput
from bert_fast.data import sealed, shards
from bert_fast.data.document_tokenizer import Encoded
from bert_fast.data.files import atomic_write, hold
from bert_fast.data.mixture import Position

NAME = ".unfinished"
# The settings that a later call may change, because prepare's errors about unusable text suggest changing them.
# `refuse_changed` finds parts that were read before and would now be read differently.
REMEDIES = ("skip_bad", "source_identity", "text_key")
COUNTS = ("documents", "sentences", "tokens", "unknown", "raw_bytes")


class Unit:
    """The documents between two positions of the stream. They become one shard of each split that they belong to."""

    def __init__(self, valid_fraction: float):
        self._threshold = valid_fraction * 2.0**64
        self._rows: dict[str, list[Encoded]] = {split: [] for split in shards.SPLITS}
        self.cut = 0  # documents split into several records
        self.empty = 0  # documents without tokens

    def add(self, document: Encoded) -> None:
        """Adds a document to the split chosen by the hash of its text."""
        if not document.records:
            self.empty += 1
            return
        self.cut += len(document.records) > 1
        self._rows["valid" if document.hash < self._threshold else "train"].append(document)

    def give_valid_one(self) -> None:
        """If valid is empty, moves the document with the smallest hash from train to valid.

        Does nothing if train has fewer than two documents. Called for the first unit only, so a corpus that grows at
        its end keeps its valid split.
        """
        if not self._rows["valid"] and len(self._rows["train"]) > 1:
            smallest = min(self._rows["train"], key=lambda document: document.hash)
            self._rows["train"].remove(smallest)
            self._rows["valid"].append(smallest)

    def write(self, folder: pathlib.Path, number: int, **state) -> dict:
        """Writes the records, then the lengths, then the entry that marks the unit as finished. Returns the entry."""
        entry = {"cut_documents": self.cut, "empty_documents": self.empty, **state}
        for split, rows in self._rows.items():
            path = folder / f"unit-{number:05d}-{split}.array_record"
            _write_records(path, [record for row in rows for record in row.records])
            lengths = [length for row in rows for length in row.lengths]
            content = _npy(np.array(lengths, "<i4"))
            atomic_write(path.with_suffix(".npy"), content)
            entry[split] = {
                "sha256": shards.sha256(path),
                "lengths_sha256": hashlib.sha256(content).hexdigest(),
                "bytes": path.stat().st_size,
                "documents": len(lengths),
                "sentences": sum(row.sentences for row in rows),
                "tokens": sum(lengths),
                "unknown": sum(row.unknown for row in rows),
                "raw_bytes": sum(row.raw_bytes for row in rows),
            }
        return sealed.write(folder / f"unit-{number:05d}.json", entry)


def _write_records(path: pathlib.Path, records: list[bytes]) -> None:
    partial = path.with_suffix(".partial")
    try:
        # One record per group: a flipped bit costs one document, and reading a document decompresses no other.
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    except RuntimeError as error:  # the writer never raises OSError
        partial.unlink(missing_ok=True)
        if "No space left" in str(error) or "quota" in str(error).lower():
            raise OSError(28, "No space left on device", str(path)) from error
        raise
    partial.replace(path)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def finished_units(folder: pathlib.Path) -> list[dict]:
    """Entries of the finished units, up to the first unfinished unit. Raises BadInput if an entry is damaged."""
    entries = []
    while (path := folder / f"unit-{len(entries):05d}.json").is_file():
        remedy = f"delete this file, and run the same command again: text from unit {len(entries)} on is read again"
        entries.append(sealed.read(path, remedy))
    return entries


def assemble(out: pathlib.Path, entries: list[dict]) -> dict[str, dict]:
    """Moves the units' files into place as shards. Returns the manifest's entry for each split.

    May be interrupted anywhere and called again: files already in place stay there.
    """
    splits = {}
    for split in shards.SPLITS:
        numbers = [number for number, entry in enumerate(entries) if entry[split]["documents"]]
        listed = []
        for i, number in enumerate(numbers):
            unit = out / NAME / f"unit-{number:05d}-{split}.array_record"
            shard = out / f"{split}-{i:05d}-of-{len(numbers):05d}.array_record"
            if unit.is_file():
                unit.replace(shard)
            listed.append(
                {"file": shard.name}
                | {key: entries[number][split][key] for key in ("sha256", "bytes", "documents", "tokens")}
            )
        lengths = out / f"{split}-lengths.npy"
        parts = [
            shards.read_lengths(
                out / NAME / f"unit-{number:05d}-{split}.npy",
                entries[number][split]["lengths_sha256"],
                f"delete {out} and prepare again",
            )
            for number in numbers
        ]
        atomic_write(lengths, _npy(np.concatenate([np.zeros(0, "<i4"), *parts])))
        splits[split] = {
            **{count: sum(entry[split][count] for entry in entries) for count in COUNTS},
            "shards": listed,
            "lengths": shards.file_entry(lengths),
        }
    return splits


@contextlib.contextmanager
def claimed(out: pathlib.Path, settings: dict, stamps_K: list) -> Iterator[pathlib.Path]:
    """The folder of unfinished work in `out`, locked by this process. stamps_K: see `Mixture`.

    Raises BadInput if another `prepare` is writing to it, if the work was begun with other settings or text (the
    message says which), or if `out` holds unrelated files.
    """
    folder = out / NAME
    if not folder.exists() and out.exists() and (strange := sorted(path.name for path in out.iterdir())):
        raise BadInput(f"--out={out} holds {', '.join(strange[:5])}: expected a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder / "lock", f"another prepare is writing to {out}: wait until it ends, or choose another --out"):
        for partial in out.glob("*.partial"):  # left by a killed run
            partial.unlink()
        if begun := begun_with(out):
            refuse_other(out, begun["settings"], settings, REMEDIES)
            units = finished_units(folder)
            if units:
                refuse_changed(out, units[-1]["positions"], begun["parts"], stamps_K)
            elif begun["parts"] != stamps_K or begun["settings"]["text_key"] != settings["text_key"]:
                (out / "vocab.txt").unlink(missing_ok=True)  # it was trained on different text
        sealed.write(folder / "settings.json", {"settings": settings, "parts": stamps_K})
        yield folder


def begun_with(out: pathlib.Path) -> dict | None:
    """The settings and the parts of unfinished work in `out`; None if there is none."""
    path = out / NAME / "settings.json"
    remedy = f"delete {out} and prepare again (older versions wrote this file without a checksum)"
    return sealed.read(path, remedy) if path.is_file() else None


def refuse_other(out: pathlib.Path, there: dict, asked: dict, free: tuple[str, ...] = ()) -> None:
    """Raises BadInput if `there`, the settings with which `out` was begun, differ from `asked`. Lists the differences.

    free: settings that may differ. As an exception, `skip_bad` may not go back to False.
    """
    free = tuple(key for key in free if key != "skip_bad" or asked["skip_bad"])
    keys = [key for key in sorted(there.keys() | asked.keys()) if key not in free]
    differing = [key for key in keys if there.get(key) != asked.get(key)]
    if differing:
        lines = "".join(f"\n  {key}: {there.get(key)!r} there, {asked.get(key)!r} now" for key in differing)
        raise BadInput(
            f"{out} was begun with other settings:{lines}\n"
            "Use the earlier settings, choose another --out, or delete the folder"
        )


def refuse_changed(out: pathlib.Path, positions_K: list, before_K: list, now_K: list) -> None:
    """Raises BadInput if a part that was read to its end has changed since, or would now be read differently.

    The part in which a source's position lies is compared when it is read again (mixture.py).
    """
    for position, before, now in zip(positions_K, before_K, now_K, strict=True):
        at = Position(*position)
        done = len(before) if at.passes else at.part
        for number, (name, stamp) in enumerate(before[:done]):
            current = now[number] if number < len(now) else None
            if [name, stamp] != current:
                found = "gone" if current is None else f"now {current[0]} ({current[1]})"
                raise BadInput(
                    f"{out} holds text of {name} ({stamp}), which is {found}: restore it as it was, or delete the "
                    "folder and prepare again"
                )


def forget(out: pathlib.Path) -> None:
    """Removes the folder of unfinished work from `out`."""
    shutil.rmtree(out / NAME, ignore_errors=True)
