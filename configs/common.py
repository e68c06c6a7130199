"""The base of all pre-training configs: BERT's recipe, its sizes, and the arguments of `--config=NAME:ARGUMENTS`."""

import difflib
import functools
import sys
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bert_fast import BadInput, methods

# (depth, width, heads) as Google published them (google-research/bert, README: "Smaller BERT Models" and
# the first release). Heads have size 64, feed-forward networks four times the width.
SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}


# The arguments of every pre-training config. seq: the length of the only phase. With 0, the config has its own phases.
ARGUMENTS = {"size": "base", "seq": 0, "objective": "mlm+nsp", "norm": "post", "debug": False}


def parse(text: str | None, fixed: Mapping[str, str] = types.MappingProxyType({}), /, **defaults) -> dict:
    """A config's arguments, parsed from text such as "size=mini,seq=128,debug".

    defaults: all arguments that the config accepts, each with the value that it has if the text does not give it.
    fixed: the arguments that the config does not accept, each with the reason. Raises BadInput for a fixed or unknown
    argument, and for a value of the wrong type.
    """
    arguments = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition("=")
        if name in fixed:
            raise BadInput(f"config argument {part!r}: this config fixes {name}: {fixed[name]}")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, 3, 0.4) or list(defaults)
            raise BadInput(f"unknown config argument {name!r}: did you mean {' or '.join(near)}?")
        kind = type(defaults[name])
        if kind is bool:
            if value not in ("", "true", "false"):
                raise BadInput(f"config argument {name}={value!r}: expected {name}, {name}=true or {name}=false")
            arguments[name] = value != "false"
        else:
            try:
                arguments[name] = kind(value)
            except ValueError:
                raise BadInput(f"config argument {name}={value!r}: expected a value of type {kind.__name__}") from None
    return arguments


def size(name: str) -> dict:
    """Depth, width, heads and feed-forward width of a published size. Raises BadInput if the size is unknown."""
    if name not in SIZES:
        near = difflib.get_close_matches(name, SIZES, 3, 0.4) or list(SIZES)
        raise BadInput(f"unknown size {name!r}: did you mean {' or '.join(near)}? Known: {', '.join(SIZES)}")
    depth, width, heads = SIZES[name]
    return {"depth": depth, "width": width, "heads": heads, "mlp_dim": 4 * width}


def optimizer() -> ConfigDict:
    """BERT's optimizer: `AdamWeightDecayOptimizer` and `create_optimizer` of google-research/bert, optimization.py."""
    config = ConfigDict()
    config.name = "adamw"
    config.b1 = 0.9
    config.b2 = 0.999
    config.eps = 1e-6
    config.weight_decay = 0.01
    config.bias_correction = False
    config.clip_norm = 1.0
    config.eps_before_correction = False
    config.momentum = 0.9  # this and matrix_rms are read by muon only
    config.matrix_rms = 0.4
    return config


