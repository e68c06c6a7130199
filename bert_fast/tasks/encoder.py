"""What is fine-tuned: the encoder of a checkpoint, of a Hugging Face folder, or either's model with fresh weights."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_fast import BadInput, bert, inference
from bert_fast.bert import Params
from bert_fast.data.vocab import Vocab
from bert_fast.hf import read
from bert_fast.layers import Config
from bert_fast.tasks.settings import Settings


class Encoder(NamedTuple):
    """A model with its weights and vocabulary; `about` says in JSON which it is, for results.json."""

    model: Config
    params: Params
    vocab: Vocab
    about: dict[str, Any]


def check_source(checkpoint: str, hf: str):
    """Raises BadInput where not exactly one place to load from is given."""
    if bool(checkpoint) == bool(hf):
        raise BadInput("give one of --checkpoint=DIR (a run of bert_fast) and --hf=DIR (a Hugging Face folder)")


def load(checkpoint: str, hf: str, settings: Settings) -> Encoder:
    """The encoder of a run folder or checkpoint, or of a Hugging Face folder, as it will be fine-tuned.

    Raises BadInput where it cannot be read, or cannot take rows of the settings' length or ids of its vocabulary.
    """
    check_source(checkpoint, hf)
    if checkpoint:
        trained = inference.load(checkpoint)
        model, params, words = trained.program.model, trained.params, trained.vocab
        if not has_learned_pooler(trained.program.objective, trained.about):
            params = without_next(params)
        about = {"checkpoint": str(trained.folder), "step": trained.about["step"]}
    else:
        found = read.read(hf)
        model, params, words = found.model, found.params, found.vocab
        about = {"hf": hf}
        if "pooler" in found.initialised:
            params = without_next(params)
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
    about |= {"random_weights": settings.random_weights, "vocab": words.fingerprint}
    about |= {"model": dataclasses.asdict(model)}
    return Encoder(settings.model(model), jax.tree.map(np.asarray, params), words, about)


def has_learned_pooler(objective: str, about: dict[str, Any]) -> bool:
    """Whether a checkpoint's pooler was ever trained, by what is said about it: an import may have initialised it, and
    here only the next-sentence objective trains it.
    """
    if "imported" in about:
        return "pooler" not in about["imported"]["initialised"]
    return "nsp" in objective or bool(about.get("init"))


def without_next(params: Params) -> Params:
    """The parameters without pooler and next-sentence head."""
    return {name: leaf for name, leaf in params.items() if name != "next"}


def weights(encoder: Encoder, settings: Settings, key) -> Params:
    """The weights with which a run begins: the encoder's, or fresh ones of the same model."""
    if not settings.random_weights:
        return encoder.params
    return bert.init(encoder.model, key)
