"""Reads the input texts of the command `predict`: TSV in GLUE's format, JSON Lines, or SQuAD's JSON."""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.tasks import squad
from bert_fast.train.description import TaskHead
from bert_fast.train.log import counted

# Column names to try if a file lacks the task's own, by the number of texts per row.
GENERIC = {
    1: (("sentence",), ("text",)),
    2: (("sentence1", "sentence2"), ("text_a", "text_b"), ("premise", "hypothesis")),
}
SUFFIXES = ".tsv, .jsonl, or (for questions) SQuAD's .json or .json.gz"


class Inputs(NamedTuple):
    """The one or two texts of each row, and the question ids if the file has them."""

    texts_N: list[tuple[str, ...]]
    ids_N: list[str] | None


class Line(NamedTuple):
    """A row of a file: its place, for error messages, and its cells by column name."""

    place: str
    cells: dict[str, object]


def read(path: str, task: TaskHead, columns: Sequence[str] = ()) -> Inputs:
    """The rows of a file, in order. `columns` are the names of the text columns; if empty, `choose` finds them.

    Raises BadInput, with the file and the line, if a row cannot be used.
    """
    file = pathlib.Path(path)
    if file.name.endswith((".json", ".json.gz")):
        if task.kind != "span":
            raise BadInput(
                f"--data={path}: SQuAD's JSON holds questions, which {task.name} does not answer: give a .tsv or .jsonl"
            )
        if columns:
            raise BadInput(f"--columns={','.join(columns)}: SQuAD's JSON has no columns: leave out --columns")
        lines = [
            Line(place, {"id": question["id"], "question": question["question"], "context": context})
            for place, question, context in squad.asked(path)
        ]
        columns = ("question", "context")
    elif file.suffix in (".tsv", ".jsonl"):
        text = decoded(file)
        lines = from_tsv(text, path) if file.suffix == ".tsv" else from_json_lines(text, path)
    else:
        raise BadInput(f"--data={path}: unknown suffix {file.suffix!r}: expected {SUFFIXES}")
    if not lines:
        raise BadInput(f"{path} holds no rows: there is nothing to predict")
    chosen = choose(task, list(lines[0].cells), columns, path)
    texts_N = [tuple(text_of(line, column) for column in chosen) for line in lines]
    has_ids = task.kind == "span" and "id" in lines[0].cells
    return Inputs(texts_N, [str(line.cells.get("id", "")) for line in lines] if has_ids else None)


def decoded(file: pathlib.Path) -> str:
    """The text of a file. Raises BadInput if it cannot be read or is not UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: not UTF-8 at byte {error.start}: convert it (iconv -t UTF-8)") from error
    except OSError as error:
        raise BadInput(f"--data={file} cannot be read ({error.strerror}): expected {SUFFIXES}") from error


def split_lines(text: str) -> list[str]:
    """Lines without their line ends. `str.splitlines` would also split at U+2028, which a text may contain."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def from_tsv(text: str, path: str) -> list[Line]:
    """The rows below the header line, tab-separated and without quoting, as in GLUE.

    Raises BadInput if two columns have the same name, or if a row has the wrong number of fields.
    """
    head, *rest = [line.split("\t") for line in split_lines(text)] or [[""]]
    if twice := sorted({name for name in head if head.count(name) > 1}):
        raise BadInput(f"{path}, line 1: the column {twice[0]!r} occurs twice: rename one")
    lines = []
    for number, row in enumerate(rest, 2):
        if len(row) != len(head):
            raise BadInput(
                f"{path}, line {number}: {counted(len(row), 'field')}, but the header has "
                f"{counted(len(head), 'column')}: correct the line; a text must not contain a tab"
            )
        lines.append(Line(f"{path}, line {number}", dict(zip(head, row, strict=True))))
    return lines


def from_json_lines(text: str, path: str) -> list[Line]:
    """The rows of JSON Lines: one JSON object per line. Raises BadInput for any other line."""
    lines = []
    for number, line in enumerate(split_lines(text), 1):
        place = f"{path}, line {number}"
        try:
            cells = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{place}: not JSON ({error}): expected one object per line") from error
        if not isinstance(cells, dict):
            raise BadInput(f"{place}: a {type(cells).__name__}, expected one object per line")
        lines.append(Line(place, cells))
    return lines


def choose(task: TaskHead, there: Sequence[str], columns: Sequence[str], path: str) -> tuple[str, ...]:
    """The text columns: --columns if given, else the task's own, else generic ones.

    Raises BadInput if the file lacks them, or if several generic names fit.
    """
    listed, count = ", ".join(map(repr, there)), len(task.columns)
    own = ",".join(task.columns)
    if columns:
        if len(columns) != count or len(set(columns)) < count:
            raise BadInput(
                f"--columns={','.join(columns)}: {task.name} takes {counted(count, 'column')} ({own}): name exactly "
                f"{count}, each once"
            )
        if missing := [name for name in columns if name not in there]:
            raise BadInput(f"{path} has no column {missing[0]!r}; it has {listed}: correct --columns")
        return tuple(columns)
    if all(name in there for name in task.columns):
        return task.columns
    generic = GENERIC[count] if task.kind != "span" else ()
    found = [names for names in generic if all(name in there for name in names)]
    if len(found) == 1:
        return found[0]
    remedy = f"name the text columns with --columns={','.join('AB'[:count])}"
    if found:
        raise BadInput(
            f"{path}: the texts may be in {' or in '.join(map(','.join, found))}; the file has {listed}: {remedy}"
        )
    raise BadInput(f"{path} has no columns {own}, which {task.name} uses; it has {listed}: {remedy}")


def text_of(line: Line, column: str) -> str:
    """The text in a cell. Raises BadInput if the cell is missing, empty, or not a text."""
    if column not in line.cells:
        raise BadInput(f"{line.place}: no {column!r}, found {', '.join(map(repr, line.cells))}: add it to the line")
    text = line.cells[column]
    if not isinstance(text, str):
        raise BadInput(f"{line.place}: {column!r} is {text!r:.50}, expected a text: correct the line")
    if not text.strip():
        raise BadInput(f"{line.place}: the text {column!r} is empty: fill it in, or remove the line")
    return text
