"""From text to shards: no sentence is lost, and impossible settings are refused."""

import itertools
import os
import random
import re

import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.data import corpora, document_tokenizer, shards, vocab
from bert_fast.data import prepare_report as report
from bert_fast.data.prepare import prepare
from helpers.made_corpus import contents, run, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shards"
    return out, run(corpus, out)


def test_every_sentence_is_in_the_shards(corpus, finished):
    out, manifest = finished
    assert shards.verify(out) == manifest
    words = vocab.load(out / "vocab.txt")
    texts = [text for name in "ab" for text in (corpus / f"{name}.txt").read_text().split("\n\n")]
    expected = {tuple(words.tokenizer.encode(text).ids) for text in texts}
    found = []
    for name in shards.SPLITS:
        split = shards.Split(out, name)
        assert len(split) == manifest["splits"][name]["documents"] > 0
        assert [len(split[i].tokens_T) for i in range(len(split))] == split.lengths_D.tolist()
        found += [split[i] for i in range(len(split))]
    assert {tuple(document.tokens_T.tolist()) for document in found} == expected
    assert len(found) == len(texts)
    and_ = words.tokenizer.token_to_id("and")
    assert all(document.tokens_T[start] == and_ for document in found for start in document.starts_N[1::2])
    assert sum(split["raw_bytes"] for split in manifest["splits"].values()) == sum(len(text) for text in texts)
    assert sum(split["unknown"] for split in manifest["splits"].values()) == 0


def test_bytes_do_not_depend_on_the_number_of_processes(corpus, finished, tmp_path):
    run(corpus, tmp_path / "out", processes=2)
    assert contents(tmp_path / "out") == contents(finished[0])


def test_finished_folder_is_left_alone_and_other_settings_are_refused(corpus, finished, tmp_path, capsys):
    out, manifest = finished
    before = contents(out)
    assert run(corpus, out) == manifest
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"(?s)valid_fraction: 0\.1 there, 0\.2 now.*another --out"):
        run(corpus, out, valid_fraction=0.2)
    assert contents(out) == before
    (tmp_path / "letter.doc").write_text("mine")
    with pytest.raises(BadInput, match=r"holds letter\.doc: expected a new or empty folder"):
        run(corpus, tmp_path)


def test_a_document_stays_in_its_split_when_the_corpus_grows(corpus, tmp_path):
    def held_out(out):
        split = shards.Split(out, "valid")
        return {split[i].tokens_T.tobytes() for i in range(len(split))}

    for name in ("a", "b", "[ab]"):
        prepare(
            f"files:{corpus}/{name}.txt", tmp_path / name, vocab=corpus / "vocab.txt", valid_fraction=0.1, processes=1
        )
    assert held_out(tmp_path / "a") | held_out(tmp_path / "b") == held_out(tmp_path / "[ab]")


def test_tiny_corpus_holds_out_one_document_and_a_single_document_is_refused(corpus, tmp_path):
    (tmp_path / "two.txt").write_text("The dog sleeps.\n\nThe cat runs.\n")
    manifest = prepare(f"files:{tmp_path}/two.txt", tmp_path / "two", vocab=corpus / "vocab.txt", processes=1)
    assert [manifest["splits"][split]["documents"] for split in shards.SPLITS] == [1, 1]
    (tmp_path / "one.txt").write_text("The dog sleeps.\nThe cat runs.\n")
    with pytest.raises(BadInput, match=r"too few documents.*blank line"):
        prepare(f"files:{tmp_path}/one.txt", tmp_path / "one", vocab=corpus / "vocab.txt", processes=1)
    with open(tmp_path / "one.txt", "a") as more:
        more.write("\nThe cat runs.\n")
    prepare(f"files:{tmp_path}/one.txt", tmp_path / "one", vocab=corpus / "vocab.txt", processes=1)


def test_long_document_is_split_into_records_that_begin_at_sentences(corpus, finished, monkeypatch):
    monkeypatch.setattr(document_tokenizer, "MAX_TOKENS", 20)
    encoder = document_tokenizer.DocumentTokenizer(vocab.load(corpus / "vocab.txt"))
    (document,) = encoder(["The dog sleeps. " * 30 + "The dog " * 25 + "."])
    found = [shards.decode(record, encoder.dtype) for record in document.records]
    assert max(document.lengths) <= 20
    assert all(record.starts_N[0] == 0 for record in found)
    whole = np.concatenate([record.tokens_T for record in found])
    assert len(whole) == sum(document.lengths) == 30 * 4 + 51
    assert all(record.starts_N.tolist() == [0, 4, 8, 12, 16] for record in found[:6])


