"""A fine-tuned model's predictions for new texts: the command `predict`, and the function `predict` for notebooks.

Axes: N examples, C classes or tags, S positions.
"""

import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bert_fast import BadInput, command
from bert_fast.data.files import atomic_write
from bert_fast.encoder import Encoder, load
from bert_fast.method import Method
from bert_fast.tasks import inputs, spans, tags
from bert_fast.tasks.batches import TaskExamples, choose_widths, make_examples
from bert_fast.tasks.conll import Sentence
from bert_fast.tasks.model import Head, all_logits, make_predict, no_logits, scale_of
from bert_fast.train import checkpoint
from bert_fast.train.description import Description, TaskHead
from bert_fast.train.log import counted
from bert_fast.train.report import say

WIDTHS = 4  # maximum number of batch widths: see tasks/batches.py
RUN = "lr=*,seed=*"  # pattern for the name of a run's folder: see sweep.folder_of
OUTPUTS = (".jsonl", ".tsv")
OF_TAGS = (".jsonl", ".conll")
Prediction = dict[str, Any]


def predict(encoder: Encoder, rows: Sequence[str | Sequence[str]], batch_size: int = 32) -> list[Prediction]:
    """A fine-tuned model's prediction for each row, in order. The functions `of_...` explain a prediction's keys.

    rows: for each row, one text per column of the task (`encoder.about.task.columns`); for spans, a question and its
        context; for tags, the tokens of a sentence. Long texts are truncated, or split into windows, as in fine-tuning.

    Raises BadInput if the model was not fine-tuned, or if a row has an empty text or the wrong number of texts.
    """
    task = task_of(encoder.about, encoder.folder)
    texts_N = [(row,) if isinstance(row, str) else tuple(row) for row in rows]
    for n, texts in enumerate(texts_N):
        wrong = isinstance(rows[n], str) or not texts if task.kind == "tags" else len(texts) != len(task.columns)
        if wrong or not all(isinstance(text, str) and text.strip() for text in texts):
            expected = f"{counted(len(task.columns), 'text')} per row"
            expected = "a list of tokens per row" if task.kind == "tags" else expected
            raise BadInput(
                f"row {n} is {str(rows[n])[:50]!r}: {task.name} takes {expected}, none of them empty "
                f"({', '.join(task.columns)})"
            )
    if not texts_N:
        return []
    if task.kind == "tags":
        found = of_tags(encoder, task, texts_N, batch_size)
    elif task.kind == "span":
        found = of_spans(encoder, task, texts_N, batch_size)
    else:
        made = make_examples(list(zip(*texts_N, strict=True)), None, encoder.vocab, task.seq_len)
        logits_NC = logits_of(encoder, task, made, batch_size)
        found = of_classes(task, logits_NC) if task.kind == "classes" else of_score(task, logits_NC)
    return [{"index": n, **prediction} for n, prediction in enumerate(found)]


def task_of(about: Description, folder: pathlib.Path) -> TaskHead:
    """The task of a fine-tuned model. Raises BadInput if there is none."""
    if about.task is None:
        raise BadInput(
            f"{folder} was not fine-tuned, so it has no head for predictions: run `{command()} finetune "
            f"--checkpoint={folder} ...`, then give a run that it wrote, WORKDIR/TASK/lr=R,seed=S"
        )
    return about.task


def logits_of(encoder: Encoder, task: TaskHead, rows: TaskExamples, batch_size: int) -> np.ndarray:
    """Logits of every example, on one device: [N, C], or [N, S, C] for tags and spans."""
    head, size = Head(task.kind, task.outputs), min(batch_size, len(rows.ids_N))
    step = jax.jit(make_predict(Method(), head), static_argnames="program")
    run = functools.partial(step, jax.device_put(encoder.params), program=encoder.program)
    widths = [min(width, task.seq_len) for width in choose_widths(rows.lengths_N, WIDTHS)]
    empty = no_logits(head, len(rows.ids_N), task.seq_len)
    return all_logits(run, rows, widths, size, encoder.vocab.pad, empty)


def of_classes(task: TaskHead, logits_NC: np.ndarray) -> list[Prediction]:
    """For each row, the most probable `label`, and the `probabilities` by label."""
    odds_NC = np.exp(logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True))
    shares_NC = odds_NC / odds_NC.sum(1, keepdims=True)
    return [
        {
            "label": task.labels[int(shares_C.argmax())],
            "probabilities": dict(zip(task.labels, shares_C.tolist(), strict=True)),
        }
        for shares_C in shares_NC
    ]


def of_score(task: TaskHead, logits_N1: np.ndarray) -> list[Prediction]:
    """For each row, `score`, in the unit of the labels. It may be slightly outside their range."""
    mean, deviation = scale_of(task)
    return [{"score": score} for score in (logits_N1[:, 0] * deviation + mean).tolist()]


def of_tags(encoder: Encoder, task: TaskHead, tokens_N: Sequence[tuple[str, ...]], batch_size: int) -> list[Prediction]:
    """For each sentence, its `tokens`, and `tags`, one for each token."""
    sentences = [Sentence(tokens, (), ()) for tokens in tokens_N]
    made = tags.windows(sentences, None, encoder.vocab, task.seq_len)
    said = tags.predicted(made, logits_of(encoder, task, tags.rows(made), batch_size), task.labels)
    return [{"tokens": list(tokens), "tags": tags_W} for tokens, tags_W in zip(tokens_N, said, strict=True)]


