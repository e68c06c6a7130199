"""A trained model from its checkpoint alone: held-out loss, and words for the masks of a sentence."""

import dataclasses
import math

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


def evaluate(path: str, data_dir: str = "", with_unigram: bool = False, **changes) -> dict:
    """Held-out losses of a checkpoint as one flat dict, by default on the run's own shards and settings.

    `changes` are fields of `settings.Evaluation` (examples, seq_len, seed, ...). Losses compare only
    where `fingerprint` is equal. Raises BadInput where the shards have another vocabulary.
    """
    trained = encoder.load(path)
    if trained.about.data is None or trained.about.eval is None:
        raise BadInput(f"{path} was fine-tuned: it predicts no masked words. Give the run that it began from")
    data = dataclasses.replace(trained.about.data, **({"dir": data_dir} if data_dir else {}))
    if not data.dir:
        raise BadInput(f"{path} was not trained on shards of its own: give --data=DIR, prepared with its vocabulary")
    settings = dataclasses.replace(trained.about.eval, **changes)
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
    means = Evaluator(make_eval_step(Method()), batches, mesh).full(
        jax.device_put(trained.params), {}, (), trained.program
    )
    result = {"checkpoint": str(trained.folder), "step": trained.about.step, **means}
    result["perplexity"] = math.exp(min(means["mlm_loss"], 700))
    if with_unigram:
        result["unigram_loss"] = unigram_loss(shards.Split(data.dir, "train"), trained.vocab.size, batches)
    return {**result, "data": data.dir, "fingerprint": fingerprint(manifest, data, settings)}


def fill_mask(trained: Encoder, texts: list[str], top: int = 5) -> list[list[list[tuple[str, float]]]]:
    """For each text, for each [MASK] in it, the most probable word pieces with their probabilities.

    Raises BadInput for a text without [MASK], or longer than the model.
    """
    words, model = trained.vocab, trained.model
    if trained.about.task:
        raise BadInput(f"{trained.folder} was fine-tuned: it fills no masks. Give the run that it began from")
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
    probs_BPV[..., list(words.special)] = 0
    probs_BPV[..., words.size :] = 0  # rows of an imported table for which there is no word
    found = []
    for b, row in enumerate(rows):
        best = [np.argsort(-probs_V)[:top] for probs_V in probs_BPV[b, : row.count(words.mask)]]
        token = words.tokenizer.id_to_token
        found.append([[(token(int(i)), float(probs_BPV[b, p, i])) for i in ids] for p, ids in enumerate(best)])
    return found
