"""Reads the input of the command `predict`: CSV, TSV, JSON Lines, SQuAD's JSON, or (for tags) CoNLL files."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.tasks import conll, squad, tables
from bert_fast.tasks.settings import OWN
from bert_fast.tasks.tables import Line
from bert_fast.train.description import TaskHead
from bert_fast.train.log import counted

# Column names to try if a file lacks the task's own, by the number of texts per row.
GENERIC = {
    1: (("sentence",), ("text",)),
    2: (("sentence1", "sentence2"), ("text_a", "text_b"), ("premise", "hypothesis")),
}


class Inputs(NamedTuple):
    """The texts of each row, or the tokens of each sentence; and the question ids if the file has them."""

    texts_N: list[tuple[str, ...]]
    ids_N: list[str] | None


def read(path: str, task: TaskHead, columns: Sequence[str] = ()) -> Inputs:
    """The rows of a file, in order. `columns` are the names of the text columns; if empty, `choose` finds them.

    Raises BadInput, with the file and the line, if a row cannot be used.
    """
    file = pathlib.Path(path)
    if task.kind == "tags":
        return Inputs([sentence.tokens for sentence in conll.to_tag(file, task, columns)], None)
    if file.name.endswith((".json", ".json.gz")):
        if task.kind != "span":
            raise BadInput(
                f"--data={path}: SQuAD's JSON holds questions, which {task.name} does not answer: give a .csv, .tsv or "
                ".jsonl"
            )
        if columns:
            raise BadInput(f"--columns={','.join(columns)}: SQuAD's JSON has no columns: leave out --columns")
        lines = [
            Line(place, {"id": question["id"], "question": question["question"], "context": context})
            for place, question, context in squad.asked(path)
        ]
        columns = ("question", "context")
    else:
        lines = tables.read(file, "--data", quoted=task.name == OWN)
    if not lines:
        raise BadInput(f"{path} holds no rows: there is nothing to predict")
    chosen = choose(task, list(lines[0].cells), columns, path)
    texts_N = [tuple(tables.text_of(line, column) for column in chosen) for line in lines]
    has_ids = task.kind == "span" and "id" in lines[0].cells
    return Inputs(texts_N, [str(line.cells.get("id", "")) for line in lines] if has_ids else None)


def choose(task: TaskHead, there: Sequence[str], columns: Sequence[str], path: str) -> tuple[str, ...]:
    """The text columns: --columns if given, else the task's own, else generic ones.

    Raises BadInput if the file lacks these columns, or if more than one set of generic names fits.
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
