"""Dynamic masking: which tokens of an example are predicted, and what replaces them.

Axes: S positions of an example, M maskable positions, K predicted positions, P prediction slots (K of
them filled), W tokens of the vocabulary.
"""

import math
import pathlib

import numpy as np

from bert_fast import BadInput
from bert_fast.data import fetched, shards, vocab
from bert_fast.data.vocab import Vocab

# Of the predicted positions, 80 % become [MASK], 10 % stay and 10 % become a random token (BERT, arXiv
# 1810.04805, section 3.1). Each position is drawn independently, as in create_pretraining_data.py.
MASKED, UNCHANGED = 0.8, 0.1


def read_vocab(folder: str | pathlib.Path) -> Vocab:
    """The vocabulary of a shards folder.

    Raises BadInput if `vocab.txt` cannot be used, or is not the one that the shards were made with.
    """
    path = fetched.folder(folder) / "vocab.txt"
    found = vocab.from_json(shards.read_manifest(folder)["vocab"], path)
    if found.size == len(found.special):
        raise BadInput(f"{path} holds only special tokens: masking needs words; prepare again with another vocabulary")
    return found


def prediction_slots(seq_len: int, masked_share: float = 0.15) -> int:
    """Number of prediction slots in an example: 20 at `seq_len` 128 and 77 at 512, as BERT's README advises."""
    return max(1, math.ceil(masked_share * seq_len))


class Masking:
    """Chooses and replaces the predicted tokens of an example.

    With `whole_word`, all pieces of a word are chosen together. A word is a piece and the '##' pieces
    directly after it. Special tokens, including [UNK], end a word. They are never predicted, and never
    drawn as a random replacement. (BERT draws from the whole vocabulary, including its special tokens.)
    """

    def __init__(self, vocab: Vocab, masked_share: float, slots: int, whole_word: bool):
        self.vocab, self.masked_share, self.slots, self.whole_word = vocab, masked_share, slots, whole_word
        self.maskable_W = np.ones(vocab.size, bool)
        self.maskable_W[list(vocab.special)] = False
        self.ordinary = np.flatnonzero(self.maskable_W).astype(np.int32)

    def __call__(self, ids_S: np.ndarray, segments_S: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`ids` after masking, and the predictions: `slots` (ascending positions), `labels`, `weights`, each [P].

        Unfilled slots hold position 0, label 0 and weight 0. Without a maskable token, every slot is unfilled.
        """
        chosen_K = self._choose(ids_S, segments_S, rng)
        fate_K = rng.random(len(chosen_K))
        random_K = self.ordinary[rng.integers(len(self.ordinary), size=len(chosen_K))]
        labels_K = ids_S[chosen_K]
        kept_K = np.where(fate_K < MASKED + UNCHANGED, labels_K, random_K)
        ids_S = ids_S.copy()
        ids_S[chosen_K] = np.where(fate_K < MASKED, self.vocab.mask, kept_K)

        slots_P, labels_P = np.zeros((2, self.slots), np.int32)
        weights_P = np.zeros(self.slots, np.float32)
        slots_P[: len(chosen_K)] = chosen_K
        labels_P[: len(chosen_K)] = labels_K
        weights_P[: len(chosen_K)] = 1.0
        return {"ids": ids_S, "slots": slots_P, "labels": labels_P, "weights": weights_P}

    def _choose(self, ids_S: np.ndarray, segments_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        maskable_M = np.flatnonzero(self.maskable_W[ids_S])
        # The share applies to all tokens, including special ones, as in BERT: 19 predictions in 128 positions.
        length = np.count_nonzero(segments_S)
        wanted = min(self.slots, max(1, round(self.masked_share * length)), len(maskable_M))
        if self.whole_word:
            return self._choose_words(ids_S, maskable_M, wanted, rng)
        order_M = np.argsort(rng.random(len(maskable_M)))
        return np.sort(maskable_M[order_M[:wanted]])

    def _choose_words(
        self, ids_S: np.ndarray, maskable_M: np.ndarray, wanted: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Takes words in random order, skipping any that would exceed `wanted`, as BERT does."""
        # The text of an example may begin inside a word, so a '##' piece after a special token starts a word.
        adjoins_M = np.diff(maskable_M, prepend=-1) == 1
        starts = np.flatnonzero(~(self.vocab.continues_W[ids_S[maskable_M]] & adjoins_M))
        sizes = np.diff(starts, append=len(maskable_M))
        chosen, left = [], wanted
        for word in rng.permutation(len(starts)).tolist():
            if (size := sizes[word]) <= left:
                chosen.append(maskable_M[starts[word] : starts[word] + size])
                left -= size
                if left == 0:
                    break
        return np.sort(np.concatenate(chosen)) if chosen else maskable_M[:0]
