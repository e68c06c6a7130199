"""From text to shards: no sentence is lost, and settings that cannot be right are refused."""

import random

import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.data import document_tokenizer, shards, vocab
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


def test_table_of_words_gives_the_same_ids_as_the_tokenizer(tmp_path):
    characters = [chr(code) for code in range(32, 127)] + list("  aaeeost##") + ["[MASK]", "é", "\t", "中", "\x00"]
    rng = random.Random(0)
    sentences = ["".join(rng.choices(characters, k=rng.randint(1, 60))) for _ in range(3000)] + ["x" * 200]
    (tmp_path / "vocab.txt").write_bytes(vocab.train([chr(code) * 2 for code in range(33, 127)] + sentences, 400))
    for options in ({}, {"cased": True}, {"strip_accents": False}):
        words = vocab.load(tmp_path / "vocab.txt", **options)
        encoder = document_tokenizer.DocumentTokenizer(words)
        expected = [encoding.ids for encoding in words.tokenizer.encode_batch(sentences, add_special_tokens=False)]
        for sentence, ids in zip(sentences, expected, strict=True):
            if document_tokenizer._is_plain(sentence):
                assert encoder._plain(sentence) == ids, sentence
        assert sum(map(document_tokenizer._is_plain, sentences)) > 200


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
