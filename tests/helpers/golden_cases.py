"""The runs whose losses are in golden/: dense, single methods, several methods combined, and a fine-tuning task."""

import hashlib
import pathlib

import jax

from bert_fast.configs import bert, combined, early_bert, layer_drop, mslt, stacking, token_drop
from bert_fast.tasks import sweep
from bert_fast.train.log import read_rows
from helpers import xla_flags
from helpers.made_tasks import make_settings as make_task_settings
from helpers.made_tasks import write_checkpoint, write_glue
from helpers.small_runs import run

STEPS = 50
SMALL = {
    "steps": STEPS,
    "log_every": 1,
    "phases": "16:0.5,32:0.5",
    "eval.every": 0,
    "eval.seq_len": 16,
    "checkpoint.every": 0,
    "learning_rate.peak": 1e-2,
    "learning_rate.warmup_steps": 4,
    "learning_rate.decay": "linear",
}
SEARCH = {"early_bert.search": 0.2, "early_bert.neurons": "layer"}
TICKET = {**SEARCH, "early_bert.stop": "early_bird", "early_bert.mask_every": 1, "early_bert.threshold": 0.5}
ALL = {"methods": combined.get_config("all").methods, "stacking.learning_rate": "segments"}
# name: (config, changes). Runs with a method have a single phase: with a second length, each plan would be compiled
# again.
RUNS = {
    "dense": (bert, {"model.depth": 2}),
    "layer_drop": (layer_drop, {"phases": "16:1", "micro_batches": 2}),
    "token_drop": (token_drop, {"phases": "16:1", "token_drop.full_tail": 0.2}),
    "early_bert": (early_bert, {"phases": "16:1", "model.depth": 2, **TICKET}),
    "stacking": (stacking, {"phases": "16:1", "stacking.optimizer": "carry"}),
    "mslt": (mslt, {"phases": "16:1", "stacking.embedding": "C"}),
    "combined": (combined, {"phases": "16:1", "model.depth": 2, **ALL, **SEARCH}),
}
CASES = [(name, dropout) for name in (*RUNS, "finetune") for dropout in (0.1, 0.0)]


def losses_of(name: str, dropout: float, shards: pathlib.Path, folder: pathlib.Path) -> list[float]:
    """The training loss of every step of a case, in nats. Each is a float32 value, stored exactly in a Python float."""
    if name == "finetune":
        return finetuning_losses(dropout, folder)
    module, changes = RUNS[name]
    config = module.get_config("size=tiny,debug")
    rates = {"model.dropout": dropout, "model.attention_dropout": dropout}
    config.update_from_flattened_dict({**SMALL, "data.dir": str(shards), **rates, **changes})
    run(config.to_dict(), folder / "run")
    return [row["loss"] for row in read_rows(folder / "run" / "metrics.jsonl") if row["split"] == "train"]


def finetuning_losses(dropout: float, folder: pathlib.Path) -> list[float]:
    """Losses of a sentence-pair task. It is evaluated after every step, so each mean loss covers a single step."""
    write_glue(folder, ("mrpc",), train=100, dev=8, test=4)
    (folder / "encoder").mkdir()
    encoder = write_checkpoint(folder / "encoder")
    changes = {"eval__every": 1, "epochs": STEPS / 13, "batch_size": 8, "dropout": dropout}
    settings, config = make_task_settings(folder, **changes)
    results = sweep.finetune(settings, config, folder / "tasks", checkpoint=str(encoder))
    (only,) = results["tasks"]["mrpc"]["runs"]
    return [row["train_loss"] for row in only["curve"]]


def machine() -> str:
    """The JAX version, the compiler's flags and a hash of the processor's instructions. Exact losses depend on them,
    in addition to the code.
    """
    text = pathlib.Path("/proc/cpuinfo")
    flags = sorted(next((line for line in text.read_text().splitlines() if line.startswith("flags")), "").split()[2:])
    compiler = "" if xla_flags.QUICK_TO_COMPILE else ", default compiler"
    return f"jax {jax.__version__}{compiler}, instructions {hashlib.sha256(' '.join(flags).encode()).hexdigest()[:12]}"
