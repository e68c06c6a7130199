"""Vocabularies: special ids are read, never assumed; any script works; a [MASK] that a user types is recognised."""

import pytest

from bert_fast import BadInput
from bert_fast.data import document_tokenizer, vocab

ENGLISH = ["The quick brown fox jumps over the lazy dog near the river bank, and naïve dogs watch."] * 50
RUSSIAN = ["Быстрая коричневая лиса прыгает через ленивую собаку, и собака спит на берегу реки."] * 50
CHINESE = ["快速的棕色狐狸跳过了懒狗。狗在河边睡觉。"] * 50


def trained(tmp_path, texts, size=200, **options):
    path = tmp_path / "vocab.txt"
    path.write_bytes(vocab.train(texts, size, **options))
    return vocab.load(path, **options)


def write(tmp_path, lines):
    path = tmp_path / "vocab.txt"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_special_ids_are_read_from_the_file(tmp_path):
    words = vocab.load(write(tmp_path, ["a", "[MASK]", "##b", "[SEP]", "[PAD]", "[CLS]", "[UNK]"]))
    assert (words.pad, words.unk, words.cls, words.sep, words.mask) == (4, 6, 5, 3, 1)
    assert words.continues_W.tolist() == [False, False, True, False, False, False, False]
    assert words.size == 7


def test_training_on_the_same_text_gives_the_same_vocabulary():
    words = ["ab", "cd", "ef", "gh", "ij", "kl", "mn"]
    text = " ".join(word for i, word in enumerate(words) for _ in range(20 * i + 20))
    first, *others = [vocab.train([text], 80) for _ in range(5)]
    assert set(others) == {first}


@pytest.mark.parametrize("texts", [ENGLISH, RUSSIAN, CHINESE])
def test_trained_vocabulary_knows_its_corpus_in_any_script(tmp_path, texts):
    words = trained(tmp_path, texts)
    assert words.size <= 200
    encoding = words.tokenizer.encode(texts[0])
    assert words.unk not in encoding.ids
    assert words.tokenizer.decode(encoding.ids).replace(" ", "") == words.tokenizer.normalizer.normalize_str(
        texts[0]
    ).replace(" ", "")


def test_each_chinese_character_is_a_word(tmp_path):
    words = vocab.load(write(tmp_path, [*vocab.SPECIAL, "快", "速"]))
    assert words.tokenizer.encode("快速快").tokens == ["快", "速", "快"]


def test_case_and_accents_are_kept_or_dropped_as_asked(tmp_path):
    for options, expected in [
        ({"cased": True}, "Naïve The"),
        ({"cased": True, "strip_accents": True}, "Naive The"),
        ({"cased": False, "strip_accents": False}, "naïve the"),
        ({"cased": False}, "naive the"),
    ]:
        words = vocab.load(write(tmp_path, [*vocab.SPECIAL, "x"]), **options)
        assert words.tokenizer.normalizer.normalize_str("Naïve The") == expected


def test_mask_typed_by_a_user_is_the_mask_even_before_a_full_stop(tmp_path):
    words = trained(tmp_path, ENGLISH)
    assert words.tokenizer.encode("the fox is [MASK].").tokens[-2:] == ["[MASK]", "."]
    assert words.mask in words.tokenizer.encode("[MASK]dog").ids


def test_mask_in_a_corpus_is_ordinary_text(tmp_path):
    words = trained(tmp_path, [*ENGLISH, "[MASK] mask"])
    (document,) = document_tokenizer.DocumentTokenizer(words)(["the [MASK] dog"])
    assert words.mask.to_bytes(2, "little") not in [document.records[0][i : i + 2] for i in range(8, 24, 2)]
    assert document.lengths == [len(words.for_text().encode("the [MASK] dog").ids)]


def test_rare_symbols_do_not_fill_a_small_vocabulary(tmp_path):
    rare = "".join(chr(0x4E00 + i) for i in range(400))
    words = trained(tmp_path, [*(ENGLISH * 1500), rare], size=300)
    assert words.tokenizer.token_to_id("river") is not None
    assert sum(words.tokenizer.token_to_id(symbol) is not None for symbol in rare) < 50


def test_crlf_line_ends_are_read_and_change_the_fingerprint(tmp_path):
    path = write(tmp_path, [*vocab.SPECIAL, "a"])
    before = vocab.load(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    after = vocab.load(path)
    assert after.fingerprint != before.fingerprint
    assert after.special_ids == before.special_ids


def test_unusable_vocabularies_are_named(tmp_path):
    special = list(vocab.SPECIAL)
    for lines, complaint in [
        ([*special[:-1], "a"], r"vocab\.txt: no \[MASK\]: BERT needs"),
        ([*special, "a", "b", "a"], "'a' is on line 6 and again on line 8"),
        ([], "is empty"),
    ]:
        with pytest.raises(BadInput, match=complaint):
            vocab.load(write(tmp_path, lines))
    with pytest.raises(BadInput, match="no vocabulary at"):
        vocab.load(tmp_path / "none.txt")
    with pytest.raises(BadInput, match="no word"):
        vocab.train([" ", "\n"], 200)


def test_training_finishes_and_learns_nothing_from_a_word_of_megabytes():
    """WordPiece does not split words of more than 100 characters, so the vocabulary learns nothing from them."""
    texts = ["the dog runs over the river bank, as dogs do. "] * 50
    long = "abcdefghij" * 400_000
    ids = vocab.train([*texts, f"dogs {long} do", long], 90).decode().split()
    assert {"dog", "river"} <= set(ids)
    assert not any("j" in token for token in ids)
    joined = "(river)" * 60  # no white space, but short words
    assert "river" in vocab.train([joined, "dog"], 90).decode().split()
    assert vocab.train([texts[0].replace(" ", "\n")], 40).count(b"\n") == vocab.train(texts[:1], 40).count(b"\n")
