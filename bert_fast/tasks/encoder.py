"""What is fine-tuned: the encoder of a checkpoint, of a Hugging Face folder, or either's model with fresh weights."""

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
    """Raises BadInput where not exactly one place to load from is given."""
    if bool(checkpoint) == bool(hf):
        raise BadInput("give one of --checkpoint=DIR (a run of bert_fast) and --hf=DIR (a Hugging Face folder)")


def load(checkpoint: str, hf: str, settings: FinetuneSettings) -> Encoder:
    """The encoder of a run folder or checkpoint, or of a Hugging Face folder; without a pooler that never learned.

    Raises BadInput where it cannot be read, or cannot take rows of the settings' length or ids of its vocabulary.
    """
    check_source(checkpoint, hf)
    found = encoder.load(checkpoint) if checkpoint else read.read(hf)
    if not has_learned_pooler(found):
        found = dataclasses.replace(found, params=without_next(found.params))
    model, words = found.model, found.vocab
    if settings.data.seq_len > model.max_len:
        raise BadInput(
            f"--config.data.seq_len={settings.data.seq_len} is above the model's {model.max_len} positions: shorten it"
        )
    if model.type_count < 2:
        raise BadInput("this model has one token type, and pairs of texts need two: it cannot be fine-tuned on them")
    if words.size > model.vocab_size:
        raise BadInput(
            f"the vocabulary of {checkpoint or hf} has {words.size:,} tokens, its model {model.vocab_size:,}: "
            "the two do not belong together"
        )
    return found


def source(found: Encoder, hf: str, random_weights: bool) -> dict[str, Any]:
    """Which encoder it is, as JSON, for config.json and results.json."""
    where = {"hf": hf} if hf else {"checkpoint": str(found.folder), "step": found.about.step}
    about = {"random_weights": random_weights, "vocab": found.vocab.fingerprint}
    return where | about | {"model": dataclasses.asdict(found.model)}


def has_learned_pooler(found: Encoder) -> bool:
    """Whether the pooler was ever trained: an import may have initialised it, and only the next-sentence objective
    trains it here.
    """
    if found.about.imported:
        return "pooler" not in found.initialised
    return "nsp" in found.program.objective or bool(found.about.init)


def without_next(params: Params) -> Params:
    """The parameters without pooler and next-sentence head."""
    return {name: leaf for name, leaf in params.items() if name != "next"}


def weights(found: Encoder, model: Config, settings: FinetuneSettings, key) -> Params:
    """The weights with which a run begins: the encoder's, or fresh ones of the same model."""
    if not settings.random_weights:
        return found.params
    return jax.tree.map(np.asarray, bert.init(model, key))
