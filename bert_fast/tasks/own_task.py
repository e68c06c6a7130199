"""The task "own": held-out examples, scores and predictions for your own labelled files (see own.py)."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from bert_fast import BadInput
from bert_fast.data.files import atomic_write
from bert_fast.data.vocab import Vocab
from bert_fast.tasks import glue, own, tags
from bert_fast.tasks.batches import TaskExamples, make_examples
from bert_fast.tasks.conll import Sentence
from bert_fast.tasks.glue import TRAIN, Examples
from bert_fast.tasks.model import Head
from bert_fast.tasks.own import TEST, VALID, Own
from bert_fast.tasks.settings import OWN, FinetuneSettings, OwnFiles
from bert_fast.tasks.task import Task, constant, held_out, sample
from bert_fast.train.description import TaskHead
from bert_fast.train.report import say


def read(settings: FinetuneSettings) -> Own:
    """The files of the task, reduced to the requested samples. Raises BadInput like `own.read`.

    Without a valid file, a share of the training examples is held out.
    """
    files, data = settings.own, settings.data
    found = own.read(files, data.dir)
    splits = dict(found.splits)
    if VALID not in splits:
        whole = splits[TRAIN]
        labels = np.zeros(len(whole.indices), np.float32) if files.kind == "tags" else whole.labels
        apart = held_out(labels, files.valid_share)
        if not len(apart):
            raise BadInput(
                f"{files.train}: {len(labels)} examples are too few to hold out a share of {files.valid_share:g}: give "
                "a file of held-out examples with valid=FILE"
            )
        splits |= {TRAIN: whole.take(np.setdiff1d(np.arange(len(labels)), apart)), VALID: whole.take(apart)}
        say(
            f"{files.train}: {len(apart):,} of {len(labels):,} examples are held out, the same ones in every run "
            "(--config.own.valid_share); to choose them yourself, give valid=FILE"
        )
    wanted = {TRAIN: data.train_examples, VALID: data.held_out_examples}
    parts = {split: part.take(sample(len(part.indices), wanted.get(split, 0))) for split, part in splits.items()}
    return Own(found.names, parts)


def make(found: Own, words: Vocab, settings: FinetuneSettings) -> Task:
    """The task, made from the result of `read`. Its texts are tokenised with the encoder's vocabulary, `words`."""
    making = _tags if settings.own.kind == "tags" else _texts
    rows, about, score, write = making(found, words, settings)
    apart = {VALID: rows[VALID]}
    return Task(
        OWN,
        Head(about.kind, about.outputs),
        rows[TRAIN],
        apart,
        {TEST: rows[TEST]} if TEST in rows and settings.predict_test else {},
        score,
        write,
        about,
        constant(rows[TRAIN], apart, about.seq_len, about.labels, score),
    )


def _texts(found: Own, words: Vocab, settings: FinetuneSettings):
    """For classes and scores: the examples by split, the task's description, and functions that score and write.

    Scores are standardised to mean 0 and deviation 1, so that the unit of the labels does not matter.
    """
    files, names, seq_len = settings.own, found.names, settings.data.seq_len
    examples = found.splits
    of_train = examples[TRAIN].labels
    scale = {} if names else {"mean": float(of_train.mean()), "deviation": float(of_train.std())}
    if scale and not scale["deviation"]:
        raise BadInput(
            f"all {len(of_train)} training examples have the score {of_train[0]:g}: there is nothing to "
            "learn. Add examples with other scores, or train on more of the file"
        )

    def rows(part: Examples) -> TaskExamples:
        labels = part.labels
        if scale and labels is not None:
            labels = (labels - np.float32(scale["mean"])) / np.float32(scale["deviation"])
        return make_examples(part.texts, labels, words, seq_len)

    def values(logits_NC) -> np.ndarray:
        return logits_NC.argmax(1) if names else logits_NC[:, 0] * scale["deviation"] + scale["mean"]

    def shown(numbers) -> list[str]:
        return [names[n] for n in numbers] if names else [f"{number:.6g}" for number in numbers]

    def score(logits) -> dict[str, float]:
        return metrics(examples[VALID].labels, values(logits[VALID]))

    def write(folder, split, logits_NC) -> list[pathlib.Path]:
        part = examples[split]
        labels = {} if part.labels is None else {"label": shown(part.labels)}
        columns = {"index": part.indices, **labels, "prediction": shown(values(logits_NC))}
        return [write_table(folder / f"{split}.tsv", columns)]

    texts = (files.text, files.pair) if files.pair else (files.text,)
    about = TaskHead(OWN, files.kind, max(len(names), 1), names, texts, seq_len, {**origin(files), **scale})
    return {split: rows(part) for split, part in examples.items()}, about, score, write


def _tags(found: Own, words: Vocab, settings: FinetuneSettings):
    """For tags: the examples by split, the task's description, and functions that score and write."""
    names, seq_len = found.names, settings.data.seq_len
    sentences = {split: part.sentences for split, part in found.splits.items()}
    made = {
        split: tags.windows(part, names if split != TEST else None, words, seq_len) for split, part in sentences.items()
    }

    def score(logits) -> dict[str, float]:
        wanted = [sentence.tags for sentence in sentences[VALID]]
        return tags.score(wanted, tags.predicted(made[VALID], logits[VALID], names), names)

    def write(folder, split, logits_NSC) -> list[pathlib.Path]:
        said = tags.predicted(made[split], logits_NSC, names)
        return [write_tags(folder / f"{split}.conll", sentences[split], said)]

    about = TaskHead(OWN, "tags", len(names), names, (settings.own.text,), seq_len, origin(settings.own))
    return {split: tags.rows(part) for split, part in made.items()}, about, score, write


def origin(files: OwnFiles) -> dict[str, str]:
    """The entry of a checkpoint's options that names the training file."""
    return {"train": pathlib.Path(files.train).name}


def metrics(labels: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Metrics of predicted classes (whole numbers) or scores (floats).

    In percent: accuracy, macro_f1 and matthews, or pearson and spearman. rmse, the root of the mean squared error, is
    in the unit of the labels. `score` is the accuracy, or the mean of pearson and spearman.
    """
    classes = labels.dtype == np.int32
    shown = ("accuracy", "macro_f1", "matthews") if classes else ("pearson", "spearman")
    found = {name: 100 * float(np.nan_to_num(glue.METRICS[name](labels, values))) for name in shown}
    if classes:
        return found | {"score": found["accuracy"]}
    rmse = float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64) - labels))))
    return found | {"rmse": rmse, "score": float(np.mean(list(found.values())))}


def write_table(path: pathlib.Path, columns: Mapping[str, Sequence[str]]) -> pathlib.Path:
    """Writes predictions as a .tsv. The index is an example's row in its file, from 0."""
    text = io.StringIO()
    rows = zip(*columns.values(), strict=True)
    csv.writer(text, dialect="excel-tab", lineterminator="\n").writerows([tuple(columns), *rows])
    atomic_write(path, text.getvalue().encode())
    return path


def write_tags(path: pathlib.Path, sentences: Sequence[Sentence], found: Sequence[Sequence[str]]) -> pathlib.Path:
    """Writes predictions in conlleval's format: token, tag if known, and predicted tag, separated by tabs."""
    lines = []
    for sentence, said in zip(sentences, found, strict=True):
        columns = [part for part in (sentence.tokens, sentence.tags, said) if part]
        lines += ["\t".join(row) for row in zip(*columns, strict=True)] + [""]
    atomic_write(path, "".join(f"{line}\n" for line in lines).encode())
    return path