HARD = [  # accents, combining marks, Hangul, CJK, emoji, white space and control characters
    *"éÅçñßıİſΣςǅﬁ", *"\u0301\u0338\u0327\u20dd", *"한국가힣ᄀ", "\u1112\u1161\u11ab", *"中文日本。！？、「」", *"😀🏽",
    "👩\u200d🚀", "\ufe0f", *"\t\r\x00\x1c\x7f\x85\xa0\xad\u200b\u2028\u3000\ufeff\ufffd", *"“”’—…≠", "Å",
]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"cased": True}, {"strip_accents": False}], ids=str)
def test_ids_of_random_sentences_equal_those_of_the_tokenizer(tmp_path, options):
    ascii_ = [chr(code) for code in range(32, 127)] + list("   aaeeost##") + ["[MASK]", "[SEP]", "  "]
    rng = random.Random(0)
    sentences = ["".join(rng.choices(ascii_ + 2 * HARD, k=rng.randint(1, 60))) for _ in range(3000)]
    sentences += ["".join(rng.choices(ascii_, k=rng.randint(1, 60))) for _ in range(1000)]
    sentences += ["", " ", "x" * 100, "x" * 200, "é" * 200, "中" * 200]
    (tmp_path / "vocab.txt").write_bytes(vocab.train([a * 2 for a in ascii_ + HARD] + sentences, 2000))
    words = vocab.load(tmp_path / "vocab.txt", **options)
    tokens_T, bounds_N = document_tokenizer.DocumentTokenizer(words).ids(sentences)
    expected = words.for_text().encode_batch(sentences, add_special_tokens=False)
    for i, sentence in enumerate(sentences):
        assert tokens_T[bounds_N[i] : bounds_N[i + 1]].tolist() == expected[i].ids, sentence
    assert np.mean(tokens_T == words.unk) < 0.25  # most compared words are in the vocabulary


@pytest.mark.slow
@pytest.mark.skipif("BERT_FAST_DATA" not in os.environ, reason="needs a corpus")
def test_ids_of_a_whole_corpus_equal_those_of_the_tokenizer(monkeypatch):
    monkeypatch.setattr(document_tokenizer, "_KNOWN", 50_000)  # the corpus has more pieces, and the rest are not kept
    data = os.environ["BERT_FAST_DATA"]
    words = vocab.load(f"{data}/vocab/bert-base-uncased.txt")
    encoder, tokenizer = document_tokenizer.DocumentTokenizer(words), words.for_text()
    corpus = corpora.open_corpus(f"files:{data}/corpus/*/*.txt.gz")
    lines = (
        line for part in corpus.parts for text in corpus.documents(part, corpora.Bad()) for line in text.split("\n")
    )
    while some := list(itertools.islice(lines, 10_000)):
        tokens_T, bounds_N = encoder.ids(some)
        expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(some, add_special_tokens=False)]
        assert bounds_N.tolist() == [0, *itertools.accumulate(map(len, expected))]
        assert np.array_equal(tokens_T, np.fromiter(itertools.chain.from_iterable(expected), np.int64))


def test_sentences_end_where_they_should():
    text = 'Mr. A. Smith said "Stop." Then he left (e.g. By car). It cost 3.5 dollars! 他来了。她走了。\nNew line'
    assert document_tokenizer.sentences_of(text) == [
        'Mr. A. Smith said "Stop."',
        "Then he left (e.g. By car).",
        "It cost 3.5 dollars!",
        "他来了。",
        "她走了。",
        "New line",
    ]


def test_unknown_tokens_are_counted_and_warned_about(corpus, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("The dog sleeps.\n\nThe жук dog.\n")
    manifest = prepare(f"files:{tmp_path}/a.txt", tmp_path / "out", vocab=corpus / "vocab.txt", processes=1)
    assert sum(split["unknown"] for split in manifest["splits"].values()) == 1
    assert "WARNING: 12.5%" in capsys.readouterr().out


def test_nonsensical_settings_are_refused(corpus, tmp_path):
    for options, complaint in [
        ({"valid_fraction": 0.0}, "--valid_fraction=0.0"),
        ({"processes": 0}, "--processes=0"),
        ({"vocab": None, "vocab_size": 5}, "--vocab_size=5"),
    ]:
        with pytest.raises(BadInput, match=complaint):
            run(corpus, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_too_large_for_its_text_is_warned_about_only_if_prepare_trained_it(corpus, tmp_path, capsys):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(600)]
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(words[i : i + 20]) for i in range(0, 600, 20)))
    prepare(f"files:{tmp_path}/text.txt", tmp_path / "trained", vocab_size=200, processes=1)
    said = capsys.readouterr().out
    assert re.search(r"WARNING: the vocabulary is large for this text: \d+ pieces for [\d,]+ tokens", said)
    run(corpus, tmp_path / "given")  # a given vocabulary usually belongs to an existing model
    assert "WARNING" not in capsys.readouterr().out


def test_advice_on_the_size_of_a_vocabulary_follows_zipfs_law():
    assert report.too_large(30_522, 3_200_000) == ""
    advice = report.too_large(30_522, 250_000)
    assert "rarest pieces occur 0.79 times" in advice
    assert "--vocab_size=3100 would suit this text" in advice
    assert "30,522 pieces need 3,151," in advice
    fits = report.fitting(250_000)
    assert report.too_large(fits, 250_000) == ""
    assert report.too_large(fits + 200, 250_000)
    assert "Take more text" in report.too_large(400, 300)
    assert "--vocab_size" not in report.too_large(400, 300)
