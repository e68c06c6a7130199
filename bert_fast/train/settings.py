"""A run's settings: frozen dataclasses, made once from a config and validated before anything starts."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from bert_fast import BadInput, activations, attention, methods
from bert_fast.cost import budget
from bert_fast.cost.budget import Budget
from bert_fast.layers import Config
from bert_fast.schedule import DECAYS, Schedule
from bert_fast.train import optim, sinks, step_costs
from bert_fast.train.guard import Guard
from bert_fast.train.optim import Optimizer
from bert_fast.train.step_costs import StepCosts
from bert_fast.train.watchdog import Limits

MOST_STEPS = 2**31 - 1  # the step is counted in 32 bits
MOST_LAYERS = 1_000
RECOMPUTE = ("none", "attention", "block")
NOT_NEGATIVE = ("warmup_steps", "peak", "start", "end", "power", "rate")  # of the learning rate
RENAMED = {"model.hidden": "model.mlp_dim"}


@dataclasses.dataclass(frozen=True)
class Data:
    """The shards folder, and how examples are made from it: see data/batches.py."""

    dir: str
    objective: str
    masked_share: float
    whole_word: bool
    short_seq_prob: float
    workers: int
    random_positions: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When to evaluate, and on what.

    every: steps between evaluations; 0: only at the end. examples: number of examples, from the start of the valid
    split. seq_len: tokens per example. masked_share, whole_word, short_seq_prob: as in Data, for held-out examples.
    """

    every: int
    examples: int
    seq_len: int
    batch_size: int
    seed: int
    masked_share: float = 0.15
    whole_word: bool = False
    short_seq_prob: float = 0.1


class Phase(NamedTuple):
    """A share of the steps with examples of one length. batch_size: None for the run's batch size."""

    seq_len: int
    share: float
    batch_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save, and what to keep.

    every: steps between checkpoints; 0: only at the end and on interruption. keep: number of newest checkpoints kept.
    minutes: a checkpoint is also written this long after the last one; 0: never.
    """

    every: int
    keep: int
    minutes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Number of devices along each axis; -1: all remaining devices."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """One run.

    phases: in order; their shares sum to 1. methods: (name, arguments). sinks: see sinks.py. profile: the first step to
    trace, None for no trace. extend: see `resume.extended`; "" if the run may not get more steps.
    """

    seed: int
    steps: int
    batch_size: int
    micro_batches: int
    phases: tuple[Phase, ...]
    init: str
    methods: tuple[tuple[str, Mapping[str, Any]], ...]
    model: Config
    optimizer: Optimizer
    schedule: Schedule
    data: Data
    eval: Evaluation
    checkpoint: Checkpoints
    mesh: Mesh
    log_every: int
    measure_peak: bool
    budget: Budget | None = None
    costs: StepCosts | None = None
    replay_every: int = 0
    guard: Guard = dataclasses.field(default_factory=Guard)
    watchdog: Limits = dataclasses.field(default_factory=Limits)
    sinks: tuple[str, ...] = ("tensorboard",)
    extend: str = ""
    profile: int | None = None


def renamed() -> dict[str, str]:
    """Config keys that were renamed since earlier versions, from old to current."""
    return RENAMED | methods.renamed()


def current_keys(config: Mapping[str, Any]) -> dict:
    """The config, with renamed keys under their current names, and with any missing evaluation settings filled in."""
    config = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for old, new in renamed().items():
        part, key = old.split(".")
        if key in config.get(part, {}):
            config[part][new.split(".")[1]] = config[part].pop(key)
    if "eval" in config:
        config["eval"] = evaluated_as_trained(config.get("data", {})) | config["eval"]
    return config


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted key."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def evaluated_as_trained(data: Mapping[str, Any]) -> dict:
    """The evaluation's masking settings for older configs, which lack them: the same as in training."""
    return {key: data[key] for key in ("masked_share", "whole_word", "short_seq_prob") if key in data}


def at_least(least: Mapping[str, tuple[float, float]]):
    """Raises BadInput for the first value below its bound. least: name -> (value, bound)."""
    for name, (value, low) in least.items():
        if value < low:
            raise BadInput(f"--config.{name}={value}: expected at least {low}")


