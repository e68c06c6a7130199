"""Batches of examples of similar length. Each epoch has every example once, little padding, and the same shapes."""

import os
import pathlib

import numpy as np
import pytest

from bert_fast.data import vocab
from bert_fast.tasks import batches, glue
from helpers.made_tasks import WORDS, make_vocab

RNG = np.random.default_rng(0)
LENGTHS = np.clip(RNG.normal(40, 15, 500), 4, 97).astype(int)


def rows_of(lengths, labels=None):
    ids = [np.arange(1, length + 1, dtype=np.int32) for length in lengths]
    return batches.TaskExamples(ids, [np.zeros(len(i), np.int32) for i in ids], labels)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return make_vocab(tmp_path_factory.mktemp("vocab"))


def test_pairs_are_laid_out_as_bert_reads_them(words):
    rows = batches.make_examples([["good w1"], ["bad [SEP] w2"]], None, words, 48)
    tokens = [WORDS[i] for i in rows.ids_N[0]]
    # A special token written in the text becomes three unknown tokens, not a separator.
    assert tokens == ["[CLS]", "good", "w1", "[SEP]", "bad", "[UNK]", "[UNK]", "[UNK]", "w2", "[SEP]"]
    assert rows.types_N[0].tolist() == [0] * 4 + [1] * 6


@pytest.mark.parametrize(("a", "b", "room"), [(9, 3, 10), (3, 9, 10), (7, 7, 9), (8, 7, 4), (5, 5, 20), (20, 2, 5)])
def test_the_longer_text_is_cut_as_in_bert(words, a, b, room):
    # The loop below is _truncate_seq_pair of run_classifier.py in google-research/bert.
    first, second = [f"w{i}" for i in range(a)], [f"w{i}" for i in range(b)]
    expected_a, expected_b = list(first), list(second)
    while len(expected_a) + len(expected_b) > room:
        (expected_a if len(expected_a) > len(expected_b) else expected_b).pop()
    rows = batches.make_examples([[" ".join(first)], [" ".join(second)]], None, words, room + 3)
    assert [WORDS[i] for i in rows.ids_N[0]] == ["[CLS]", *expected_a, "[SEP]", *expected_b, "[SEP]"]


def test_chosen_widths_give_the_least_padding():
    lengths = np.array([5] * 100 + [17] * 10 + [31] * 50 + [64])
    for most in (1, 2, 3, 4):
        widths = batches.choose_widths(lengths, most)
        assert len(widths) == most
        assert widths[-1] == 64
        positions = np.array(widths)[np.searchsorted(widths, lengths)].sum()
        choices = [(*c, 64) for c in _combinations([8, 16, 24, 32, 40, 48, 56], most - 1)]
        assert positions == min(np.array(c)[np.searchsorted(c, lengths)].sum() for c in choices)
    assert batches.choose_widths(np.array([7, 8]), 5) == (8,)


def _combinations(values, count):
    import itertools

    return itertools.combinations(values, count)


@pytest.mark.parametrize("count", [500, 97, 31])
def test_every_epoch_has_every_example_once_and_the_same_batch_shapes(count):
    lengths = LENGTHS[:count]
    widths = batches.choose_widths(LENGTHS, 5)
    shapes = []
    for seed in range(20):
        found = batches.epoch(lengths, widths, 32, np.random.default_rng(seed))
        assert sorted(np.concatenate([batch.rows_B for batch in found])) == list(range(count))
        assert all(lengths[batch.rows_B].max() <= batch.width for batch in found)
        shapes.append(sorted((batch.width, len(batch.rows_B)) for batch in found))
    assert all(shape == shapes[0] for shape in shapes)
    assert sum(size < 32 for _, size in shapes[0]) <= 1


def test_contents_and_order_of_batches_depend_on_seed_and_epoch_alone():
    rows = rows_of(LENGTHS)
    widths = batches.choose_widths(LENGTHS, 4)
    steps = len(batches.epoch(LENGTHS, widths, 32, None))

    def take(seed, start, count):
        found = batches.train_batches(rows, widths, 32, 0, seed, start)
        return [next(found)["segments"].sum() for _ in range(count)]

    whole = take(0, 0, 2 * steps)
    assert whole[7:] == take(0, 7, 2 * steps - 7)
    assert whole[:steps] != whole[steps:]
    assert whole[:steps] != take(1, 0, steps)
    first, again = (
        {frozenset(b.rows_B.tolist()) for b in batches.epoch(LENGTHS, widths, 32, np.random.default_rng(s))}
        for s in (0, 1)
    )
    assert len(first & again) < 2


def test_filled_batch_has_weights_only_for_its_examples():
    rows = rows_of([3, 5], np.array([1, 0], np.int32))
    arrays = batches.fill(rows, batches.Batch(8, np.array([1, 0])), 4, pad=9)
    assert arrays["weights"].tolist() == [1, 1, 0, 0]
    assert arrays["labels"].tolist() == [0, 1, 0, 0]
    assert arrays["segments"].sum(1).tolist() == [5, 3, 0, 0]
    assert arrays["ids"][1].tolist() == [1, 2, 3, 9, 9, 9, 9, 9]


@pytest.mark.skipif("BERT_FAST_DATA" not in os.environ, reason="needs BERT_FAST_DATA, the folder with glue/MRPC ...")
def test_most_positions_of_an_epoch_of_mrpc_hold_real_tokens():
    root = pathlib.Path(os.environ["BERT_FAST_DATA"])
    words = vocab.load(root / "vocab/bert-base-uncased.txt")
    found = glue.read("mrpc", str(root / "glue"))["train"]
    rows = batches.make_examples(found.texts, found.labels, words, 128)
    share = batches.real_share(rows, batches.choose_widths(rows.lengths_N, 5), 32)
    assert share > 0.85
