"""Masking: how many tokens, which ones, and what replaces them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bert_fast.data import batches, examples, shards
from bert_fast.data import vocab as vocabularies
from bert_fast.data.masking import Masking, prediction_slots
from helpers.made_shards import ORDINARY, SPECIAL_IDS, bert, unmasked, write_folder

# Ids 5 to 9 begin a word. Ids 10 to 14 continue one.
PIECES = [*vocabularies.SPECIAL, *(f"w{i}" for i in range(5)), *(f"##w{i}" for i in range(5))]
WORDS_OF_15 = vocabularies.parse("\n".join(PIECES).encode(), "vocab.txt", False, None)


@pytest.mark.parametrize("objective", examples.OBJECTIVES)
@pytest.mark.parametrize("whole_word", [False, True])
def test_fifteen_percent_of_tokens_are_predicted_and_replaced_80_10_10(split, vocab, objective, whole_word):
    made = batches.training_examples(split, vocab, bert(objective, 128, whole_word=whole_word), seed=1)
    fates = np.zeros(3, int)  # masked, unchanged, random
    for g in range(600):
        row = made[g]
        before_S, length = unmasked(row), np.count_nonzero(row["segments"])
        count = np.count_nonzero(row["weights"])
        slots_K = row["slots"][:count]
        assert (np.diff(slots_K) > 0).all()
        assert (row["weights"] == (np.arange(20) < count)).all()
        assert (row["slots"][count:] == 0).all()
        assert (row["labels"][count:] == 0).all()
        wanted = min(20, max(1, round(0.15 * length)))
        assert count <= wanted if whole_word else count == wanted
        assert not np.isin(row["labels"][:count], SPECIAL_IDS).any()
        changed_K = row["ids"][slots_K]
        masked_K, same_K = changed_K == vocab.mask, changed_K == row["labels"][:count]
        fates += [masked_K.sum(), same_K.sum(), (~masked_K & ~same_K).sum()]
        assert np.isin(changed_K[~masked_K], ORDINARY).all()
        assert np.isin(before_S[:length], [vocab.cls, vocab.sep, *ORDINARY]).all()
    n = fates.sum()
    for found, share in zip(fates, (0.8, 0.1, 0.1), strict=True):
        assert abs(found - share * n) < 4 * np.sqrt(n * share * (1 - share))


def test_random_words_cover_the_ordinary_vocabulary_and_nothing_else(vocab):
    masking = Masking(vocab, 1.0, 400, whole_word=False)
    rng = np.random.default_rng(0)
    ids_S = np.full(400, ORDINARY[0], np.int32)
    drawn = [masking(ids_S, np.ones(400, int), rng)["ids"] for _ in range(400)]
    found = np.setdiff1d(np.unique(drawn), [vocab.mask])
    np.testing.assert_array_equal(found, ORDINARY)


@given(data=st.data(), seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=200, deadline=None)
def test_whole_word_masking_never_splits_a_word(data, seed):
    vocab = WORDS_OF_15
    body = data.draw(st.lists(st.integers(5, 14) | st.sampled_from([1, 3]), min_size=1, max_size=60))
    ids_S = np.array([2, *body, 3, 0, 0], np.int32)
    masking = Masking(vocab, 0.5, 20, whole_word=True)
    row = masking(ids_S, (ids_S != 0).astype(int), np.random.default_rng(seed))
    chosen_S = np.zeros(len(ids_S), bool)
    chosen_S[row["slots"][row["weights"] > 0]] = True
    for k in range(1, len(ids_S)):
        if ids_S[k] >= 10 and ids_S[k - 1] >= 5:
            assert chosen_S[k] == chosen_S[k - 1]
    assert not chosen_S[ids_S < 5].any()
    assert chosen_S.sum() <= 20


def test_pieces_of_a_word_without_its_beginning_can_be_predicted():
    vocab = WORDS_OF_15
    ids_S = np.array([2, 10, 11, 3, 12, 5, 3], np.int32)
    row = Masking(vocab, 1.0, 7, whole_word=True)(ids_S, np.ones(7, int), np.random.default_rng(0))
    np.testing.assert_array_equal(row["slots"][row["weights"] > 0], [1, 2, 4, 5])


def test_every_position_is_predicted_equally_often(vocab):
    ids_S = np.concatenate([[vocab.cls], ORDINARY[:38], [vocab.sep]]).astype(np.int32)
    for whole_word in (False, True):
        masking = Masking(vocab, 0.15, 6, whole_word)
        rng = np.random.default_rng(0)
        counts_S = np.zeros(40)
        for _ in range(4000):
            row = masking(ids_S, np.ones(40, int), rng)
            counts_S[row["slots"][row["weights"] > 0]] += 1
        words = counts_S[1:-1]
        assert words.sum() == counts_S.sum() == 4000 * 6
        assert np.abs(words - words.mean()).max() < 5 * np.sqrt(words.mean())


@pytest.mark.parametrize("whole_word", [False, True])
def test_an_example_without_words_has_no_predictions(vocab, tmp_path, whole_word):
    documents = [[[vocab.unk] * 30], [[vocab.mask] * 30], [[vocab.sep] * 40]]
    split = shards.Split(write_folder(tmp_path, {"train": documents}), "train")
    made = batches.training_examples(split, vocab, bert(whole_word=whole_word), seed=1)
    for i in range(len(made)):
        row = made(0, i)
        assert not row["weights"].any()
        assert not row["slots"].any()


def test_number_of_prediction_slots_is_as_in_bert():
    assert [prediction_slots(seq_len) for seq_len in (3, 128, 512)] == [1, 20, 77]
    assert bert(seq_len=128).prediction_slots == 20
    assert bert(seq_len=128, slots=7).prediction_slots == 7
    assert dataclasses.replace(bert(), seq_len=512).prediction_slots == 77
