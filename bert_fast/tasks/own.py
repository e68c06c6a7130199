"""Your own labelled files: classes or scores for single texts or pairs, or tags for tokens.

classes, score   a .csv, .tsv or .jsonl file; columns with one or two texts and a label
tags             a CoNLL or .jsonl file: see conll.py and tags.py

The names of classes and tags come from the training file. A class's number is its index in the sorted names.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bert_fast import BadInput
from bert_fast.data.shards import sha256
from bert_fast.tasks import conll, tables, tags
from bert_fast.tasks.glue import TRAIN, Examples
from bert_fast.tasks.settings import OwnFiles
from bert_fast.tasks.tables import Line

VALID, TEST = "valid", "test"


@dataclasses.dataclass(frozen=True)
class Tagged:
    """A file's sentences with tags, and their indices in the file."""

    sentences: list[conll.Sentence]
    indices: list[str]

    def take(self, chosen_N) -> "Tagged":
        return Tagged([self.sentences[i] for i in chosen_N], [self.indices[i] for i in chosen_N])


@dataclasses.dataclass(frozen=True)
class Own:
    """The content of the files.

    names: the names of the classes or tags, in the order of their numbers; () for scores.
    splits: the content of each split, as `Examples`, or as `Tagged` if the labels are tags.
    """

    names: tuple[str, ...]
    splits: Mapping[str, Any]


def checksums(files: OwnFiles, folder: str) -> dict[str, str]:
    """The sha256 of each file, by split."""
    names = {TRAIN: files.train, VALID: files.valid, TEST: files.test}
    return {split: sha256(pathlib.Path(folder) / name) for split, name in names.items() if name}


def read(files: OwnFiles, folder: str) -> Own:
    """The training file and, if given, the valid and test files. The test file's labels are not read.

    Raises BadInput, with the file and the line, for a file that cannot be used.
    """
    paths = {
        split: (pathlib.Path(folder) / name, f"--config.own.{split}")
        for split, name in ((TRAIN, files.train), (VALID, files.valid), (TEST, files.test))
        if name
    }
    if files.kind == "tags":
        return _read_tags(files, paths)
    texts, raw = {}, {}
    for split, (path, flag) in paths.items():
        lines = tables.read(path, flag, quoted=True)
        columns = [name for name in (files.text, files.pair) if name]
        _check_columns(path, lines, columns if split == TEST else [*columns, files.label])
        texts[split] = tuple([tables.text_of(line, column) for line in lines] for column in columns)
        if split != TEST:
            raw[split] = [(label_of(line, files.label), line.place) for line in lines]
    if files.kind == "score":
        names, labels = (), {split: _scores(found) for split, found in raw.items()}
        if not np.ptp(labels[TRAIN]):
            raise BadInput(f"{paths[TRAIN][0]}: every label is {raw[TRAIN][0][0]}: expected different numbers")
    else:
        names = class_names(raw[TRAIN], str(paths[TRAIN][0]))
        labels = {split: _classes(found, names) for split, found in raw.items()}
    rows = {split: [str(n) for n in range(len(columns[0]))] for split, columns in texts.items()}
    return Own(names, {split: Examples(texts[split], labels.get(split), rows[split]) for split in texts})


def _read_tags(files: OwnFiles, paths: dict[str, tuple[pathlib.Path, str]]) -> Own:
    found = {
        split: conll.read(path, flag, files.text, None if split == TEST else files.label)
        for split, (path, flag) in paths.items()
    }
    names, found[TRAIN], others = tags.prepared(found[TRAIN], [found[VALID]] if VALID in found else [])
    if others:
        found[VALID] = others[0]
    splits = {split: Tagged(part, [str(n) for n in range(len(part))]) for split, part in found.items()}
    return Own(names, splits)


def _check_columns(path: pathlib.Path, lines: Sequence[Line], columns: Sequence[str]):
    if not lines:
        raise BadInput(f"{path} holds no rows: expected a header and one row per example")
    there = list(lines[0].cells)
    for name in columns:
        if name not in there:
            listed = ", ".join(map(repr, there))
            remedy = "name the columns with the arguments text=, pair= and label= of the config"
            if len(there) == 1 and ";" in there[0]:
                remedy = "its cells are separated by semicolons: save it with commas, or as a .tsv"
            raise BadInput(f"{path} has no column {name!r}; it has {listed}: {remedy}")


def label_of(line: Line, column: str) -> str:
    """A label as text. In JSON Lines, it may also be a number or a truth value. Raises BadInput if it is empty, or a
    list or an object.
    """
    value = tables.value_of(line, column)
    if isinstance(value, list | dict):
        raise BadInput(f"{line.place}: the label {column!r} is {value!r:.50}, expected text or a number")
    text = (value if isinstance(value, str) else json.dumps(value)).strip()
    if not text or value is None:
        raise BadInput(f"{line.place}: the label {column!r} is empty: fill it in, or remove the line")
    return text


def class_names(labels: Sequence[tuple[str, str]], path: str) -> tuple[str, ...]:
    """The distinct labels: in numerical order if all are numbers, else in alphabetical order.

    labels: (label, place) of each example. Raises BadInput if the labels cannot be classes: if all are numbers and
    one is a fraction, if there is only one label, or if there are fewer than two examples per label on average.
    """
    names = {label for label, _ in labels}
    numbers = {name: _number(name) for name in names}
    if None not in numbers.values():
        for label, place in labels:
            if not float(label).is_integer():
                raise BadInput(
                    f"{place}: the label {label!r} is a fraction, and all labels are numbers: give kind=score to "
                    "predict a number; kind=classes needs names or whole numbers"
                )
    if len(names) < 2:
        raise BadInput(f"{path}: every label is {labels[0][0]!r}: expected at least two classes")
    if 2 * len(names) > len(labels):
        raise BadInput(
            f"{path}: {len(names):,} different labels in {len(labels):,} examples: kind=classes needs at least two "
            "examples per class on average: name the column of the labels with label=, or give kind=score to predict "
            "a number"
        )
    return tuple(sorted(names, key=lambda name: (numbers[name] if None not in numbers.values() else 0.0, name)))


def _number(text: str) -> float | None:
    try:
        return number if math.isfinite(number := float(text)) else None
    except ValueError:
        return None


def _classes(labels: Sequence[tuple[str, str]], names: Sequence[str]) -> np.ndarray:
    number = {name: n for n, name in enumerate(names)}
    for label, place in labels:
        if label not in number:
            some = f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
            raise BadInput(
                f"{place}: the label {label!r} does not occur in the training file, which has {some}: correct it, or "
                "add training examples with it"
            )
    return np.array([number[label] for label, _ in labels], np.int32)


def _scores(labels: Sequence[tuple[str, str]]) -> np.ndarray:
    for label, place in labels:
        if _number(label) is None:
            raise BadInput(f"{place}: the label {label!r} is not a number: give kind=classes to predict a class")
    return np.array([float(label) for label, _ in labels], np.float32)
