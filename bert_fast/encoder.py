"""A trained encoder with its vocabulary, ready to evaluate, fine-tune or export."""

import dataclasses
import pathlib

import jax
import numpy as np

from bert_fast import methods
from bert_fast.bert import Config, Params
from bert_fast.data.vocab import Vocab
from bert_fast.method import Program
from bert_fast.train import checkpoint
from bert_fast.train.description import Description
from bert_fast.train.report import say


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model with its parameters, from a checkpoint or from a Hugging Face folder.

    folder: where it was loaded from. params: NumPy arrays, as returned by `Method.weights` of the run's methods.
    about: its description. A Hugging Face folder is described like a checkpoint of step 0.
    """

    folder: pathlib.Path
    params: Params
    about: Description

    @property
    def vocab(self) -> Vocab:
        return self.about.vocab

    @property
    def program(self) -> Program:
        return self.about.program

    @property
    def model(self) -> Config:
        return self.about.model

    @property
    def initialised(self) -> tuple[str, ...]:
        """Names of the heads that the Hugging Face folder lacked, which were initialised at random."""
        return tuple(self.about.imported["initialised"]) if self.about.imported else ()


def load(path: str | pathlib.Path) -> Encoder:
    """The encoder of a checkpoint, or of the newest undamaged checkpoint in a run folder.

    Raises BadInput if there is none.
    """
    folder = checkpoint.find(path, say)
    about = checkpoint.about(folder)
    params, _ = methods.make(about.methods).weights(checkpoint.restore_params(folder))
    return Encoder(folder, jax.tree.map(np.asarray, params), about)
