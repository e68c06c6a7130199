"""The sentence that a run suggests for `fill-mask`. It comes from the run's held-out text, with one word masked."""

from bert_fast.data import sample_sentence
from bert_fast.data.prepare import prepare


def prepared(tmp_path, text: str):
    (tmp_path / "text.txt").write_text(text, "utf-8")
    options = {"vocab_size": 400, "cased": True, "valid_fraction": 0.5, "processes": 1}
    prepare(f"files:{tmp_path}/text.txt", tmp_path / "shards", **options)
    return tmp_path / "shards"


def test_sentence_comes_from_the_held_out_text(tmp_path):
    sentences = [f"Am Abend fährt der Zug mit {number} Gästen nach Köln." for number in range(10, 30)]
    found = sample_sentence.masked(prepared(tmp_path, "\n\n".join(["Kurz.", *sentences])))
    assert found.count("[MASK]") == 1
    before, after = found.split(" [MASK] ")
    left = [*before.split(), *after.removesuffix(".").split()]
    masked = [word for word in sentences[0].rstrip(".").split() if word not in left and word.isalpha()]
    assert before.startswith("Am Abend")
    assert after.endswith("Köln.")
    assert masked == ["mit"]


def test_without_a_suitable_sentence_the_user_is_asked_to_write_one(tmp_path):
    assert sample_sentence.masked(prepared(tmp_path, "\n\n".join(["Ja."] * 20))) == sample_sentence.ANY
    assert sample_sentence.masked(tmp_path / "gone") == sample_sentence.ANY
    assert "[MASK]" in sample_sentence.ANY


def test_special_tokens_in_the_text_are_not_shown(tmp_path):
    text = "\n\n".join(f"Wort für Wort steht [MASK] hier im Text {number}" for number in range(10))
    found = sample_sentence.masked(prepared(tmp_path, text))
    assert found.count("[MASK]") == 1 or found.count("[ MASK ]") == 1
