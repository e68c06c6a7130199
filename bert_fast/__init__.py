"""Accelerated BERT pre-training: one trunk, one engine, methods as small files.

From Python (`bert_fast.api` documents each; `python -m bert_fast` has the same as commands):

    prepare     text to shards and a vocabulary
    pretrain    shards to a model
    load        a checkpoint, and a function from texts to hidden states and logits
    evaluate    held-out loss of a checkpoint
    fill_mask   the most probable word pieces for each [MASK]
    embed       one vector per text
    finetune    scores on GLUE or SQuAD
    export      a checkpoint as a Hugging Face folder
"""

import importlib
import pathlib
import signal
import sys
import time

STARTED = time.monotonic()  # of this process, as near as the package knows
__version__ = "0.1.0"
API = ("prepare", "pretrain", "load", "evaluate", "fill_mask", "embed", "finetune", "export")


class BadInput(Exception):
    """Raised when something the user gave cannot be used.

    The message names the thing, the value it had, what was expected and the remedy. The commands print it without a
    traceback and exit with 2.
    """


class Interrupted(Exception):
    """Raised after a signal, once the work is saved. `exit_code` is 128 plus the signal's number, as in shells."""

    def __init__(self, signum: int, saved: str):
        super().__init__(f"stopped by {signal.Signals(signum).name}; {saved}")
        self.exit_code = 128 + signum


def command() -> str:
    """How this program was started, as one would type it here: `bert-fast`, or `python -m bert_fast`."""
    if pathlib.Path(sys.argv[0]).name == "bert-fast":
        return "bert-fast"
    path = pathlib.Path(sys.executable)
    python = path.relative_to(pathlib.Path.cwd()) if path.is_relative_to(pathlib.Path.cwd()) else path
    return f"{python} -m bert_fast"


def __getattr__(name: str):
    # Imported on first use: `import bert_fast` and --help stay quick.
    if name in API:
        return getattr(importlib.import_module("bert_fast.api"), name)
    raise AttributeError(f"module 'bert_fast' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *API])
