"""A trained model from its checkpoint alone: held-out loss, and words for the masks of a sentence."""

import math
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from bert_fast import BadInput, bert, methods
from bert_fast.bert import Params
from bert_fast.data import shards, vocab
from bert_fast.data.unigram import unigram_loss
from bert_fast.method import Method, Program
from bert_fast.plan import Route, whole
from bert_fast.settings import Data, Evaluation
from bert_fast.train import checkpoint
from bert_fast.train.evaluate import Evaluator, eval_batches, fingerprint
from bert_fast.train.report import say
from bert_fast.train.sharding import make_mesh
from bert_fast.train.step import make_eval_step


class Trained(NamedTuple):
    """A checkpoint's parameters, whole, and what it says about itself."""

    folder: pathlib.Path
    program: Program
    params: Params
    vocab: vocab.Vocab
    about: dict


def load(path: str | pathlib.Path) -> Trained:
    """The model of a run folder's newest good step, or of one step. Raises BadInput."""
    folder = checkpoint.find(path, say)
    about = checkpoint.about(folder)
    program = checkpoint.stage_from_json(about["stage"]).program
    words = vocab.load(folder / "vocab.txt", about["vocab"]["cased"], about["vocab"]["strip_accents"])
    # What a method added to the parameters is applied, so that the trunk sees a plain model.
    params, _ = methods.make(about["methods"]).weights(checkpoint.restore_params(folder))
    return Trained(folder, program, jax.device_put(params), words, about)


def evaluate(path: str, data_dir: str = "", with_unigram: bool = False, **changes) -> dict:
    """Held-out losses of a checkpoint as one flat dict, by default on the run's own shards and settings.

    `changes` are fields of `settings.Evaluation` (examples, seq_len, seed, ...). Losses compare only
    where `fingerprint` is equal. Raises BadInput where the shards have another vocabulary.
    """
    trained = load(path)
    data = Data(**trained.about["data"] | ({"dir": data_dir} if data_dir else {}))
    if not data.dir:
        raise BadInput(f"{path} was not trained on shards of its own: give --data=DIR, prepared with its vocabulary")
    settings = Evaluation(**trained.about["eval"] | changes)
    longest = trained.program.model.max_len
    if settings.seq_len > longest:
        raise BadInput(f"--seq_len={settings.seq_len} is above the model's {longest} positions: shorten it")
    manifest = shards.verify(data.dir)
    if manifest["vocab"]["sha256"] != trained.vocab.fingerprint:
        raise BadInput(
            f"{data.dir} was prepared with another vocabulary than {trained.folder} was trained with: prepare it with "
            f"--vocab={trained.folder / 'vocab.txt'}"
        )
    batches = eval_batches(data, settings)
    mesh = make_mesh(1, 1, 1, jax.local_devices()[:1])
    means = Evaluator(make_eval_step(Method()), batches, mesh).full(trained.params, {}, (), trained.program)
    result = {"checkpoint": str(trained.folder), "step": trained.about["step"], **means}
    result["perplexity"] = math.exp(min(means["mlm_loss"], 700))
    if with_unigram:
        result["unigram_loss"] = unigram_loss(shards.Split(data.dir, "train"), trained.vocab.size, batches)
    return {**result, "data": data.dir, "fingerprint": fingerprint(manifest, data, settings)}


def fill_mask(trained: Trained, texts: list[str], top: int = 5) -> list[list[list[tuple[str, float]]]]:
    """For each text, for each [MASK] in it, the most probable word pieces with their probabilities.

    Raises BadInput for a text without [MASK], or longer than the model.
    """
    words, model = trained.vocab, trained.program.model
    rows = []
    for text in texts:
        ids = words.tokenizer.encode(text, add_special_tokens=False).ids
        if words.mask not in ids:
            raise BadInput(f"no [MASK] in {text!r}: write one where a word is to be filled in")
        if len(ids) + 2 > model.max_len:
            raise BadInput(f"{text[:60]!r}... has {len(ids)} tokens, the model takes {model.max_len - 2}: shorten it")
        rows.append([words.cls, *ids, words.sep])
    longest, masks = max(map(len, rows)), max(row.count(words.mask) for row in rows)
    batch = {name: np.zeros((len(rows), longest), np.int32) for name in ("ids", "types", "segments")}
    batch["positions"] = np.tile(np.arange(longest, dtype=np.int32), (len(rows), 1))
    slots_BP = np.zeros((len(rows), masks), np.int32)
    for b, row in enumerate(rows):
        batch["ids"][b, : len(row)], batch["segments"][b, : len(row)] = row, 1
        places = np.flatnonzero(np.array(row) == words.mask)
        slots_BP[b, : len(places)] = places

    @jax.jit
    def probabilities(params, batch, slots_BP):
        x_BSD = bert.encode(model, params, {}, batch, whole(model.depth), Route(), None)
        return jax.nn.softmax(bert.predict(model, params, {}, x_BSD, slots_BP))

    probs_BPV = np.array(probabilities(trained.params, batch, slots_BP))
    probs_BPV[..., list(words.special_ids.values())] = 0
    probs_BPV[..., words.size :] = 0  # rows of an imported table for which there is no word
    found = []
    for b, row in enumerate(rows):
        best = [np.argsort(-probs_V)[:top] for probs_V in probs_BPV[b, : row.count(words.mask)]]
        token = words.tokenizer.id_to_token
        found.append([[(token(int(i)), float(probs_BPV[b, p, i])) for i in ids] for p, ids in enumerate(best)])
    return found