def base(size_name: str) -> ConfigDict:
    """BERT as published (Devlin et al. 2019; google-research/bert): the baseline from which every config starts."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 1_000_000
    config.budget = ""  # such as "tokens:2e6" or "seconds:3600"; a budget replaces config.steps
    config.costs = ""  # a file with the costs of steps, for budgets in time or money
    config.batch_size = 256
    config.micro_batches = 1
    config.phases = "128:0.9,512:0.1"  # Devlin et al., A.2
    config.init = ""  # a run folder or checkpoint with the initial weights
    config.methods = ""
    config.log_every = 100
    config.sinks = "tensorboard"  # any of tensorboard, wandb, trackio, or none; metrics.jsonl is always written
    config.measure_peak = False  # measure the peak FLOP/s of a device whose peak is unknown, such as a CPU

    config.model = ConfigDict(size(size_name))
    config.model.head_size = 64
    config.model.max_len = 512
    config.model.type_count = 2
    config.model.norm = "post"
    config.model.embed_norm = True
    config.model.activation = "auto"  # auto: gelu in float32, gelu_tanh in bfloat16. Else gelu or gelu_tanh
    config.model.pooler = True
    config.model.dropout = 0.1
    config.model.attention_dropout = 0.1
    config.model.init_std = 0.02
    config.model.residual_init_std = 0.02
    config.model.norm_eps = 1e-12
    config.model.attention = "auto"  # auto: the fastest backend for the device. Else plain, pallas or cudnn
    config.model.recompute = "none"  # what the backward pass recomputes, to save memory: none, attention or block
    config.model.dtype = "float32"

    config.optimizer = optimizer()

    config.learning_rate = ConfigDict()
    config.learning_rate.peak = 1e-4
    config.learning_rate.warmup_steps = 0.01  # a value below 1 is a share of all steps. BERT: 10,000 of a million
    config.learning_rate.decay = "linear"
    config.learning_rate.decay_from = "start"
    config.learning_rate.start = 0.0
    config.learning_rate.end = 0.0
    config.learning_rate.power = 1.0
    config.learning_rate.rate = 0.99
    config.learning_rate.interval = 1000

    config.data = ConfigDict()
    config.data.dir = ""
    config.data.objective = "mlm+nsp"
    config.data.masked_share = 0.15
    config.data.whole_word = False
    config.data.short_seq_prob = 0.1  # share of segment pairs made shorter than the sequence length
    config.data.workers = 0  # loader processes in addition to the main one
    config.data.random_positions = False  # examples shorter than the longest phase begin at a random position

    config.eval = ConfigDict()
    config.eval.every = 10_000
    config.eval.examples = 2_000
    config.eval.seq_len = 128
    config.eval.batch_size = 32
    config.eval.seed = 0
    config.eval.masked_share = 0.15  # separate from config.data, so that runs with other masks remain comparable
    config.eval.whole_word = False
    config.eval.short_seq_prob = 0.1

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10_000
    config.checkpoint.minutes = 0.0  # also save when the last save is this many minutes old; 0 turns this off
    config.checkpoint.keep = 2

    config.replay_every = 0  # N: every N steps, compute the gradient twice and compare the results; 0: never

    config.guard = ConfigDict()
    config.guard.factor = 100.0  # skip steps whose gradient norm is above factor x median; with 0, only if not finite
    config.guard.recent = 100  # number of recent gradient norms that the median is taken of
    config.guard.in_a_row = 5  # after this many skipped steps in a row, the run goes back to a checkpoint
    config.guard.rollbacks = 2  # how often the run may go back before it stops
    config.guard.most = 1000  # how many steps the run may skip in total before it stops

    config.watchdog = ConfigDict()  # the longest waits in seconds, after which the process ends; 0: no limit
    config.watchdog.step = 1800.0
    config.watchdog.input = 600.0
    config.watchdog.save = 1800.0
    config.watchdog.evaluate = 3600.0
    config.watchdog.collective = 600.0
    config.watchdog.compile = 0.0

    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    for name, arguments in methods.defaults().items():
        config[name] = ConfigDict(arguments)
    return config


def from_arguments(args: Mapping[str, Any]) -> ConfigDict:
    """BERT's recipe with the size, sequence length, objective and norm given in a config's arguments."""
    config = base(args["size"])
    config.data.objective = args["objective"]
    config.model.pooler = args["objective"] == "mlm+nsp"
    config.model.norm = args["norm"]
    if args["seq"]:
        config.phases = f"{args['seq']}:1"
        config.eval.seq_len = min(config.eval.seq_len, args["seq"])  # positions beyond seq are not trained
    return config


def debug(config: ConfigDict):
    """Shrinks a config, in place, so that its run takes seconds once its programs are compiled.

    Compiling takes most of the time of a first run. Few layers and one length make the programs small and few. A line
    on standard error states the size that replaces the requested one.
    """
    asked = f"{config.model.depth} of width {config.model.width}"
    config.steps = 20
    config.batch_size = 8
    config.micro_batches = 1  # micro-batches of fewer than 8 examples would not divide over 8 devices
    config.log_every = 5
    config.model.update(depth=min(config.model.depth, 2), width=32, heads=2, head_size=16, mlp_dim=64, max_len=64)
    config.phases = "32:1"
    config.learning_rate.warmup_steps = 2
    config.eval.update(every=10, examples=16, seq_len=32, batch_size=8)
    config.checkpoint.every = 10
    config.token_drop.update(boundary=-1, keep=max(config.token_drop.keep, 0.5))  # for few layers and tokens
    config.early_bert.search = 0.5  # 10 steps: after only one or two, all coefficients are still equal
    say_once(
        f"debug: {config.model.depth} layers of width {config.model.width} in place of {asked}, and {config.steps} "
        "steps of 8 x 32 tokens; flags can change them"
    )


@functools.cache
def say_once(line: str):
    """Prints a line on standard error, the first time that it is given."""
    print(line, file=sys.stderr, flush=True)
