"""Uses of a trained model: held-out loss, hidden states, vectors of texts, and words for [MASK]."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from bert_fast import BadInput, bert, encoder
from bert_fast.data import shards
from bert_fast.data.unigram import unigram_loss
from bert_fast.encoder import Encoder
from bert_fast.method import Method
from bert_fast.plan import Route, whole
from bert_fast.train.evaluate import Evaluator, eval_batches, fingerprint
from bert_fast.train.objective import make_eval_step
from bert_fast.train.sharding import make_mesh

POOLINGS = ("mean", "cls")
WIDTH = 32  # texts are padded to a multiple of this many tokens


def evaluate(path: str, data_dir: str = "", with_unigram: bool = False, **changes) -> dict:
    """Held-out losses of a checkpoint as one flat dict, by default with the run's shards and settings.

    `changes` are fields of `settings.Evaluation` (examples, seq_len, seed, ...). Two losses are comparable only if
    they have the same `fingerprint`. The entry `untrained_heads` names the heads with random weights. If there are any,
    a warning is given. Raises BadInput if the shards were not prepared with the checkpoint's vocabulary.
    """
    trained = encoder.load(path)
    if trained.about.data is None or trained.about.eval is None:
        raise BadInput(f"{path} was fine-tuned, so it has no MLM head: give the run that it started from")
    data = dataclasses.replace(trained.about.data, **({"dir": data_dir} if data_dir else {}))
    if not data.dir:
        raise BadInput(f"{path} was not trained on any shards: give --data=DIR, a folder prepared with its vocabulary")
    settings = dataclasses.replace(trained.about.eval, **changes)
    longest = trained.program.model.max_len
    if settings.seq_len > longest:
        raise BadInput(f"--seq_len={settings.seq_len} is above the model's {longest} positions: shorten it")
    manifest = shards.verify(data.dir)
    if manifest["vocab"]["sha256"] != trained.vocab.fingerprint:
        raise BadInput(
            f"{data.dir} was not prepared with the vocabulary of {trained.folder}: prepare it with "
            f"--vocab={trained.folder / 'vocab.txt'}"
        )
    objective = trained.program.objective
    untrained = warn_if_untrained(trained, "MLM head", *encoder.HEADS[1:] if "nsp" in objective else ())
    batches = eval_batches(data, settings)
    mesh = make_mesh(1, 1, 1, jax.local_devices()[:1])
    means = Evaluator(make_eval_step(Method()), batches, mesh).full(
        jax.device_put(trained.params), {}, (), trained.program
    )
    result = {"checkpoint": str(trained.folder), "step": trained.about.step, **means}
    result["perplexity"] = math.exp(min(means["mlm_loss"], 700))
    if with_unigram:
        result["unigram_loss"] = unigram_loss(shards.Split(data.dir, "train"), trained.vocab.size, batches)
    about = {"data": data.dir, "fingerprint": fingerprint(manifest, data, settings), "untrained_heads": untrained}
    return result | about


def warn_if_untrained(trained: Encoder, *heads: str) -> list[str]:
    """Which of the heads have random weights. If there are any, warns that their results mean nothing."""
    found = [head for head in heads if head in trained.untrained]
    if found:
        warnings.warn(
            f"{trained.folder} has random weights in its {' and '.join(found)}, which were never trained: "
            "the results say nothing about the model. First pre-train it further (pretrain --config.init=DIR)",
            stacklevel=3,
        )
    return found


class Outputs(NamedTuple):
    """A model's outputs for texts. S is the length of the longest text, in tokens.

    tokens: the word pieces of each text, with [CLS] and [SEP].
    logits_BSV: logits of the MLM head over the vocabulary; None for a fine-tuned model.
    real_BS: False at padding.
    """

    tokens: Sequence[Sequence[str]]
    hidden_BSD: np.ndarray
    logits_BSV: np.ndarray | None
    real_BS: np.ndarray


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model that can be called with texts. `encoder` holds its vocabulary and its description."""

    encoder: Encoder

    @property
    def params(self) -> bert.Params:
        """The parameters, a tree of NumPy arrays."""
        return self.encoder.params

    def __call__(self, texts: str | Sequence[str]) -> Outputs:
        """Last hidden states and MLM logits of the texts. Raises BadInput for a text that is too long for the model."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        trained, model = self.encoder, self.encoder.model
        if not texts:
            raise BadInput("no texts: give at least one")
        ids_B = [token_ids(trained, text) for text in texts]
        batch = batch_of(ids_B, max(map(len, ids_B)), trained.vocab.pad)
        x_BSD, logits = hidden_states(model, trained.params, batch), None
        if not trained.about.task:
            logits = np.asarray(mlm_logits(model, trained.params, x_BSD, batch["positions"]))[..., : trained.vocab.size]
        tokens = [[trained.vocab.tokenizer.id_to_token(i) or "" for i in ids] for ids in ids_B]
        return Outputs(tokens, np.asarray(x_BSD, np.float32), logits, batch["segments"] > 0)


def embed(trained: Encoder, texts: Sequence[str], pooling: str = "mean", batch_size: int = 32) -> np.ndarray:
    """One vector per text, from the last hidden states: [N, D] float32.

    pooling: "mean" averages the states of all tokens of a text, including [CLS] and [SEP]. "cls" takes the state of
        [CLS].

    Texts that are too long for the model are cut, with a warning. Raises BadInput for an unknown pooling.
    """
    if pooling not in POOLINGS:
        raise BadInput(f"pooling {pooling!r} is unknown: use {' or '.join(POOLINGS)}")
    longest = trained.model.max_len
    ids_N = [token_ids(trained, text, cut=True) for text in texts]
    if cut := sum(len(ids) > longest for ids in ids_N):
        warnings.warn(
            f"{cut} of {len(texts)} texts are longer than the model's {longest} tokens and were cut", stacklevel=2
        )
        ids_N = [ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in ids_N]
    vectors_ND = np.zeros((len(ids_N), trained.model.width), np.float32)
    by_length = np.argsort([len(ids) for ids in ids_N], kind="stable")
    for start in range(0, len(by_length), batch_size):
        which = by_length[start : start + batch_size]
        rows = [ids_N[n] for n in which]
        seq_len = min(
            longest, -(-len(rows[-1]) // WIDTH) * WIDTH
        )  # only a few lengths, so that few programs are compiled
        rows += [rows[-1]] * (batch_size - len(rows))
        batch = batch_of(rows, seq_len, trained.vocab.pad)
        x_BSD = np.asarray(hidden_states(trained.model, trained.params, batch), np.float32)[: len(which)]
        real_BS1 = (batch["segments"] > 0)[: len(which), :, None]
        vectors_ND[which] = x_BSD[:, 0] if pooling == "cls" else (x_BSD * real_BS1).sum(1) / real_BS1.sum(1)
    return vectors_ND


def fill_mask(trained: Encoder, texts: Sequence[str], top: int = 5) -> list[list[list[tuple[str, float]]]]:
    """The `top` most probable word pieces with their probabilities, for each [MASK] of each text.

    Warns if the MLM head has random weights. Raises BadInput for a text without [MASK], a text that is too long, and a
    fine-tuned model.
    """
    words, model = trained.vocab, trained.model
    if trained.about.task:
        raise BadInput(f"{trained.folder} was fine-tuned, so it has no MLM head: give the run that it started from")
    if not texts:
        raise BadInput("no texts: give at least one, with [MASK] in place of a word")
    top = min(top, words.size - len(words.special))
    ids_B = [token_ids(trained, text) for text in texts]
    for text, ids in zip(texts, ids_B, strict=True):
        if words.mask not in ids:
            raise BadInput(f"no [MASK] in {text!r}: write [MASK] in place of the word to fill in")
    warn_if_untrained(trained, "MLM head")
    batch = batch_of(ids_B, max(map(len, ids_B)), words.pad)
    places_B = [np.flatnonzero(np.array(ids) == words.mask) for ids in ids_B]
    slots_BP = np.zeros((len(ids_B), max(map(len, places_B))), np.int32)
    for b, places in enumerate(places_B):
        slots_BP[b, : len(places)] = places
    x_BSD = hidden_states(model, trained.params, batch)
    probs_BPV = np.array(jax.nn.softmax(mlm_logits(model, trained.params, x_BSD, slots_BP)))
    probs_BPV = probs_BPV[..., : words.size]  # an imported table may have rows beyond its vocabulary
    probs_BPV[..., list(words.special)] = -1  # special tokens are never suggested
    token = words.tokenizer.id_to_token
    found = []
    for probs_PV, places in zip(probs_BPV, places_B, strict=True):
        best = [(probs_V, np.argsort(-probs_V)[:top]) for probs_V in probs_PV[: len(places)]]
        found.append([[(token(int(i)), float(probs_V[i])) for i in ids] for probs_V, ids in best])
    return found


def token_ids(trained: Encoder, text: str, cut: bool = False) -> list[int]:
    """Ids of [CLS], the text and [SEP]. Raises BadInput if these are too many for the model.

    cut: the caller cuts the ids, so any number of them is allowed.
    """
    words, longest = trained.vocab, trained.model.max_len
    ids = words.tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) + 2 > longest and not cut:
        raise BadInput(f"{text[:60]!r}... has {len(ids)} tokens, but the model takes {longest - 2}: shorten it")
    return [words.cls, *ids, words.sep]


def batch_of(ids_B: Sequence[Sequence[int]], seq_len: int, pad: int) -> dict[str, np.ndarray]:
    """The inputs of `bert.encode` for texts padded to `seq_len`."""
    shape = len(ids_B), seq_len
    batch = {"ids": np.full(shape, pad, np.int32), "types": np.zeros(shape, np.int32)}
    batch |= {
        "segments": np.zeros(shape, np.int32),
        "positions": np.tile(np.arange(seq_len, dtype=np.int32), (shape[0], 1)),
    }
    for b, ids in enumerate(ids_B):
        batch["ids"][b, : len(ids)], batch["segments"][b, : len(ids)] = ids, 1
    return batch


@functools.partial(jax.jit, static_argnames="model")
def hidden_states(model: bert.Config, params, batch):
    """Last hidden states: [B, S, D]."""
    return bert.encode(model, params, {}, batch, whole(model.depth), Route(), None)


@functools.partial(jax.jit, static_argnames="model")
def mlm_logits(model: bert.Config, params, x_BSD, slots_BP):
    """Logits of the MLM head at these positions: [B, P, V]."""
    return bert.predict(model, params, {}, x_BSD, slots_BP)
