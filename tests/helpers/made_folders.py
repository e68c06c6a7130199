"""Makes Hugging Face folders with transformers, and checkpoints without training."""

import dataclasses
import json

import numpy as np
import pytest

from bert_fast import bert
from bert_fast.data import vocab
from bert_fast.hf import read
from bert_fast.method import Stage
from bert_fast.schedule import Schedule
from bert_fast.train import checkpoint
from bert_fast.train.description import Description
from bert_fast.train.step import TrainState
from helpers.made_shards import WORDS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES += [mark + chr(i) for mark in ("", "##") for i in range(ord("a"), ord("z") + 1)] + ["the", "##ing", "é", "."]
# The embedding table has more rows than there are pieces, as if its size were rounded up.
SIZES = {
    "vocab_size": len(PIECES) + 3,
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "type_vocab_size": 2,
}
CLASSES = {"bert": "Bert", "megatron-bert": "MegatronBert", "roberta-prelayernorm": "RobertaPreLayerNorm"}


def their_model(kind="bert", heads="ForPreTraining", seed=0, **changes):
    """A transformers model in which every weight is random. roberta-prelayernorm counts positions from 1."""
    config_class = getattr(transformers, CLASSES[kind] + "Config")
    positions = 16 + (kind == "roberta-prelayernorm")
    sizes = {**SIZES, "max_position_embeddings": positions, "pad_token_id": 0, **changes}
    model = getattr(transformers, CLASSES[kind] + heads)(config_class(**sizes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + 0.1)
    return model.eval()


def save_theirs(folder, model, pieces=PIECES, **settings):
    """Writes a Hugging Face folder with the model and its vocabulary."""
    model.save_pretrained(folder)
    write_vocab(folder, pieces, **settings)
    return folder


def write_vocab(folder, pieces=PIECES, **settings):
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **settings}))


def save_checkpoint(folder, config: bert.Config, params, pieces=WORDS, **about):
    """Writes a run folder with these parameters in a checkpoint of step 7."""
    content = "".join(f"{piece}\n" for piece in pieces).encode()
    words = vocab.parse(content, "vocab.txt", False, None)
    program, data, evaluation = read.program_of(config, False)
    stage = Stage("made", program, 7, Schedule(peak=1e-3, steps=7))
    described = Description(
        step=7,
        stage=stage,
        vocab=words,
        data=dataclasses.replace(data, dir="shards"),
        eval=evaluation,
        fingerprint="f00",
        version="0",
    )
    state = TrainState(np.array(7, np.int32), params, {}, (), ())
    checkpoint.save(folder / "checkpoints", state, dataclasses.replace(described, **about), set())
    return folder
