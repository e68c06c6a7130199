"""The baseline every model must beat: predicting tokens by their frequency in the training text, without context."""

from collections.abc import Iterable

import numpy as np

from bert_fast.data.shards import Split


def unigram_loss(train: Split, vocab_size: int, batches: Iterable[dict]) -> float:
    """Mean cross-entropy, in nats, of the labels in `batches` under the train split's token frequencies (add-one)."""
    counts_V = np.ones(vocab_size, np.int64)
    for document in range(len(train)):
        counts_V += np.bincount(train[document].tokens_T, minlength=vocab_size)
    loss_V = np.log(counts_V.sum()) - np.log(counts_V)
    total = weight = 0.0
    for batch in batches:
        total += float((loss_V[batch["labels"]] * batch["weights"]).sum())
        weight += float(batch["weights"].sum())
    return total / max(weight, 1)