def finite(config: Mapping[str, Any], prefix: str = "--config."):
    """Raises BadInput for the first number in a config that is NaN or infinite."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            finite(value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{prefix}{key}={value}: expected a finite number")


def check_optimizer(optimizer: Optimizer):
    """Raises BadInput for an unknown optimizer, or a value that is out of range."""
    optim.make(optimizer)
    never_negative = ("clip_norm", "matrix_rms", "eps", "weight_decay")
    at_least({f"optimizer.{name}": (getattr(optimizer, name), 0) for name in never_negative})
    for name in ("b1", "b2", "momentum"):
        if not 0 <= (decay := getattr(optimizer, name)) < 1:
            raise BadInput(f"--config.optimizer.{name}={decay}: expected a number of at least 0 and below 1")


def choice(name: str, value: str, known) -> str:
    """`value`, if it is known. Otherwise raises BadInput, which suggests similar names."""
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, 3, 0.4) or sorted(known)
    raise BadInput(
        f"--config.{name}={value!r} is unknown: did you mean {' or '.join(near)}? Known: {', '.join(sorted(known))}"
    )


def phases(text: str) -> tuple[Phase, ...]:
    """Parses phases such as `"16@256:0.5,64:0.5"`. Raises BadInput.

    In this example, half of the steps use examples of 16 tokens and a batch size of 256. The other half use examples of
    64 tokens and the run's batch size.
    """
    try:
        found = tuple(phase(part) for part in text.split(","))
    except ValueError:
        found = ()
    numbers = [number for phase in found for number in phase if number is not None]
    if not found or abs(sum(phase.share for phase in found) - 1) > 1e-6 or min(numbers) <= 0:
        raise BadInput(
            f"--config.phases={text!r}: expected sequence lengths with shares of the steps that sum to 1, "
            'such as "128:0.9,512:0.1", or with a batch size for each, such as "16@256:0.5,64@64:0.5"'
        )
    return found


def phase(text: str) -> Phase:
    """Parses `LENGTH:SHARE` or `LENGTH@BATCH:SHARE`. Raises ValueError."""
    rows, share = text.split(":")
    length, _, batch_size = rows.partition("@")
    return Phase(int(length), float(share), int(batch_size) if "@" in rows else None)


def names_in(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def make(config: Mapping[str, Any], vocab: Mapping[str, Any], method_names) -> PretrainSettings:
    """The settings of a config (see configs/common.py), for the vocabulary in a shards folder's manifest.

    Raises BadInput if a value is invalid.
    """
    if "model" not in config:
        raise BadInput("this is a fine-tuning config: use it with finetune, or give a pre-training config such as bert")
    finite(config)
    special_ids = tuple(vocab["special_ids"][f"[{name}]"] for name in ("PAD", "UNK", "CLS", "SEP", "MASK"))
    model = Config(vocab_size=vocab["size"], special_ids=special_ids, **config["model"])
    choice("model.norm", model.norm, ("post", "pre"))
    choice("model.activation", model.activation, ("auto", *activations.ACTIVATIONS))
    choice("model.dtype", model.dtype, ("float32", "bfloat16"))
    choice("model.attention", model.attention, attention.BACKENDS)
    choice("model.recompute", model.recompute, RECOMPUTE)
    model = dataclasses.replace(model, activation=activations.resolved(model.activation, model.dtype))
    names = names_in(config["methods"])
    for name in names:
        choice("methods", name, tuple(method_names))
    for name in (to := names_in(config.get("sinks", "tensorboard"))):  # older runs do not have the key
        choice("sinks", name, tuple(sinks.SINKS))
    schedule = Schedule(steps=config["steps"], **config["learning_rate"])
    choice("learning_rate.decay", schedule.decay, DECAYS)
    choice("learning_rate.decay_from", schedule.decay_from, ("start", "warmup"))
    settings = PretrainSettings(
        seed=config["seed"],
        steps=config["steps"],
        batch_size=config["batch_size"],
        micro_batches=config["micro_batches"],
        phases=phases(config["phases"]),
        init=config["init"],
        methods=tuple((name, dict(config[name])) for name in names),
        model=model,
        optimizer=Optimizer(**config["optimizer"]),
        schedule=schedule,
        data=Data(**config["data"]),
        eval=Evaluation(**config["eval"]),
        checkpoint=Checkpoints(**config["checkpoint"]),
        mesh=Mesh(**config["mesh"]),
        log_every=config["log_every"],
        measure_peak=config["measure_peak"],
        budget=budget.parse(config.get("budget", "")),
        costs=step_costs.read(config["costs"]) if config.get("costs") else None,
        replay_every=config.get("replay_every", 0),
        guard=Guard(**config.get("guard", {})),
        watchdog=Limits(**config.get("watchdog", {})),
        sinks=to,
    )
    _check(settings)
    return settings


def _check(settings: PretrainSettings):
    """Raises BadInput if a value is out of range or contradicts another."""
    model = settings.model
    least = {
        **{name: (getattr(settings, name), 1) for name in ("steps", "batch_size", "micro_batches", "log_every")},
        "model.depth": (model.depth, 1),
        "model.width": (model.width, 1),
        "model.head_size": (model.head_size, 1),
        "model.heads": (min(model.heads_L, default=1), 1),
        "model.mlp_dim": (min(model.mlp_dim_L, default=1), 1),
        "model.type_count": (model.type_count, 2 if settings.data.objective == "mlm+nsp" else 1),
        **{f"model.{name}": (getattr(model, name), 0) for name in ("init_std", "residual_init_std", "norm_eps")},
        **{f"learning_rate.{name}": (getattr(settings.schedule, name), 0) for name in NOT_NEGATIVE},
        "learning_rate.interval": (settings.schedule.interval, 1),
        "data.workers": (settings.data.workers, 0),
        "eval.every": (settings.eval.every, 0),
        "eval.seq_len": (settings.eval.seq_len, 8),
        "eval.batch_size": (settings.eval.batch_size, 1),
        "checkpoint.every": (settings.checkpoint.every, 0),
        "checkpoint.keep": (settings.checkpoint.keep, 1),
        "checkpoint.minutes": (settings.checkpoint.minutes, 0),
        "replay_every": (settings.replay_every, 0),
        "guard.factor": (settings.guard.factor, 0),
        "guard.recent": (settings.guard.recent, 1),
        "guard.in_a_row": (settings.guard.in_a_row, 1),
        "guard.rollbacks": (settings.guard.rollbacks, 0),
        "guard.most": (settings.guard.most, 0),
        **{f"watchdog.{kind}": (limit, 0) for kind, limit in vars(settings.watchdog).items()},
    }
    at_least(least)
    for name, value, most in (("steps", settings.steps, MOST_STEPS), ("model.depth", model.depth, MOST_LAYERS)):
        if value > most:
            raise BadInput(f"--config.{name}={value}: expected at most {most:,}")
    if model.width != (attention := max(model.heads_L) * model.head_size):
        raise BadInput(
            f"--config.model.heads={max(model.heads_L)} times --config.model.head_size={model.head_size} is "
            f"{attention}: expected --config.model.width={model.width}"
        )
    if not 0 <= settings.seed < 2**32:
        raise BadInput(f"--config.seed={settings.seed}: expected a whole number of at least 0 and below 2^32")
    check_optimizer(settings.optimizer)
    names = [name for name, _ in settings.methods]
    if len(set(names)) < len(names):
        raise BadInput(f"--config.methods={','.join(names)}: list each method only once")
    for phase in settings.phases:
        if (size := phase.batch_size or settings.batch_size) % settings.micro_batches:
            name = "batch_size" if phase.batch_size is None else "phases: a batch size"
            raise BadInput(
                f"--config.{name} of {size} is not divisible by "
                f"--config.micro_batches={settings.micro_batches}: make it a multiple"
            )
    lengths = [("phases", phase.seq_len) for phase in settings.phases] + [("eval.seq_len", settings.eval.seq_len)]
    for name, length in lengths:
        if length > settings.model.max_len:
            raise BadInput(
                f"--config.{name}: a sequence length of {length} is above the model's {settings.model.max_len} "
                f"positions: shorten it, or set --config.model.max_len={length}"
            )
    if settings.data.objective == "mlm+nsp" and not settings.model.pooler:
        raise BadInput("--config.data.objective=mlm+nsp needs the next-sentence head: set --config.model.pooler=True")
    for name in ("dropout", "attention_dropout"):
        rate = getattr(settings.model, name)
        if rate and not 1e-4 <= rate < 1:
            raise BadInput(f"--config.model.{name}={rate}: expected 0, or a share of at least 0.0001 and below 1")