def of_spans(encoder: Encoder, task: TaskHead, texts_N: Sequence[tuple[str, ...]], batch_size: int) -> list[Prediction]:
    """For each question, an `answer` (a part of the context), and the answer's `probability` and `score`.

    Probabilities are normalised over the n best answers. The score is the sum of the start logit and the end logit.
    SQuAD 2.0 adds two keys. `none` is True if the model finds no answer; then `answer` is "". `none_minus_best` is the
    score of finding no answer, minus the score of the best span.
    """
    options = task.options
    # Questions are numbered, because an id may occur twice in a file.
    questions = [spans.Question(str(n), asked, context, (), (), False) for n, (asked, context) in enumerate(texts_N)]
    made = spans.windows(questions, encoder.vocab, task.seq_len, options["stride"], options["max_question"])
    logits_NS2 = logits_of(encoder, task, TaskExamples(made.ids, made.types, None), batch_size)
    chosen = spans.answers(
        questions,
        made,
        list(logits_NS2[..., 0]),
        list(logits_NS2[..., 1]),
        options["version"],
        n_best=options["n_best"],
        max_answer_tokens=options["max_tokens"],
        null_threshold=options["null_threshold"],
    )
    found = []
    for name in [question.id for question in questions]:
        answer = chosen.best[name]
        best = next((entry for entry in chosen.n_best[name] if entry["text"] == answer), None)
        prediction: Prediction = {"answer": answer, "probability": 0.0, "score": None}
        if best is not None:  # None if the context has no tokens
            prediction |= {"probability": best["probability"], "score": best["start_logit"] + best["end_logit"]}
        if options["version"] == "2.0":
            prediction |= {"none": answer == "", "none_minus_best": chosen.null_score_difference[name]}
        found.append(prediction)
    return found


def predict_file(path: str, data: str, out: str = "", columns: Sequence[str] = (), batch_size: int = 32) -> str:
    """A checkpoint's predictions for the rows of a file, as JSON Lines.

    out: a file for the predictions, written atomically. Its name ends in .jsonl, in .conll for tags, or in .tsv for
        other tasks. If it is given, the function returns "".

    Raises BadInput for a bad argument or row, before the first prediction. Also raises it if `out` cannot be written.
    """
    folder = find(path)
    task = task_of(checkpoint.about(folder), folder)
    target = pathlib.Path(out)
    if out:
        check_out(target, pathlib.Path(data), OF_TAGS if task.kind == "tags" else OUTPUTS)
    given = inputs.read(data, task, columns)
    found = predict(load(path), given.texts_N, batch_size)
    if given.ids_N is not None:
        found = [{"index": row["index"], "id": name, **row} for row, name in zip(found, given.ids_N, strict=True)]
    if not out:
        return json_lines(found)
    try:
        atomic_write(target, WRITERS[target.suffix](found).encode())
    except OSError as error:
        raise BadInput(f"--out={out} cannot be written ({error.strerror or error}): no partial file is left") from error
    say(f"wrote {counted(len(found), 'prediction')} of {task.name} to {out}")
    return ""


def find(path: str) -> pathlib.Path:
    """The checkpoint of a fine-tuned run. Raises BadInput for a run without weights, or a folder of several runs."""
    folder = pathlib.Path(path)
    if not (folder / "checkpoints").is_dir():
        if (folder / "result.json").is_file():
            raise BadInput(
                f"--checkpoint={path} has no weights (--config.keep=none, or the run diverged): delete this folder "
                "and repeat the finetune command with --config.keep=last"
            )
        runs = [
            str(run.parent)
            for run in sorted([*folder.glob(f"{RUN}/checkpoints"), *folder.glob(f"*/{RUN}/checkpoints")])
        ]
        if runs:
            more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
            raise BadInput(f"--checkpoint={path} is a folder of finetune runs: give one of {', '.join(runs[:3])}{more}")
    return checkpoint.find(path, say)


def check_out(out: pathlib.Path, data: pathlib.Path, suffixes: Sequence[str]):
    """Raises BadInput if predictions cannot be written to `out`."""
    if out.suffix not in suffixes:
        raise BadInput(f"--out={out}: unknown suffix {out.suffix!r}: expected {' or '.join(suffixes)}")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise BadInput(f"--out={out}: expected a file in an existing folder: create the folder, or name another file")
    if out.absolute() == data.absolute():
        raise BadInput(f"--out={out} is the same file as --data, which would be overwritten: name another file")


def json_lines(found: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


def as_tsv(found: Sequence[Mapping[str, Any]]) -> str:
    """A header and one line per row. Each label's probability has a column. Repeated white space becomes one space."""
    flat = []
    for row in found:
        shares = {f"probability_{label}": share for label, share in row.get("probabilities", {}).items()}
        flat.append({**{name: value for name, value in row.items() if name != "probabilities"}, **shares})
    lines = [list(flat[0]), *(map(cell, row.values()) for row in flat)]
    return "".join("\t".join(line) + "\n" for line in lines)


def as_conll(found: Sequence[Mapping[str, Any]]) -> str:
    """A token and its tag on each line, separated by a tab, and a blank line after each sentence."""
    pairs = [[f"{token}\t{tag}\n" for token, tag in zip(row["tokens"], row["tags"], strict=True)] for row in found]
    return "".join("".join(lines) + "\n" for lines in pairs)


def cell(value: Any) -> str:
    if isinstance(value, str):
        return re.sub(r"\s+", " ", value)
    return "" if value is None else json.dumps(value)


WRITERS = {".jsonl": json_lines, ".tsv": as_tsv, ".conll": as_conll}
