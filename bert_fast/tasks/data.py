"""The tasks by name: `read` reads a task's files, and `make` tokenises their texts with the encoder's vocabulary."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from bert_fast import BadInput
from bert_fast.data.vocab import Vocab
from bert_fast.tasks import glue, own_task, spans, squad
from bert_fast.tasks.batches import TaskExamples, make_examples
from bert_fast.tasks.glue import TRAIN
from bert_fast.tasks.model import Head
from bert_fast.tasks.settings import OWN, SQUAD, FinetuneSettings
from bert_fast.tasks.task import Baseline, Task, constant, sample
from bert_fast.train.description import TaskHead


def names(settings: FinetuneSettings) -> list[str]:
    """The names of the requested tasks. "all" means every GLUE task in the data folder, or with tfds every GLUE task.

    Raises BadInput if the folder has no task.
    """
    if settings.task != "all":
        return [settings.task]
    if settings.data.dir.startswith("tfds:"):
        return list(glue.TASKS)
    return list(glue.found(settings.data.dir))


def read(name: str, settings: FinetuneSettings) -> Any:
    """The texts and labels of a task's files, reduced to the requested samples.

    Raises BadInput for bad files. The message names the file, and the line or question.
    """
    data = settings.data
    if name == OWN:
        return own_task.read(settings)
    if name in SQUAD:
        files = {True: data.train_examples, False: data.held_out_examples}
        found = {}
        for train, wanted in files.items():
            questions = squad.read(squad_file(data.dir, SQUAD[name], train), SQUAD[name], train)
            found[train] = [questions[i] for i in sample(len(questions), wanted)]
        return found
    splits = glue.read(name, data.dir)
    wanted = {TRAIN: data.train_examples, **{s.file: data.held_out_examples for s in glue.TASKS[name].held_out}}
    return {split: e.take(sample(len(e.indices), wanted.get(split, 0))) for split, e in splits.items()}


def squad_file(data_dir: str, version: str, train: bool) -> str:
    """The path, or tfds name, of a version's training or held-out file. Raises BadInput unless there is exactly one."""
    kind = "train" if train else "dev"
    if data_dir.startswith("tfds:"):
        if data_dir != "tfds:squad":
            raise BadInput(f"--config.data.dir={data_dir}: expected tfds:squad, or a folder")
        return f"tfds:squad/v{version}:{'train' if train else 'validation'}"
    there = sorted(pathlib.Path(data_dir).glob(f"{kind}-v{version}*.json*"))
    if len(there) != 1:
        listed = ", ".join(path.name for path in there) or "none"
        raise BadInput(
            f"--config.data.dir={data_dir}: expected one file {kind}-v{version}.json or .json.gz, found {listed}"
        )
    return str(there[0])


def make(name: str, found: Any, words: Vocab, settings: FinetuneSettings) -> Task:
    """The task, made from the result of `read`. Its texts are tokenised with the encoder's vocabulary, `words`."""
    if name == OWN:
        return own_task.make(found, words, settings)
    return _squad(name, found, words, settings) if name in SQUAD else _glue(name, found, words, settings)


def _glue(name: str, examples: dict[str, glue.Examples], words: Vocab, settings: FinetuneSettings) -> Task:
    task, seq_len = glue.TASKS[name], settings.data.seq_len
    rows = {split: make_examples(e.texts, e.labels, words, seq_len) for split, e in examples.items()}
    splits = {split.file: split for split in (*task.held_out, *task.test)}

    def write(folder, split, logits_NC):
        return [glue.write(task, folder, splits[split], examples[split], logits_NC)]

    kind = "classes" if task.labels else "score"
    held_out = {split.file: rows[split.file] for split in task.held_out}
    score = functools.partial(glue.score, task, examples)
    return Task(
        name,
        Head(kind, task.outputs),
        rows[TRAIN],
        held_out,
        {split.file: rows[split.file] for split in task.test if split.file in rows and settings.predict_test},
        score,
        write,
        TaskHead(name, kind, task.outputs, task.labels, task.columns, seq_len),
        constant(rows[TRAIN], held_out, seq_len, task.labels, score),
    )


def _squad(name: str, found: dict[bool, list], words: Vocab, settings: FinetuneSettings) -> Task:
    data, version, held_out = settings.data, SQUAD[name], found[False]
    train, dev = (
        spans.windows(found[is_train], words, data.seq_len, data.stride, data.max_question)
        for is_train in (True, False)
    )

    def answers(logits_NS2):
        choice = settings.answers
        return spans.answers(
            held_out,
            dev,
            logits_NS2[..., 0],
            logits_NS2[..., 1],
            version,
            n_best=choice.n_best,
            max_answer_tokens=choice.max_tokens,
            null_threshold=choice.null_threshold,
        )

    def score(logits):
        chosen = answers(logits["dev"])
        return metrics(chosen.best, chosen.null_score_difference)

    def metrics(best, null_score_difference):
        found = squad.score(held_out, best, null_score_difference if version == "2.0" else None)
        return {key: value for key, value in found.items() if not key.endswith("total")} | {"score": found["f1"]}

    def write(folder, split, logits_NS2):
        return squad.write(folder, answers(logits_NS2))

    options = {"version": version, "stride": data.stride, "max_question": data.max_question}
    options |= dataclasses.asdict(settings.answers)
    about = TaskHead(name, "span", 2, (), ("question", "context"), data.seq_len, options)
    baseline = Baseline("no answer", metrics({question.id: "" for question in held_out}, {}))
    return Task(name, Head("span", 2), squad_rows(train), {"dev": squad_rows(dev)}, {}, score, write, about, baseline)


def squad_rows(windows: spans.Windows) -> TaskExamples:
    """The windows as examples. Their labels, [N, 2], are the positions of the answer's first and last token."""
    return TaskExamples(windows.ids, windows.types, np.stack([windows.starts, windows.ends], axis=1))
