"""A held-out sentence with one word masked, to try a model on. It is in the language of the training text."""

import itertools
import pathlib

import numpy as np

from bert_fast import BadInput
from bert_fast.data.masking import read_vocab
from bert_fast.data.shards import Split

ANY = "Write a sentence here with [MASK] in place of a word."
DOCUMENTS = 20  # maximum number of held-out documents to search
SHORTEST, LONGEST = 6, 20  # tokens of the sentence


def masked(folder: str | pathlib.Path) -> str:
    """The first suitable held-out sentence of a shards folder, with the whole word nearest to its middle masked.

    Returns ANY if no sentence is suitable, or if the folder cannot be read.
    """
    try:
        words, split = read_vocab(folder), Split(folder, "valid")
        name = words.tokenizer.id_to_token
        for number in range(min(len(split), DOCUMENTS)):
            document = split[number]
            for begin, end in itertools.pairwise([*document.starts_N.tolist(), len(document.tokens_T)]):
                tokens_T = document.tokens_T[begin:end].astype(int)
                if not SHORTEST <= len(tokens_T) <= LONGEST or np.isin(tokens_T, words.special).any():
                    continue
                starts_T = np.append(~words.continues_W[tokens_T], True)  # where a word begins
                whole = [
                    at
                    for at, token in enumerate(tokens_T.tolist())
                    if starts_T[at] and starts_T[at + 1] and str(name(token)).isalpha()
                ]
                if whole:
                    chosen = min(whole, key=lambda at: abs(at - len(tokens_T) // 2))
                    parts = (tokens_T[:chosen], tokens_T[chosen + 1 :])
                    before, after = (words.tokenizer.decode(part.tolist()) for part in parts)
                    return " ".join(filter(None, [before, "[MASK]", after]))
    except (BadInput, OSError):
        pass
    return ANY
