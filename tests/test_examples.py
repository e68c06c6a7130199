"""The examples of each objective before masking: no token is lost, blocks are separate, and labels are correct."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bert_fast.data import batches, examples, packing, shards
from helpers.made_shards import ORDINARY, bert, unmasked, write_folder


@pytest.mark.parametrize("seq_len", [8, 32, 128])
def test_an_epoch_holds_each_token_of_the_stream_once(split, vocab, seq_len):
    made = batches.training_examples(split, vocab, bert(seq_len=seq_len), seed=1)
    epoch = {batches.shuffled(1, 0, g, len(made)): made[g] for g in range(len(made))}
    stream = np.concatenate([split[d].tokens_T for d in range(len(split))])
    found = []
    for i in range(len(made)):
        ids_S, length = unmasked(epoch[i]), np.count_nonzero(epoch[i]["segments"])
        assert ids_S[0] == vocab.cls
        assert ids_S[length - 1] == vocab.sep
        assert (ids_S[length:] == vocab.pad).all()
        assert (epoch[i]["segments"][:length] == 1).all()
        np.testing.assert_array_equal(epoch[i]["positions"][:length], np.arange(length))
        found.append(ids_S[1 : length - 1])
    np.testing.assert_array_equal(np.concatenate(found), stream)
    assert all(len(part) == seq_len - 2 for part in found[:-1])


def test_packed_examples_hold_every_piece_once_with_positions_from_zero(split, vocab):
    made = batches.training_examples(split, vocab, bert("mlm_packed", 64), seed=1)
    found = []
    for i in range(len(made)):
        row = made(0, i)
        ids_S, segments_S = unmasked(row), row["segments"]
        length = np.count_nonzero(segments_S)
        assert (segments_S[length:] == 0).all()
        assert (np.isin(np.diff(segments_S[:length]), [0, 1])).all()
        assert (row["types"] == 0).all()
        for block in range(1, segments_S.max() + 1):
            at = np.flatnonzero(segments_S == block)
            np.testing.assert_array_equal(row["positions"][at], np.arange(len(at)))
            assert ids_S[at[0]] == vocab.cls
            assert ids_S[at[-1]] == vocab.sep
            found.append(tuple(ids_S[at[1:-1]]))
    documents = [split[d].tokens_T for d in range(len(split))]
    pieces = [tuple(tokens_T[k : k + 62]) for tokens_T in documents for k in range(0, len(tokens_T), 62)]
    assert sorted(found) == sorted(pieces)
    order_N, _ = packing.pack(np.array([len(piece) + 2 for piece in pieces]), 64)
    np.testing.assert_array_equal(made.content.order_N, order_N)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200))
@hypothesis_settings(max_examples=100, deadline=None)
def test_packing_loses_no_piece_and_overfills_no_example(lengths):
    lengths_N = np.array(lengths)
    order_N, starts_R = packing.pack(lengths_N, 40)
    assert sorted(order_N) == list(range(len(lengths)))
    assert (np.diff(starts_R) > 0).all()
    assert np.add.reduceat(lengths_N[order_N], starts_R[:-1]).max() <= 40
    assert (np.diff(order_N[starts_R[:-1]]) > 0).all()
    assert all((np.diff(row) > 0).all() for row in np.split(order_N, starts_R[1:-1]))


def test_packing_is_shortest_pack_first():
    counts_L = np.bincount([7, 5, 3, 6, 6, 6, 4, 4], minlength=11)
    # Longest first, into the pack with the most space: one 4 joins the 5, the other 4 fills a 6, and the 3 joins a 6.
    expected = [(1, (7,)), (1, (5, 4)), (1, (6, 4)), (1, (6, 3)), (1, (6,))]
    assert sorted(packing.strategies(counts_L, 10)) == sorted(expected)


def test_packing_leaves_hardly_any_padding():
    lengths_N = np.clip(np.random.default_rng(0).lognormal(5, 1, 20_000), 3, 512).astype(int)
    _, starts_R = packing.pack(lengths_N, 512)
    # Krell et al. report an efficiency of 0.996 for Wikipedia.
    assert lengths_N.sum() / (512 * (len(starts_R) - 1)) > 0.99


def locate(segment, documents):
    """Places where a segment occurs: {(document, first token)}. A long segment hardly ever matches by chance."""
    found = set()
    for d, tokens_T in enumerate(documents):
        for k in np.flatnonzero(tokens_T[: len(tokens_T) - len(segment) + 1] == segment[0]):
            if np.array_equal(tokens_T[k : k + len(segment)], segment):
                found.add((d, int(k)))
    return found


def test_next_is_0_if_b_follows_a_and_1_if_b_is_from_another_document(split, vocab):
    made = batches.training_examples(split, vocab, bert("mlm+nsp", 64), seed=1)
    documents = [split[d].tokens_T for d in range(len(split))]
    rows_D = [-(-len(tokens_T) // 61) for tokens_T in documents]
    owner = np.repeat(np.arange(len(documents)), rows_D)
    assert len(made) == len(owner)
    checked = {0: 0, 1: 0}
    for i in range(0, len(made), 2):
        row = made(0, i)
        ids_S, length = unmasked(row), np.count_nonzero(row["segments"])
        separators = np.flatnonzero(ids_S == vocab.sep)
        assert len(separators) == 2
        assert separators[1] == length - 1
        middle = separators[0]
        np.testing.assert_array_equal(row["types"], (np.arange(64) > middle) & (np.arange(64) < length))
        np.testing.assert_array_equal(row["segments"], np.arange(64) < length)
        a, b = ids_S[1:middle], ids_S[middle + 1 : length - 1]
        assert len(a) >= 1
        assert len(b) >= 1
        starts_a = {k for d, k in locate(a, documents) if d == owner[i]}
        assert starts_a
        if min(len(a), len(b)) < 4:  # too short: it may match anywhere
            continue
        places_b = locate(b, documents)
        if row["next"] == 0:
            # If the pair was too long, A may have lost tokens at its end and B at its start.
            gaps = [k - s - len(a) for d, k in places_b if d == owner[i] for s in starts_a]
            assert any(gap == 0 if length < 64 else gap >= 0 for gap in gaps)
        else:
            assert {d for d, _ in places_b}.isdisjoint({owner[i]})
        checked[int(row["next"])] += 1
    assert min(checked.values()) > 50


def test_half_of_the_pairs_are_random_and_a_tenth_are_short(vocab, tmp_path):
    # All sentences have 5 tokens: every example has several sentences, and only short_seq_prob makes an example short.
    rng = np.random.default_rng(0)
    documents = [[rng.choice(ORDINARY, 5).tolist() for _ in range(200)] for _ in range(20)]
    split = shards.Split(write_folder(tmp_path, {"train": documents}), "train")
    made = batches.training_examples(split, vocab, bert("mlm+nsp", 128), seed=1)
    # The last examples of a document are naturally shorter than the others.
    full = [i for i in range(len(made)) if i % 8 not in (6, 7)]
    found = [made(epoch, i) for epoch in range(12) for i in full]
    n = len(found)
    random_next = sum(int(row["next"]) for row in found)
    assert abs(random_next - n / 2) < 4 * np.sqrt(n / 4)
    # A short example's target is uniform in 2..125; a target above 120 gives a full example.
    short = sum(np.count_nonzero(row["segments"]) < 124 for row in found)
    expected = 0.1 * 119 / 124
    assert abs(short - n * expected) < 4 * np.sqrt(n * expected)


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_single_sentence_is_followed_by_a_random_segment(vocab, tmp_path, whole_word):
    rng = np.random.default_rng(0)
    documents = [[rng.choice(ORDINARY, 30).tolist()] for _ in range(5)]
    split = shards.Split(write_folder(tmp_path, {"train": documents}), "train")
    made = batches.training_examples(split, vocab, bert("mlm+nsp", 64, whole_word=whole_word), seed=1)
    assert all(made(epoch, i)["next"] == 1 for epoch in range(5) for i in range(len(made)))


def test_examples_begin_where_sentences_begin():
    tokens_T, starts_N = np.arange(100), np.array([0, 10, 30, 90])
    np.testing.assert_array_equal(examples.sentences(tokens_T, starts_N, 0, 25), [0, 10, 30, 90, 100])
    np.testing.assert_array_equal(examples.sentences(tokens_T, starts_N, 25, 25), [30, 90, 100])
    # No sentence begins in [50, 75), so the example begins in the middle of a sentence.
    np.testing.assert_array_equal(examples.sentences(tokens_T, starts_N, 50, 25), [50, 90, 100])
    np.testing.assert_array_equal(examples.sentences(tokens_T, starts_N, 95, 25), [95, 100])
    assert [examples.enough(np.array([30, 90, 100]), target) for target in (-5, 1, 60, 61, 500)] == [1, 1, 1, 2, 2]


@given(a=st.integers(1, 90), b=st.integers(1, 90), room=st.integers(2, 80), seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=200, deadline=None)
def test_pairs_are_truncated_as_in_bert(a, b, room, seed):
    a_T, b_T = examples.truncate(np.arange(a), np.arange(b), room, np.random.default_rng(seed))
    length_a, length_b = a, b  # truncate_seq_pair of create_pretraining_data.py
    while length_a + length_b > room:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    assert (len(a_T), len(b_T)) == (length_a, length_b)
    assert (np.diff(a_T) == 1).all()
    assert (np.diff(b_T) == 1).all()
