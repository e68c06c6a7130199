"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, arXiv 1606.05250, and 2018, arXiv 1806.03822): files, scores, submissions.

Files are the official JSON, optionally as .gz, or the copies in tensorflow-datasets. Scores are equal to the scores of
the official scripts, evaluate-v1.1.py and evaluate-v2.0.py.
"""

import collections
import gzip
import json
import pathlib
import re
import string
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bert_fast import BadInput
from bert_fast.data import tfds
from bert_fast.data.files import atomic_json
from bert_fast.tasks.spans import Answers, Question, Windows, answers, windows
from bert_fast.train.log import counted
from bert_fast.train.report import say

__all__ = ["VERSIONS", "Answers", "Question", "Windows", "answers", "asked", "read", "score", "windows", "write"]

VERSIONS = ("1.1", "2.0")


class _Record(NamedTuple):
    """A question as read from a file, not yet checked. `impossible` is None if the file does not state it."""

    place: str
    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    impossible: bool | None


def read(path: str, version: str, train: bool) -> list[Question]:
    """The questions of `train-v1.1.json`, `train-v1.1.json.gz` or `tfds:squad/v1.1:train`, in order.

    An answer is misplaced if the context does not have its text at `answer_start`. Raises BadInput for a training file
    with misplaced answers; the message has their number and the first of them. In a held-out file, only the texts of
    answers are scored. So misplaced answers get start -1 there, and their number is printed.

    Also raises BadInput, with the file and the question, for an unofficial layout, an empty text or a duplicate id.
    Version 1.1 needs an answer to each question. Version 2.0 needs an `is_impossible` that agrees with the answers.
    """
    if version not in VERSIONS:
        raise BadInput(f"SQuAD version {version!r}: expected one of {', '.join(VERSIONS)}")
    questions: list[Question] = []
    seen: set[str] = set()
    astray: list[str] = []
    count = 0
    for record in _from_tfds(path) if path.startswith("tfds:") else _from_json(path):
        _check(record, version)
        if record.id in seen:
            raise BadInput(f"{record.place}: this id occurs twice, but predictions are identified by it: rename one")
        seen.add(record.id)
        starts = []
        for text, start in zip(record.answers, record.starts, strict=True):
            there = start >= 0 and bool(text.strip()) and record.context.startswith(text, start)
            starts.append(start if there else -1)
            if not there:
                have = record.context[max(start, 0) : max(start, 0) + len(text)]
                astray.append(f"{record.place}: {text!r} at character {start}, but there the context has {have!r}")
        count += len(starts)
        impossible = version == "2.0" and bool(record.impossible)
        questions.append(
            Question(record.id, record.question, record.context, record.answers, tuple(starts), impossible)
        )
    if not questions:
        raise BadInput(f"{path} holds no questions: expected SQuAD {version} in its official layout")
    if astray:
        problem = f"{path}: answer_start is wrong for {len(astray):,} of {counted(count, 'answer')}"
        if train:
            raise BadInput(f"{problem}: correct them, or remove these questions. The first: {astray[0]}")
        say(f"{problem}; their texts are scored anyway. The first: {astray[0]}")
    return questions


def _check(record: _Record, version: str):
    """Raises BadInput if a question cannot be used."""
    for name, text in (("id", record.id), ("question", record.question), ("context", record.context)):
        if not text.strip():
            raise BadInput(f"{record.place}: the {name} is empty: fill it in, or remove the question")
    if version == "1.1":
        if not record.answers:
            raise BadInput(
                f"{record.place}: no answer, but in version 1.1 every question has one: for 2.0 give version=2.0"
            )
    elif record.impossible is None:
        raise BadInput(
            f"{record.place}: no 'is_impossible', but version 2.0 has it for every question: for 1.1 give version=1.1"
        )
    elif record.impossible == bool(record.answers):
        raise BadInput(
            f"{record.place}: is_impossible is {str(record.impossible).lower()}, with "
            f"{counted(len(record.answers), 'answer')}: expected answers if it is false, and none if it is true"
        )


def asked(path: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The questions of a JSON file in the official layout: (place for error messages, question object, context).

    Raises BadInput if the file cannot be read or has another layout. The message names the file and the place in it.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise BadInput(f"no file at {path}: expected SQuAD's JSON, such as train-v1.1.json or train-v1.1.json.gz")
    try:
        content = file.read_bytes()
        if file.name.endswith(".gz"):
            content = gzip.decompress(content)
        data = json.loads(content.decode("utf-8-sig"))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{path}: the gzip file is truncated or damaged ({error}): copy or download it again") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}: convert it (iconv -t UTF-8)") from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}, line {error.lineno}: not JSON ({error.msg}): copy or download it again") from error
    for a, article in enumerate(_field(data, "data", list, path)):
        for p, paragraph in enumerate(_field(article, "paragraphs", list, f"{path}, data[{a}]")):
            where = f"{path}, data[{a}].paragraphs[{p}]"
            context = _field(paragraph, "context", str, where)
            for q, question in enumerate(_field(paragraph, "qas", list, where)):
                here = f"{where}.qas[{q}]"
                for key in ("id", "question"):
                    _field(question, key, str, here)
                yield here, question, context


def _from_json(path: str) -> Iterator[_Record]:
    for place, question, context in asked(path):
        given = _field(question, "answers", list, place)
        yield _Record(
            f"{path}, question {question['id']!r}",
            question["id"],
            question["question"],
            context,
            tuple(_field(answer, "text", str, place) for answer in given),
            tuple(_field(answer, "answer_start", int, place) for answer in given),
            _field(question, "is_impossible", bool, place) if "is_impossible" in question else None,
        )


def _field(value: Any, key: str, kind: type, place: str) -> Any:
    """`value[key]`. Raises BadInput if it is missing or has another type."""
    if not isinstance(value, dict) or key not in value:
        have = ", ".join(map(repr, value)) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise BadInput(f"{place}: no {key!r}, found {have}: expected SQuAD's official layout")
    if not isinstance(value[key], kind) or (kind is int and isinstance(value[key], bool)):
        raise BadInput(f"{place}: {key!r} is {value[key]!r:.50}, expected {kind.__name__}: correct it")
    return value[key]


def _from_tfds(spec: str) -> Iterator[_Record]:
    for row in tfds.examples(spec.removeprefix("tfds:")):
        if missing := {"id", "question", "context", "answers"} - row.keys():
            raise BadInput(f"{spec}: no feature {', '.join(sorted(missing))}, found {sorted(row)}: expected SQuAD")
        name, question, context = (row[key].decode() for key in ("id", "question", "context"))
        given = row["answers"]
        yield _Record(
            f"{spec}, question {name!r}",
            name,
            question,
            context,
            tuple(text.decode() for text in given["text"]),
            tuple(map(int, given["answer_start"])),
            bool(row["is_impossible"]) if "is_impossible" in row else None,
        )


_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII punctuation only, as in the official scripts


def normalize(text: str) -> str:
    """A text in the form used to compare answers: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _scores(prediction: str | None, answers: Sequence[str], none_is_an_answer: bool) -> tuple[float, float]:
    """Exact match and F1, from 0 to 1, against the best-fitting answer.

    none_is_an_answer: "" is the only right prediction for a question without answers, and wrong for any other question.
    """
    if prediction is None:
        return 0.0, 0.0
    said, wanted = normalize(prediction), [normalize(answer) for answer in answers]
    if none_is_an_answer:
        wanted = [answer for answer in wanted if answer] or [""]
        if not all((said, *wanted)):
            return float(said in wanted), float(said in wanted)
    return float(said in wanted), max(_f1(said.split(), answer.split()) for answer in wanted)


