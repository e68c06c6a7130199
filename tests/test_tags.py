"""A tag for each token: files, IOB2, windows that lose no token, and scores equal to seqeval's."""

import json

import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.tasks import conll, tags
from bert_fast.tasks.batches import NO_LABEL, Batch, fill
from helpers.made_tasks import WORDS, make_vocab

NAMES = ("O", "B-X", "I-X", "B-Y", "I-Y")


def read(tmp_path, content, name="a.conll", token="tokens", tag="tags"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return conll.read(tmp_path / name, "--data", token, tag)


def sentence(*tags_W):
    return conll.Sentence(tuple("w1" for _ in tags_W), tags_W, tuple(f"line {n}" for n in range(len(tags_W))))


def test_json_lines_give_the_same_sentences_as_a_conll_file(tmp_path):
    found = read(tmp_path, "\ufeff-DOCSTART- -X- O\r\n\r\nU.N. NNP  B-ORG\r\nofficial NN O\r\n \r\n\r\n5 CD O")
    assert [(one.tokens, one.tags) for one in found] == [(("U.N.", "official"), ("B-ORG", "O")), (("5",), ("O",))]
    assert [place.rpartition(", ")[2] for one in found for place in one.places] == ["line 3", "line 4", "line 7"]
    lines = [json.dumps({"tokens": one.tokens, "tags": one.tags}) for one in found]
    again = read(tmp_path, "\n".join(lines), "a.jsonl")
    assert [one[:2] for one in again] == [one[:2] for one in found]
    assert again[0].places[1].endswith("a.jsonl, line 1, token 2")


def test_columns_are_numbered_and_a_tab_keeps_spaces_in_tokens(tmp_path):
    (one,) = read(tmp_path, "1\ta b\tNN\tB-X\n2\tc\tVB\tO\n", token="2", tag="3")
    assert (one.tokens, one.tags) == (("a b", "c"), ("NN", "VB"))
    (one,) = read(tmp_path, "a\nb\n", tag=None)
    assert (one.tokens, one.tags) == (("a", "b"), ())


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("a O\nb\n", {}, r"a\.conll, line 2: 1 column, but the lines before have 2: correct the line, or remove"),
        ("a\nb\n", {}, "line 1: 1 column, and both token and tag are in column 1: expected a token and its tag"),
        ("a O\n", {"tag": "3"}, "line 1: no column '3': .*give a number from 1 to 2"),
        ("a O\n", {"token": "words"}, "no column 'words'"),
        ("a\t\n", {}, "line 1: the token or its tag is empty"),
        ("\n\n", {}, "holds no sentences"),
        (b"a O\n\xff O\n", {}, "line 2: not UTF-8"),
        ('{"tokens": ["a"], "tags": ["O", "O"]}', {"name": "a.jsonl"}, "line 1: 1 token but 2 tags: expected one tag"),
        ('{"tokens": ["a"], "tags": [3]}', {"name": "a.jsonl"}, r"'tags' is \[3\], expected a list of tag names"),
        ('{"tokens": [], "tags": []}', {"name": "a.jsonl"}, r"'tokens' is \[\], expected a list of tokens"),
        ('{"words": ["a"]}', {"name": "a.jsonl"}, "no 'tokens', found 'words'"),
    ],
)
def test_lines_that_cannot_be_used_are_named(content, more, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        read(tmp_path, content, **more)


def test_an_i_tag_that_continues_nothing_begins_an_entity(capsys):
    wanted = ["B-X", "O", "B-Y", "I-Y", "B-X", "I-X"]
    assert conll.to_iob2(["I-X", "O", "I-Y", "I-Y", "I-X", "I-X"]) == wanted
    assert conll.to_iob2(wanted) == wanted
    assert conll.entities(wanted) == [("X", 0, 1), ("Y", 2, 4), ("X", 4, 6)]
    names, train, (valid,) = tags.prepared([sentence("I-Y", "O")], [[sentence("B-Y", "I-Y", "I-Y")]])
    assert names == ("O", "B-Y", "I-Y")
    assert (train[0].tags, valid[0].tags) == (("B-Y", "O"), ("B-Y", "I-Y", "I-Y"))
    assert "1 I- tag at the start of an entity became B-, as in IOB2 (first: line 0)" in capsys.readouterr().err


def test_other_schemes_and_unknown_tags_are_refused():
    with pytest.raises(BadInput, match=r"line 1: the tag 'E-X' is none of O, B-TYPE and I-TYPE.*convert.*IOB2"):
        tags.prepared([sentence("B-X", "E-X", "O")], [])
    with pytest.raises(BadInput, match="line 0: the tag 'B-Y' does not occur in the training file, which has O, B-X"):
        tags.prepared([sentence("B-X", "O")], [[sentence("B-Y")]])
    with pytest.raises(BadInput, match="all tokens have the tag 'O'"):
        tags.prepared([sentence("O", "O")], [])
    names, _, _ = tags.prepared([sentence("VERB", "NOUN", "O")], [])
    assert names == ("NOUN", "O", "VERB")


def test_every_token_has_one_label_in_one_window(tmp_path):
    words = make_vocab(tmp_path)
    # "w1ly" has two word pieces, "\u200b" has none, and "good..." has more than a short window holds.
    tokens = ("w1ly", "\u200b", "w2", "w3ly", "w4", "good" + "ly" * 9, "[SEP]")
    wanted = ("B-X", "O", "B-Y", "I-Y", "O", "B-X", "I-X")
    for seq_len in (5, 6, 8, 40):
        made = tags.windows([conll.Sentence(tokens, wanted, ())] * 2, NAMES, words, seq_len)
        assert max(map(len, made.ids)) <= seq_len
        assert sum(map(len, made.firsts)) == 2 * len(tokens)
        assert made.labels is not None
        labels = [NAMES[n] for part in made.labels for n in part if n != NO_LABEL]
        assert labels == [*wanted, *wanted]
        for ids_S, labels_S, firsts_W in zip(made.ids, made.labels, made.firsts, strict=True):
            np.testing.assert_array_equal(np.flatnonzero(labels_S != NO_LABEL), firsts_W)
            assert (ids_S[0], ids_S[-1]) == (words.cls, words.sep)
            assert not set(ids_S[1:-1]) & {words.cls, words.sep, words.pad}
        logits = np.zeros((len(made.ids), seq_len, len(NAMES)), np.float32)
        for n, labels_S in enumerate(made.labels):
            logits[n, np.arange(len(labels_S)), labels_S] = 1
        assert tags.predicted(made, logits, NAMES) == [list(wanted)] * 2
    assert made.ids[0][3] == WORDS.index("[UNK]")


def test_a_batch_has_a_label_for_each_position_and_none_on_padding(tmp_path):
    made = tags.windows([sentence("B-X", "O"), sentence("O")], NAMES, make_vocab(tmp_path), 8)
    batch = fill(tags.rows(made), Batch(8, np.array([0, 1])), 3, 0)
    none = NO_LABEL
    np.testing.assert_array_equal(batch["tags"], [[none, 1, 0, *[none] * 5], [none, 0, *[none] * 6], [none] * 8])


@pytest.mark.parametrize(
    ("wanted", "raw", "precision", "recall", "f1"),
    [
        ("O B-X I-X O B-Y", "O B-X I-X O B-Y", 1, 1, 1),
        ("O B-X I-X O B-Y", "O B-X O O B-Y", 0.5, 0.5, 0.5),
        ("B-X B-X O B-Y I-Y I-Y", "B-X I-X O I-Y I-Y I-Y", 0.5, 0.333333, 0.4),
        ("B-X I-X B-Y O O", "I-X I-X I-Y I-X O", 0.666667, 1, 0.8),
        ("B-X O|O B-Y I-Y", "B-X O|B-Y B-Y I-X", 0.25, 0.5, 0.333333),
    ],
)
def test_scores_equal_those_that_seqeval_1_2_2_gave(wanted, raw, precision, recall, f1):
    sentences = [[part.split() for part in text.split("|")] for text in (wanted, raw)]
    found = tags.score(sentences[0], [conll.to_iob2(part) for part in sentences[1]], NAMES)
    assert [found[name] / 100 for name in ("precision", "recall", "f1")] == pytest.approx(
        [precision, recall, f1], abs=1e-6
    )


def test_scores_of_random_tags_equal_the_scores_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    rng = np.random.default_rng(0)
    for share in (0.0, 0.2, 0.9):
        wanted = [conll.to_iob2(rng.choice(NAMES, n).tolist()) for n in rng.integers(1, 12, 40)]
        raw = [[str(rng.choice(NAMES)) if rng.random() < share else tag for tag in one] for one in wanted]
        found = tags.score(wanted, [conll.to_iob2(one) for one in raw], NAMES)
        for name, function in (
            ("precision", metrics.precision_score), ("recall", metrics.recall_score), ("f1", metrics.f1_score),
        ):  # fmt: skip
            assert found[name] == pytest.approx(100 * function(wanted, raw, zero_division=0))
        assert found["score"] == found["f1"]
    nothing = tags.score([["O"], ["B-X"]], [["O"], ["O"]], NAMES)
    assert nothing == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 50, "score": 0}
    assert tags.score([["a", "b"]], [["a", "a"]], ("a", "b"))["score"] == 50
