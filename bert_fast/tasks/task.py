"""A task as the training loop sees it: examples, a head, a score, and a way to write predictions.

Axes: N examples, C logits of an example or a token.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bert_fast.tasks.batches import NO_LABEL, TaskExamples
from bert_fast.tasks.model import Head
from bert_fast.train.description import TaskHead

_SAMPLE = 12_345  # seed of the fixed samples: `random_seed` in create_pretraining_data.py of google-research/bert


class Baseline(NamedTuple):
    """The score of a constant prediction on the held-out splits, in the metrics of the task."""

    prediction: str
    metrics: dict[str, float]


class Task(NamedTuple):
    """A task's examples, and the functions that score and write predictions.

    held_out: labelled examples by split, for evaluation.
    test: unlabelled examples by split. Their predictions are written but not scored.
    score: logits of the held-out splits -> metrics. The metric "score" is the task's main score, in percent.
    write: (folder, split, logits) -> paths: writes a split's predictions in the benchmark's format.
    about: the task's entry in a checkpoint's description.
    baseline: the score of always predicting the most frequent training label, the mean label, or that there is no
        answer, depending on the task.
    """

    name: str
    head: Head
    train: TaskExamples
    held_out: Mapping[str, TaskExamples]
    test: Mapping[str, TaskExamples]
    score: Callable[[Mapping[str, np.ndarray]], dict[str, float]]
    write: Callable[[pathlib.Path, str, np.ndarray], list[pathlib.Path]]
    about: TaskHead
    baseline: Baseline

    def lengths_N(self) -> np.ndarray:
        """Lengths of all examples, in tokens."""
        return np.concatenate([rows.lengths_N for rows in (self.train, *self.held_out.values(), *self.test.values())])


def sample(count: int, wanted: int) -> np.ndarray:
    """Sorted indices of a fixed random sample of `wanted` out of `count` examples.

    All indices if `wanted` is 0 or at least `count`.
    """
    if not 0 < wanted < count:
        return np.arange(count)
    return np.sort(np.random.default_rng(_SAMPLE).permutation(count)[:wanted])


def held_out(labels_N: np.ndarray, share: float) -> np.ndarray:
    """Sorted indices of the examples to hold out: a fixed random sample, stratified by label.

    share: at most 0.5. Integer labels are classes: at least one example of each class is not held out.
    """
    _, which, counts = np.unique(labels_N, return_inverse=True, return_counts=True)
    order = np.lexsort((np.random.default_rng(_SAMPLE).permutation(len(labels_N)), labels_N))
    if labels_N.dtype == np.int32:
        order = order[counts[which[order]] > 1]
    count = round(share * len(order))
    return np.sort(order[((np.arange(count) + 0.5) * len(order) / max(count, 1)).astype(int)])


def constant(
    train: TaskExamples,
    held_out: Mapping[str, TaskExamples],
    seq_len: int,
    names: Sequence[str],
    score: Callable[[Mapping[str, np.ndarray]], dict[str, float]],
) -> Baseline:
    """The score of a constant prediction. With names, the prediction is the most frequent class or tag of the training
    examples. Without names, it is their mean label.
    """
    labels = np.concatenate(train.labels) if isinstance(train.labels, list) else train.labels
    assert labels is not None
    if names:
        most = int(np.bincount(labels[labels != NO_LABEL]).argmax())
        prediction, logits_C = f"always {names[most]}", (np.arange(len(names)) == most).astype(np.float32)
    else:
        prediction, logits_C = "always the mean", np.array([labels.mean()])
    places = (seq_len,) if isinstance(train.labels, list) else ()
    logits = {
        split: np.broadcast_to(logits_C, (len(rows.ids_N), *places, len(logits_C))) for split, rows in held_out.items()
    }
    return Baseline(prediction, score(logits))
