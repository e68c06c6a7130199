"""Loads the encoder that is fine-tuned. It comes from a checkpoint or from Hugging Face, and may get fresh weights."""

import dataclasses
from typing import Any

import jax
import numpy as np

from bert_fast import BadInput, bert, encoder
from bert_fast.bert import Config, Params
from bert_fast.encoder import Encoder
from bert_fast.hf import read
from bert_fast.tasks.settings import FinetuneSettings


def check_source(checkpoint: str, hf: str):
    """Raises BadInput unless exactly one source is given."""
    if bool(checkpoint) == bool(hf):
        raise BadInput(
            "give either --checkpoint=DIR (a bert_fast run) or --hf=MODEL (a Hugging Face folder, or a name on the "
            "Hub), not both"
        )


def load(checkpoint: str, hf: str, settings: FinetuneSettings) -> Encoder:
    """The encoder of a run folder, a checkpoint, a Hugging Face folder or a model on the Hub.

    An untrained pooler is dropped: fine-tuning starts with a fresh one.

    Raises BadInput if the encoder cannot be read, has fewer positions than the settings' `seq_len`, has only one token
    type, or does not fit its vocabulary.
    """
    check_source(checkpoint, hf)
    found = encoder.load(checkpoint) if checkpoint else read.read(hf)
    if "pooler" in found.untrained:
        found = dataclasses.replace(found, params=without_next(found.params))
    model, words = found.model, found.vocab
    if settings.data.seq_len > model.max_len:
        raise BadInput(
            f"--config.data.seq_len={settings.data.seq_len} is above the model's {model.max_len} positions: lower it"
        )
    if model.type_count < 2:
        raise BadInput("this model has one token type, but pairs of texts need two: fine-tune a model that has two")
    if words.size > model.vocab_size:
        raise BadInput(
            f"the vocabulary of {checkpoint or hf} has {words.size:,} tokens, but its model has {model.vocab_size:,}: "
            "they do not belong together"
        )
    return found


def source(found: Encoder, hf: str, random_weights: bool) -> dict[str, Any]:
    """Where the encoder came from: an entry for config.json and results.json."""
    where = {"hf": found.hub or hf} if hf else {"checkpoint": str(found.folder), "step": found.about.step}
    about = {"random_weights": random_weights, "vocab": found.vocab.fingerprint}
    return where | about | {"model": dataclasses.asdict(found.model)}


def without_next(params: Params) -> Params:
    """The parameters without the pooler and the next-sentence head."""
    return {name: leaf for name, leaf in params.items() if name != "next"}


def weights(found: Encoder, model: Config, settings: FinetuneSettings, key) -> Params:
    """The initial weights of a run's encoder: the loaded ones, or fresh ones if `random_weights` is set."""
    if not settings.random_weights:
        return found.params
    return jax.tree.map(np.asarray, bert.init(model, key))
