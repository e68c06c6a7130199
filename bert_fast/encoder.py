"""A trained encoder with its vocabulary, ready to evaluate, fine-tune or export."""

import dataclasses
import pathlib

import jax
import numpy as np

from bert_fast import BadInput, methods
from bert_fast.bert import Config, Params
from bert_fast.data.vocab import Vocab
from bert_fast.method import Program
from bert_fast.train import checkpoint
from bert_fast.train.description import Description
from bert_fast.train.report import say

HEADS = ("MLM head", "pooler", "next-sentence head")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model with its parameters, from a checkpoint or from a Hugging Face folder.

    folder: where it was loaded from.
    params: NumPy arrays, to which `Method.weights` of the run's methods has been applied.
    about: its description. A Hugging Face folder is described like a checkpoint of step 0.
    hub: NAME@COMMIT if it was downloaded from the Hugging Face Hub, else "".
    """

    folder: pathlib.Path
    params: Params
    about: Description
    hub: str = ""

    @property
    def origin(self) -> str:
        """Where the encoder came from: its name on the Hub, or its folder."""
        return self.hub or str(self.folder)

    @property
    def vocab(self) -> Vocab:
        return self.about.vocab

    @property
    def program(self) -> Program:
        return self.about.program

    @property
    def model(self) -> Config:
        return self.about.model.portable()

    @property
    def untrained(self) -> tuple[str, ...]:
        """Names of the pre-training heads that still have random weights: see `untrained_heads`."""
        return untrained_heads(self.about)


def load(path: str | pathlib.Path) -> Encoder:
    """The encoder of a checkpoint, or of the newest undamaged checkpoint in a run folder.

    If a run in progress deletes that checkpoint in the meantime, loads the run's next one. Raises BadInput if there is
    no checkpoint.
    """
    return checkpoint.read(path, _encoder, say)


def _encoder(folder: pathlib.Path) -> Encoder:
    about = checkpoint.about(folder)
    params, _ = methods.make(about.methods).weights(checkpoint.restore_params(folder))
    return Encoder(folder, jax.tree.map(np.asarray, params), about)


def untrained_heads(about: Description) -> tuple[str, ...]:
    """Names of the pre-training heads (`HEADS`) that were initialised at random and have not been trained since.

    `import` initialises the heads that a Hugging Face folder lacks. Pre-training always trains the MLM head. It trains
    the other two only with the next-sentence objective; otherwise they are copied from the run that this run started
    from (`init`). If that run no longer exists, they count as untrained.
    """
    if about.imported:
        return tuple(about.imported["initialised"])
    stages = (*about.earlier_stages, about.stage)
    if not about.model.pooler or any("nsp" in stage.program.objective for stage in stages):
        return ()
    try:
        before = checkpoint.about(checkpoint.find(about.init)) if about.init else None
    except BadInput:
        before = None
    if before is None or not before.model.pooler:
        return HEADS[1:]
    return tuple(head for head in untrained_heads(before) if head in HEADS[1:])