def _f1(prediction: list[str], answer: list[str]) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it occurs in both."""
    common = (collections.Counter(prediction) & collections.Counter(answer)).total()
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(answer)
    return 2 * precision * recall / (precision + recall)


def _means(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    exact, f1 = (100 * sum(column) / len(scores) for column in zip(*scores, strict=True))
    return {"exact_match": exact, "f1": f1, "total": len(scores)}


def score(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    null_score_differences: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Exact match and F1 in percent, against the best-fitting answer to each question. A missing prediction scores 0.

    Keys: exact_match, f1, and total (the number of questions). `null_score_differences` selects the rules of version
    2.0 and adds more keys. HasAns_* and NoAns_* cover the questions with and without answers. best_exact_match and
    best_f1 are the highest values over all thresholds, and best_*_thresh are the thresholds that reach them. A question
    whose null score difference is above the threshold counts as having no answer.

    As in the official script, a prediction that is already "" stays "" at every threshold. To search higher thresholds,
    make the predictions with a higher threshold. Raises BadInput if a question has no answer and
    `null_score_differences` is None.
    """
    has_none = null_score_differences is not None
    if not has_none and (without := next((question for question in questions if not question.answers), None)):
        raise BadInput(f"question {without.id!r} has no answer: only the rules of version 2.0 can score it")
    answerable = {question.id: bool(question.answers) for question in questions}
    scores = {question.id: _scores(predictions.get(question.id), question.answers, has_none) for question in questions}
    result = _means(list(scores.values()))
    if null_score_differences is None:
        return result
    for name, wanted in (("HasAns", True), ("NoAns", False)):
        if part := [pair for key, pair in scores.items() if answerable[key] == wanted]:
            result |= {f"{name}_{metric}": value for metric, value in _means(part).items()}
    ranked = sorted((key for key in null_score_differences if key in scores), key=null_score_differences.__getitem__)
    for column, metric in enumerate(("exact_match", "f1")):
        total = best = len(scores) - sum(answerable.values())
        threshold = 0.0
        for key in ranked:  # each key is one more question that counts as having an answer
            total += scores[key][column] if answerable[key] else -bool(predictions.get(key))
            if total > best:
                best, threshold = total, null_score_differences[key]
        result |= {f"best_{metric}": 100 * best / len(scores), f"best_{metric}_thresh": threshold}
    return result


def write(folder: str | pathlib.Path, found: Answers) -> list[pathlib.Path]:
    """Writes files for the official scripts: predictions.json, nbest_predictions.json and, for 2.0, null_odds.json."""
    contents = {"predictions.json": found.best, "nbest_predictions.json": found.n_best}
    if found.null_score_difference:
        contents["null_odds.json"] = found.null_score_difference
    paths = [pathlib.Path(folder) / name for name in contents]
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    for path, content in zip(paths, contents.values(), strict=True):
        atomic_json(path, content)
    return paths
