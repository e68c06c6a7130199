"""Reads files of texts: CSV, TSV and JSON Lines. Every row records its place, for error messages."""

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.train.log import counted

SUFFIXES = (".csv", ".tsv", ".jsonl")
csv.field_size_limit(2**31 - 1)  # Python's limit of 131,072 characters is below the length of some documents


class Line(NamedTuple):
    """A row of a file: its place, for error messages, and its cells by column name."""

    place: str
    cells: dict[str, object]


def read(file: pathlib.Path, flag: str, quoted: bool) -> list[Line]:
    """The rows of a .csv, .tsv or .jsonl file, in order.

    flag: the flag that names the file, for error messages. quoted: whether a .tsv quotes its cells as a .csv does.
    Raises BadInput, with the file and the line, if the file cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInput(f"{flag}={file}: unknown suffix {file.suffix!r}: expected {' or '.join(SUFFIXES)}")
    text = decoded(file, flag)
    if suffix == ".jsonl":
        return from_json_lines(text, str(file))
    if suffix == ".csv" or quoted:
        return from_csv(text, str(file), "," if suffix == ".csv" else "\t")
    return from_tsv(text, str(file))


def decoded(file: pathlib.Path, flag: str) -> str:
    """The text of a file, without a byte-order mark. Raises BadInput if it cannot be read or is not UTF-8."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{flag}={file} cannot be read ({error.strerror}): give the path of a file") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{file}, line {line}: not UTF-8 at byte {error.start}: convert it (iconv -t UTF-8)") from error


def split_lines(text: str) -> list[str]:
    """Lines without their line ends. `str.splitlines` would also split at U+2028, which a text may contain."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def from_tsv(text: str, path: str) -> list[Line]:
    """The rows below the header, tab-separated and without quoting, as in GLUE. Raises BadInput like `from_csv`."""
    rows = [(number, line.split("\t")) for number, line in enumerate(split_lines(text), 1)]
    return _below_header(rows, path, "a text must not contain a tab")


def from_csv(text: str, path: str, delimiter: str) -> list[Line]:
    """The rows below the header, as in RFC 4180: a cell that has a delimiter, quote or line end is quoted.

    Blank lines at the end do not count. Raises BadInput, with the line, if a quote is not closed, two columns have the
    same name, or a row has the wrong number of cells.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    first = 1
    try:
        for row in reader:
            rows.append((first, row))
            first = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(
            f"{path}, line {first}: {error}: a cell that begins with a quote must end with one, and each quote inside "
            "it is written twice"
        ) from None
    while rows and not rows[-1][1]:
        rows.pop()
    if blank := next((number for number, row in rows if not row), 0):
        raise BadInput(f"{path}, line {blank}: the line is blank: remove it")
    return _below_header(rows, path, f"a text with {'a comma' if delimiter == ',' else 'a tab'} needs quotes")


def _below_header(rows: Sequence[tuple[int, list[str]]], path: str, hint: str) -> list[Line]:
    """Rows of cells as Lines; the first row has the names of the columns."""
    (_, head), *rest = rows or [(1, [""])]
    if twice := sorted({name for name in head if head.count(name) > 1}):
        raise BadInput(f"{path}, line 1: the column {twice[0]!r} occurs twice: rename one")
    lines = []
    for number, row in rest:
        if len(row) != len(head):
            raise BadInput(
                f"{path}, line {number}: {counted(len(row), 'field')}, but the header has "
                f"{counted(len(head), 'column')}: correct the line; {hint}"
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


def value_of(line: Line, column: str) -> object:
    """The content of a cell. Raises BadInput if the row has no such cell."""
    if column not in line.cells:
        raise BadInput(f"{line.place}: no {column!r}, found {', '.join(map(repr, line.cells))}: add it to the line")
    return line.cells[column]


def text_of(line: Line, column: str) -> str:
    """The text in a cell. Raises BadInput if the cell is missing, empty, or not a text."""
    text = value_of(line, column)
    if not isinstance(text, str):
        raise BadInput(f"{line.place}: {column!r} is {text!r:.50}, expected a text: correct the line")
    if not text.strip():
        raise BadInput(f"{line.place}: the text {column!r} is empty: fill it in, or remove the line")
    return text
