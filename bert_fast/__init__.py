"""Accelerated BERT pre-training: one trunk, one engine, methods as small files.

These Python functions are documented in `bert_fast.api`. All but `load` are also commands of `python -m bert_fast`.

    prepare     turns text into shards and a vocabulary
    pretrain    trains a model on shards
    load        loads a model, which maps texts to hidden states and logits
    evaluate    computes the held-out loss of a checkpoint
    fill_mask   finds the most probable word pieces for each [MASK]
    embed       turns each text into a vector
    finetune    fine-tunes a checkpoint on GLUE, SQuAD or your own files, and scores it
    report      writes a page about runs or a comparison, with their scores
    export      writes a checkpoint as a Hugging Face folder
"""

import importlib
import pathlib
import signal
import sys
import time

STARTED = time.monotonic()  # when this process imported the package, which is about when it started
__version__ = "0.1.0"
API = ("prepare", "pretrain", "load", "evaluate", "fill_mask", "embed", "finetune", "report", "export")


class BadInput(Exception):
    """Raised when something the user gave cannot be used.

    The message names the option, file or shape, its value, what was expected, and the remedy. The commands print the
    message without a traceback, and exit with `exit_code`.
    """

    exit_code = 2


class Interrupted(Exception):
    """Raised after a signal, once the work is saved. `exit_code` is 128 plus the signal's number, as in shells."""

    def __init__(self, signum: int, saved: str):
        super().__init__(f"stopped by {signal.Signals(signum).name}; {saved}")
        self.exit_code = 128 + signum


def command() -> str:
    """How to call this program again from this folder: `bert-fast` or `python -m bert_fast`, as it was started."""
    if pathlib.Path(sys.argv[0]).name == "bert-fast":
        return "bert-fast"
    path = pathlib.Path(sys.executable)
    python = path.relative_to(pathlib.Path.cwd()) if path.is_relative_to(pathlib.Path.cwd()) else path
    return f"{python} -m bert_fast"


def __getattr__(name: str):
    # Imported on first use, so that `import bert_fast` and --help stay fast.
    if name in API:
        return getattr(importlib.import_module("bert_fast.api"), name)
    raise AttributeError(f"module 'bert_fast' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *API])
