"""The settings of a `finetune` call: frozen dataclasses. `make` makes them from a config and checks them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from bert_fast import BadInput, methods
from bert_fast.layers import Config
from bert_fast.method import Method
from bert_fast.schedule import DECAYS, Schedule
from bert_fast.tasks import glue
from bert_fast.train.optim import Optimizer
from bert_fast.train.settings import Mesh, at_least, check_optimizer, choice, finite

SQUAD = {"squad1.1": "1.1", "squad2.0": "2.0"}  # task: version
OWN = "own"  # the task for the user's own files
TASKS = (*glue.TASKS, *SQUAD, OWN)
SWEPT = ("task", "seeds", "learning_rates", "keep", "checkpoint")  # keys that may differ between calls in one folder


@dataclasses.dataclass(frozen=True)
class FinetuneData:
    """The data folder, and how examples are made from it.

    train_examples, held_out_examples: size of a fixed random sample, the same for every seed; 0: all examples.
    stride, max_question: distance between SQuAD's windows, and maximum length of a question, in tokens.
    """

    dir: str
    seq_len: int
    train_examples: int
    held_out_examples: int
    stride: int
    max_question: int


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """How SQuAD's answers are chosen: see tasks/spans.py."""

    n_best: int
    max_tokens: int
    null_threshold: float


@dataclasses.dataclass(frozen=True)
class OwnFiles:
    """The files of the task "own", and what is predicted: see tasks/own.py.

    kind: "classes", "score" or "tags". train, valid, test: files, relative to `FinetuneData.dir`; "" if there is none.
    text, pair, label: names of columns; `pair` is the second text. valid_share: the share of the training file that is
        held out if there is no `valid`.
    """

    kind: str
    train: str
    valid: str
    test: str
    text: str
    pair: str
    label: str
    valid_share: float


@dataclasses.dataclass(frozen=True)
class Rate:
    """The learning-rate schedule: warm-up over a share of the steps, then decay (see schedule.py)."""

    warmup: float
    decay: str
    decay_from: str

    def schedule(self, peak: float, steps: int) -> Schedule:
        return Schedule(peak, steps, round(self.warmup * steps), self.decay, self.decay_from)


@dataclasses.dataclass(frozen=True)
class Search:
    """For a method that first searches and then restarts training: the search's peak learning rate, and the length of
    its schedule in epochs.
    """

    learning_rate: float
    epochs: float


@dataclasses.dataclass(frozen=True)
class FinetuneEvaluation:
    """When to evaluate: every `every` steps (0: after each epoch), and at the end of training."""

    every: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class FinetuneCheckpoints:
    """Steps between checkpoints of a run; 0: only when interrupted."""

    every: int


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """All settings of a call.

    learning_rates: pairs of a task and a rate. The task "" stands for all tasks without their own rates.
    keep: the weights of a run that are kept ("best", "last" or "none").
    """

    task: str
    seeds: tuple[int, ...]
    learning_rates: tuple[tuple[str, float], ...]
    epochs: float
    batch_size: int
    micro_batches: int
    widths: int
    keep: str
    random_weights: bool
    dropout: float
    dtype: str
    predict_test: bool
    methods: tuple[tuple[str, Mapping[str, Any]], ...]
    data: FinetuneData
    answers: AnswerSettings
    own: OwnFiles
    rate: Rate
    search: Search
    optimizer: Optimizer
    eval: FinetuneEvaluation
    checkpoint: FinetuneCheckpoints
    mesh: Mesh

    def rates_of(self, task: str) -> tuple[float, ...]:
        """A task's learning rates: the task's own if it has any, else the common ones. Raises BadInput if there are
        none.
        """
        own = tuple(rate for name, rate in self.learning_rates if name == task)
        rates = own or tuple(rate for name, rate in self.learning_rates if not name)
        if not rates:
            raise BadInput(f"--config.learning_rates has none for {task}: add one, such as {task}:3e-5")
        return rates

    def model(self, model: Config) -> Config:
        """The encoder's model, with fine-tuning's dropout and dtype, and without a pooler."""
        return dataclasses.replace(
            model.portable(), dropout=self.dropout, attention_dropout=self.dropout, dtype=self.dtype, pooler=False
        )


def _numbers(name: str, text: str, kind, example: str) -> tuple:
    try:
        found = tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    possible = all(math.isfinite(number) and 0 <= number < 2**32 for number in found)
    if not found or len(set(found)) < len(found) or not possible:
        raise BadInput(
            f"--config.{name}={text!r}: expected distinct numbers of at least 0 and below 2^32, such as {example!r}"
        )
    return found


