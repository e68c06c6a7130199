"""The nine tasks of GLUE (Wang et al. 2019, arXiv 1804.07461): their files, their metrics, their submissions.

The files have the layout that `download_glue_data.py` (gluebenchmark.com) writes. They are tab-separated, and a `"` is
ordinary text. A header names the columns; only CoLA's train and dev files have none. Some files begin with a
byte-order mark.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
import sklearn.metrics

from bert_fast import BadInput
from bert_fast.data import tfds
from bert_fast.data.files import atomic_write
from bert_fast.train.log import counted
from bert_fast.train.report import say

TRAIN = "train"


class GlueSplit(NamedTuple):
    """A held-out or test split: its name in the official files, in tensorflow-datasets, and in a submission.

    folder, config: only for a split outside the task's own folder. `folder` is next to the task's folder, and `config`
        is the split's config in tensorflow-datasets.
    """

    file: str
    tfds: str
    submission: str
    folder: str = ""
    config: str = ""


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """A task's files, columns and metrics.

    columns: names of the one or two text columns. tfds_columns: their names in tensorflow-datasets, if different.
    labels: label names in the files, in the order of their ids; empty if the labels are scores from 0 to 5.
    cut_rows: whether the official files have truncated rows. Those rows, and rows with an empty text, are left out when
        a labelled file is read. The script `glue.py` of Hugging Face's datasets also leaves out truncated rows ("filter
        out corrupted rows").
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    header: tuple[str, ...] = ()  # column names of train and dev files without a header
    index: str = "index"
    tfds: str = ""
    tfds_columns: tuple[str, ...] = ()
    cut_rows: bool = False
    held_out: tuple[GlueSplit, ...] = ()
    test: tuple[GlueSplit, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of logits of the head: one per label, or 1 for a score."""
        return max(len(self.labels), 1)


PAIR = ("sentence1", "sentence2")
BINARY = ("0", "1")
ENTAILS = ("entailment", "not_entailment")


def _task(folder: str, *args, name: str = "", **more) -> GlueTask:
    more = {"held_out": (GlueSplit("dev", "validation", folder),), "test": (GlueSplit("test", "test", folder),)} | more
    return GlueTask(folder, *args, tfds=name or folder.lower(), **more)


TASKS = {
    "cola": _task(
        "CoLA", ("sentence",), "label", BINARY, ("matthews",), header=("source", "label", "mark", "sentence")
    ),
    "sst2": _task("SST-2", ("sentence",), "label", BINARY, ("accuracy",), name="sst2"),
    "mrpc": _task("MRPC", ("#1 String", "#2 String"), "Quality", BINARY, ("f1", "accuracy"), tfds_columns=PAIR),
    "stsb": _task("STS-B", PAIR, "score", (), ("pearson", "spearman"), name="stsb"),
    "qqp": _task(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        BINARY,
        ("f1", "accuracy"),
        index="id",
        cut_rows=True,
    ),
    "mnli": _task(
        "MNLI",
        PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        tfds_columns=("premise", "hypothesis"),
        held_out=(
            GlueSplit("dev_matched", "validation_matched", "MNLI-m"),
            GlueSplit("dev_mismatched", "validation_mismatched", "MNLI-mm"),
        ),
        test=(
            GlueSplit("test_matched", "test_matched", "MNLI-m"),
            GlueSplit("test_mismatched", "test_mismatched", "MNLI-mm"),
            # GLUE's diagnostic set: a submission needs the MNLI classifier's predictions for it.
            GlueSplit("diagnostic", "test", "AX", folder="diagnostic", config="ax"),
        ),
    ),
    "qnli": _task("QNLI", ("question", "sentence"), "label", ENTAILS, ("accuracy",)),
    "rte": _task("RTE", PAIR, "label", ENTAILS, ("accuracy",)),
    "wnli": _task("WNLI", PAIR, "label", BINARY, ("accuracy",)),
}
NOT_IN_MEAN = ("wnli",)  # Devlin et al. 2019, table 1: "we exclude the problematic WNLI set"


class Examples(NamedTuple):
    """A file's texts (one or two per example), labels (ids or scores; None for a test file) and indices."""

    texts: tuple[list[str], ...]
    labels: np.ndarray | None
    indices: list[str]

    def take(self, chosen_N) -> "Examples":
        texts = tuple([column[i] for i in chosen_N] for column in self.texts)
        labels = None if self.labels is None else self.labels[chosen_N]
        return Examples(texts, labels, [self.indices[i] for i in chosen_N])


def found(data_dir: str) -> dict[str, pathlib.Path]:
    """The tasks in a folder: name -> the task's own folder. `data_dir` may also be one task's folder.

    Case, hyphens and underscores in folder names do not matter: `STS-B`, `STSB` and `sts-b` are the same task.
    Raises BadInput if there are no tasks.
    """
    root = pathlib.Path(data_dir)
    if not root.is_dir():
        raise BadInput(f"--config.data.dir={data_dir}: no such folder: expected a folder with MRPC/train.tsv and so on")
    if (root / "train.tsv").is_file():  # a single task's folder
        folders = {_plain(root.resolve().name): root}
    else:
        folders = {_plain(path.name): path for path in sorted(root.iterdir()) if (path / "train.tsv").is_file()}
    tasks = {name: folders[name] for name in TASKS if name in folders}
    if not tasks:
        expected = ", ".join(task.folder for task in TASKS.values())
        raise BadInput(
            f"--config.data.dir={data_dir} holds no task: expected one or more of {expected}, each with a train.tsv"
        )
    return tasks


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def read(name: str, data_dir: str) -> dict[str, Examples]:
    """All splits of a task, by file name: `train`, the held-out splits, and the test files that exist.

    `data_dir` is a folder of tasks, the task's own folder, or `tfds:glue`. Raises BadInput, which names file and line.
    """
    task = TASKS[name]
    splits = (*task.held_out, *task.test)
    if data_dir.startswith("tfds:"):
        base = data_dir.removeprefix("tfds:").partition("/")[0]
        examples = {TRAIN: _read_tfds(task, f"{base}/{task.tfds}:train", True)}
        specs = {split: f"{base}/{split.config or task.tfds}:{split.tfds}" for split in splits}
        return examples | {split.file: _read_tfds(task, spec, split not in task.test) for split, spec in specs.items()}
    folders = found(data_dir)
    if name not in folders:
        raise BadInput(
            f"--config.data.dir={data_dir} holds no {task.folder}/train.tsv; it has "
            f"{', '.join(TASKS[other].folder for other in folders)}"
        )
    folder = folders[name]
    examples = {TRAIN: read_tsv(task, folder / "train.tsv", True)}
    for split in splits:
        path = (folder.absolute().parent / split.folder if split.folder else folder) / f"{split.file}.tsv"
        labelled = split not in task.test
        if labelled and not path.is_file():
            raise BadInput(f"{path} is missing: {task.folder} needs {split.file}.tsv next to its train.tsv")
        if path.is_file():
            examples[split.file] = read_tsv(task, path, labelled)
    return examples


def read_tsv(task: GlueTask, path: pathlib.Path, labelled: bool) -> Examples:
    """The examples of a file in the official layout. Raises BadInput, which names file and line."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # splitlines() would also split at U+2028
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}: convert it (iconv -t UTF-8)") from error
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    if rows[-1] == [""]:
        rows.pop()
    if not rows:
        raise BadInput(f"{path} is empty: expected {task.folder} as its download script writes it")
    if task.header and labelled:
        header, first = list(task.header), 1
    else:
        header, first = rows.pop(0), 2
    wanted = [*task.columns, *([task.label] if labelled else [])]
    if missing := [column for column in wanted if column not in header]:
        raise BadInput(
            f"{path}, line 1: no column {', '.join(map(repr, missing))}; found {', '.join(map(repr, header))}: "
            f"expected {task.folder} as its download script writes it"
        )
    kept, cut = [], []
    for number, row in enumerate(rows, first):
        texts = [row[header.index(c)].strip() if header.index(c) < len(row) else "" for c in task.columns]
        problem = ""
        if len(row) != len(header):
            problem = f"{counted(len(row), 'field')}, expected {len(header)}"
        elif not all(texts):
            problem = f"the text {task.columns[texts.index('')]!r} is empty"
        if problem and not task.cut_rows:
            raise BadInput(f"{path}, line {number}: {problem}: correct the line, or download the file again")
        if problem and labelled:
            cut.append(f"line {number}: {problem}")
        else:  # a test file keeps every row: a submission needs a prediction for each
            kept.append((number, row, texts))
    if len(cut) * 1000 > len(rows):
        raise BadInput(
            f"{path}: {len(cut)} of {len(rows):,} rows cannot be used (the first: {cut[0]}), but the official file has "
            "fewer than one such row in a thousand: download it again"
        )
    if cut:
        say(f"{path}: left out {len(cut)} of {len(rows):,} rows that cannot be used (the first: {cut[0]})")
    if not kept:
        raise BadInput(f"{path} holds no examples: expected {task.folder} as its download script writes it")
    at = header.index(task.label) if labelled else 0
    labels = [label_of(task, row[at], f"{path}, line {number}") for number, row, _ in kept] if labelled else None
    index = header.index(task.index) if task.index in header else None
    indices = [row[index] if index is not None else str(n) for n, (_, row, _) in enumerate(kept)]
    return Examples(*_columns([texts for *_, texts in kept], labels, indices, task))


def label_of(task: GlueTask, text: str, place: str) -> int | float:
    """A label's id, or a score. Raises BadInput for a label that the task does not have."""
    if task.labels:
        if text not in task.labels:
            raise BadInput(f"{place}: label {text!r} is not one of {task.folder}'s labels: {', '.join(task.labels)}")
        return task.labels.index(text)
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 5:
        raise BadInput(f"{place}: score {text!r}: expected a number from 0 to 5")
    return score


def _columns(texts: Sequence[Sequence[str]], labels, indices: list[str], task: GlueTask):
    dtype = np.int32 if task.labels else np.float32
    return tuple(map(list, zip(*texts, strict=True))), None if labels is None else np.array(labels, dtype), indices


def _read_tfds(task: GlueTask, spec: str, labelled: bool) -> Examples:
    """The examples of a tensorflow-datasets split. Its label ids follow the order of `GlueTask.labels`."""
    texts, labels, indices = [], [], []
    for number, row in enumerate(tfds.examples(spec)):
        columns = [row[column] for column in task.tfds_columns or task.columns]
        columns = [text.decode() if isinstance(text, bytes) else text for text in columns]
        if labelled and not all(text.strip() for text in columns):
            if task.cut_rows:
                continue
            raise BadInput(f"tfds:{spec}, example {number}: a text is empty")
        texts.append(columns)
        labels.append(row["label"])
        indices.append(str(int(row["idx"])))
    return Examples(*_columns(texts, labels if labelled else None, indices, task))


def _correlation(measure, labels, values) -> float:
    """The correlation; 0 if the labels or the values are constant, where scipy would return nan."""
    return measure(labels, values)[0] if np.ptp(labels) and np.ptp(values) else 0.0


def _matthews(labels, values) -> float:
    """Matthews's coefficient; 0 if there is a single class, where sklearn would warn."""
    return float(sklearn.metrics.matthews_corrcoef(labels, values)) if len({*labels, *values}) > 1 else 0.0


METRICS = {
    "accuracy": lambda labels, values: sklearn.metrics.accuracy_score(labels, values),
    "f1": lambda labels, values: sklearn.metrics.f1_score(labels, values, zero_division=0),  # pyright: ignore
    "macro_f1": functools.partial(sklearn.metrics.f1_score, average="macro", zero_division=0),  # pyright: ignore
    "matthews": _matthews,
    "pearson": functools.partial(_correlation, scipy.stats.pearsonr),
    "spearman": functools.partial(_correlation, scipy.stats.spearmanr),
}


def predictions(task: GlueTask, logits_NC: np.ndarray) -> np.ndarray:
    """Ids of the most likely labels, or scores clipped to the range 0 to 5: [N]."""
    return logits_NC.argmax(1) if task.labels else np.clip(logits_NC[:, 0], 0, 5)


def score(task: GlueTask, examples: Mapping[str, Examples], logits: Mapping[str, np.ndarray]) -> dict[str, float]:
    """A task's metrics on its held-out files, in percent, and `score`, their mean. GLUE averages `score` over tasks."""
    metrics = {}
    for split in task.held_out:
        labels = examples[split.file].labels
        assert labels is not None
        values = predictions(task, logits[split.file])
        for name in task.metrics:
            key = name if len(task.held_out) == 1 else f"{name}_{split.file.removeprefix('dev_')}"
            # STS-B's metrics use the unclipped numbers: clipping would only create ties.
            seen = values if task.labels else logits[split.file][:, 0]
            metrics[key] = 100 * float(np.nan_to_num(METRICS[name](labels, seen)))
    return {**metrics, "score": float(np.mean(list(metrics.values())))}


def write(
    task: GlueTask, folder: pathlib.Path, split: GlueSplit, examples: Examples, logits_NC: np.ndarray
) -> pathlib.Path:
    """Writes a submission file for GLUE's server, with the index and the predicted label or score of each row."""
    values = predictions(task, logits_NC)
    names = [task.labels[value] for value in values] if task.labels else [f"{value:.3f}" for value in values]
    lines = [f"{index}\t{name}\n" for index, name in zip(examples.indices, names, strict=True)]
    path = folder / f"{split.submission}.tsv"
    atomic_write(path, "".join(["index\tprediction\n", *lines]).encode())
    return path
