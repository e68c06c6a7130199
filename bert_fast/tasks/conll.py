"""Reads sentences of tokens and tags: CoNLL files and JSON Lines. Converts entity tags to the IOB2 scheme.

A CoNLL file has one token per line, in columns, and a blank line after each sentence:

    U.N.      NNP  B-ORG
    official  NN   O

Columns are separated by tabs if the line contains a tab, otherwise by spaces. A -DOCSTART- line, which begins a
document in the files of CoNLL-2003, is skipped. In JSON Lines, a line is a sentence: {"tokens": ["U.N.", "official"],
"tags": ["B-ORG", "O"]}.

In IOB2, B-X begins an entity of type X, I-X continues it, and O is outside (Tjong Kim Sang and Veenstra 1999).
"""

import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.tasks import tables
from bert_fast.tasks.tables import Line
from bert_fast.train.description import TaskHead
from bert_fast.train.log import counted

TOKENS, TAGS = "tokens", "tags"  # in a CoNLL file, the names of the first and the last column
DOCUMENT = "-DOCSTART-"
OUTSIDE = "O"


class Sentence(NamedTuple):
    """A sentence's tokens and, if known, tags. places: where each token is, for error messages."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    places: tuple[str, ...]


def read(file: pathlib.Path, flag: str, token: str, tag: str | None) -> list[Sentence]:
    """The sentences of a file: JSON Lines if it ends in .jsonl, otherwise CoNLL.

    token, tag: keys in JSON Lines; in a CoNLL file, column numbers from 1, or TOKENS (the first) and TAGS (the last).
    If `tag` is None, sentences have no tags. Raises BadInput, with the file and the line, if the file cannot be used.
    """
    text = tables.decoded(file, flag)
    if file.suffix.lower() == ".jsonl":
        found = [_from_json(line, token, tag) for line in tables.from_json_lines(text, str(file))]
    else:
        found = _from_conll(text, str(file), token, tag)
    if not found:
        raise BadInput(f"{file} holds no sentences: expected a token and a tag per line, or JSON Lines")
    return found


def to_tag(file: pathlib.Path, task: TaskHead, columns: Sequence[str]) -> list[Sentence]:
    """Reads sentences without tags, to predict their tags.

    `columns` names the column of the tokens. If it is empty, the task's own name for that column is used.
    """
    if len(columns) > 1:
        raise BadInput(f"--columns={','.join(columns)}: {task.name} takes one column of tokens: name exactly one")
    return read(file, "--data", columns[0] if columns else task.columns[0], None)


def _from_json(line: Line, token: str, tag: str | None) -> Sentence:
    tokens = _words(line, token, "tokens")
    tags = () if tag is None else _words(line, tag, "tag names")
    if tag is not None and len(tags) != len(tokens):
        raise BadInput(
            f"{line.place}: {counted(len(tokens), 'token')} but {counted(len(tags), 'tag')}: expected one tag per token"
        )
    return Sentence(tokens, tags, tuple(f"{line.place}, token {n}" for n in range(1, len(tokens) + 1)))


def _words(line: Line, key: str, what: str) -> tuple[str, ...]:
    words = tables.value_of(line, key)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise BadInput(f"{line.place}: {key!r} is {words!r:.50}, expected a list of {what}, none of them empty")
    return tuple(words)


def _from_conll(text: str, path: str, token: str, tag: str | None) -> list[Sentence]:
    rows: list[tuple[str, list[str]]] = []
    for number, line in enumerate(tables.split_lines(text), 1):
        cells = line.split("\t") if "\t" in line else line.split(" ")
        cells = [cell.strip() for cell in cells if cell or "\t" in line]
        rows.append((f"{path}, line {number}", cells))
    found, width = [], 0
    for is_blank, group in itertools.groupby(rows, lambda row: not any(row[1])):
        lines = [(place, cells) for place, cells in group if cells[:1] != [DOCUMENT]]
        if is_blank or not lines:
            continue
        width = width or len(lines[0][1])
        for place, cells in lines:
            if len(cells) != width:
                raise BadInput(
                    f"{place}: {counted(len(cells), 'column')}, but the lines before have {width}: correct the line, "
                    "or remove it if it is a comment"
                )
        token_at, tag_at = _column(token, width, lines[0][0]), _column(tag or TAGS, width, lines[0][0])
        if tag is not None and token_at == tag_at:
            raise BadInput(
                f"{lines[0][0]}: {counted(width, 'column')}, and both token and tag are in column {tag_at + 1}: "
                "expected a token and its tag on each line, separated by a tab or a space"
            )
        for place, cells in lines:
            if not cells[token_at] or (tag is not None and not cells[tag_at]):
                raise BadInput(f"{place}: the token or its tag is empty: fill it in")
        tokens = tuple(cells[token_at] for _, cells in lines)
        tags = () if tag is None else tuple(cells[tag_at] for _, cells in lines)
        found.append(Sentence(tokens, tags, tuple(place for place, _ in lines)))
    return found


def _column(name: str, width: int, place: str) -> int:
    """Index of a column that is given by number, from 1, or as TOKENS or TAGS."""
    number = {TOKENS: 1, TAGS: width}.get(name) or (int(name) if name.isdecimal() else 0)
    if not 1 <= number <= width:
        raise BadInput(
            f"{place}: no column {name!r}: a CoNLL file names no columns: give a number from 1 to {width}, or leave it "
            "out for the first (tokens) and the last (tags)"
        )
    return number - 1


def is_iob(names: Iterable[str]) -> bool:
    """Whether tags mark entities: O, B-TYPE and I-TYPE. Other tags, such as parts of speech, are plain classes."""
    return all(name == OUTSIDE or name[:2] in ("B-", "I-") for name in names)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Converts tags to IOB2: an I-X that follows neither B-X nor I-X becomes B-X.

    conlleval and seqeval find the same entities in the tags before and after the conversion.
    """
    return [
        f"B-{tag[2:]}" if tag[:2] == "I-" and before not in (f"B-{tag[2:]}", tag) else tag
        for before, tag in zip([OUTSIDE, *tags], tags, strict=False)
    ]


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first token, token after the last) of each entity in IOB2 tags."""
    found: list[tuple[str, int, int]] = []
    for n, tag in enumerate(tags):
        if tag[:2] == "B-":
            found.append((tag[2:], n, n + 1))
        elif tag[:2] == "I-":
            kind, first, _ = found[-1]
            found[-1] = (kind, first, n + 1)
    return found