def _rates(text: str) -> tuple[tuple[str, float], ...]:
    """`"mrpc:9e-5,3e-5"` as (("mrpc", 9e-5), ("", 3e-5)). Raises BadInput."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        task, _, rate = part.rpartition(":")
        if task:
            choice("learning_rates", task, TASKS)
        found += (
            (task, number) for number in _numbers("learning_rates", rate, float, "2e-5,3e-5 or mrpc:9e-5,rte:7e-5")
        )
    if not found or len(set(found)) < len(found) or min(rate for _, rate in found) <= 0:
        raise BadInput(f"--config.learning_rates={text!r}: expected distinct rates above 0, such as '2e-5,3e-5'")
    return tuple(found)


def make(config: Mapping[str, Any]) -> FinetuneSettings:
    """The settings of a config (see configs/common_finetune.py). Raises BadInput for an impossible value."""
    if "task" not in config:
        raise BadInput(
            "this is a pre-training config: use it with pretrain, or choose a fine-tuning config: "
            "--config=glue, squad or own"
        )
    finite(config)
    choice("task", config["task"], (*TASKS, "all"))
    choice("dtype", config["dtype"], ("float32", "bfloat16"))
    choice("learning_rate.decay", config["learning_rate"]["decay"], DECAYS)
    choice("learning_rate.decay_from", config["learning_rate"]["decay_from"], ("start", "warmup"))
    names = [name.strip() for name in config["methods"].split(",") if name.strip()]
    for name in names:
        choice("methods", name, tuple(methods.known()))
    check_optimizer(optimizer := Optimizer(**config["optimizer"]))
    choice("keep", config["keep"], ("best", "last", "none"))
    plain = ("task", "epochs", "batch_size", "micro_batches", "widths", "keep", "random_weights")
    plain += ("dropout", "dtype", "predict_test")
    settings = FinetuneSettings(
        **{key: config[key] for key in plain},
        seeds=_numbers("seeds", config["seeds"], int, "0,1,2"),
        learning_rates=_rates(config["learning_rates"]),
        methods=tuple((name, dict(config[name])) for name in names),
        data=FinetuneData(**config["data"]),
        answers=AnswerSettings(**config["answers"]),
        own=OwnFiles(**config["own"]),
        rate=Rate(**config["learning_rate"]),
        search=Search(**config["search"]),
        optimizer=optimizer,
        eval=FinetuneEvaluation(**config["eval"]),
        checkpoint=FinetuneCheckpoints(**config["checkpoint"]),
        mesh=Mesh(**config["mesh"]),
    )
    least = {
        "batch_size": (settings.batch_size, 1),
        "micro_batches": (settings.micro_batches, 1),
        "checkpoint.every": (settings.checkpoint.every, 0),
        "widths": (settings.widths, 1),
        "eval.batch_size": (settings.eval.batch_size, 1),
        "eval.every": (settings.eval.every, 0),
        "answers.n_best": (settings.answers.n_best, 1),
        "answers.max_tokens": (settings.answers.max_tokens, 1),
        "data.train_examples": (settings.data.train_examples, 0),
        "data.held_out_examples": (settings.data.held_out_examples, 0),
        "data.seq_len": (settings.data.seq_len, 8),  # a shorter example has no room for a pair of texts
    }
    at_least(least)
    if settings.batch_size % settings.micro_batches:
        raise BadInput(
            f"--config.batch_size={settings.batch_size} is not divisible by "
            f"--config.micro_batches={settings.micro_batches}: make it a multiple"
        )
    if not 0 <= settings.rate.warmup <= 1:
        raise BadInput(f"--config.learning_rate.warmup={settings.rate.warmup}: expected a share from 0 to 1")
    own = [rate for name, rate in settings.learning_rates if name == settings.task]
    if own and any(not name for name, _ in settings.learning_rates):
        raise BadInput(
            f"--config.learning_rates={config['learning_rates']!r}: {settings.task} has its own rates, "
            "so the rates without a task would not be used: leave out one kind"
        )
    search = settings.search
    for name, number in (
        ("epochs", settings.epochs),
        ("search.epochs", search.epochs),
        ("search.learning_rate", search.learning_rate),
    ):
        if number <= 0:
            raise BadInput(f"--config.{name}={number}: expected more than 0")
    if settings.dropout and not 1e-4 <= settings.dropout < 1:
        raise BadInput(f"--config.dropout={settings.dropout}: expected 0, or a share of at least 0.0001 and below 1")
    if settings.task == OWN:
        _check_files(settings.own)
    elif not settings.data.dir:
        raise BadInput("--config.data.dir is missing: expected a folder of official files, tfds:glue or tfds:squad")
    _refuse_dropping(settings)
    return settings


def _check_files(own: OwnFiles):
    choice("own.kind", own.kind, ("classes", "score", "tags"))
    if not own.train:
        raise BadInput("--config.own.train is missing: give the training file, such as --config=own:train=reviews.csv")
    columns = [name for name in (own.text, own.pair, own.label) if name]
    if not own.text or not own.label or len(set(columns)) < len(columns):
        raise BadInput(
            f"--config.own.text={own.text!r}, pair={own.pair!r} and label={own.label!r}: expected the names of "
            "different columns; only pair may be empty"
        )
    if own.kind == "tags" and own.pair:
        raise BadInput(f"--config.own.pair={own.pair}: tags are for tokens of one text: leave pair out")
    if not 0 < own.valid_share <= 0.5:
        raise BadInput(f"--config.own.valid_share={own.valid_share}: expected a share above 0 and at most 0.5")


def _refuse_dropping(settings: FinetuneSettings):
    """Raises BadInput for a method that drops layers or tokens: fine-tuning trains the model as it will be used."""
    identity = Method()
    for name, arguments in settings.methods:
        method = methods.known()[name](**arguments)
        if method.draw is not identity.draw or method.order is not identity.order:
            raise BadInput(
                f"--config.methods={name}: this method drops layers or tokens, but fine-tuning trains the whole model: "
                f"give a method that prunes, or none (all methods: {', '.join(methods.known())})"
            )
