"""Letters are lower-cased and keep their accents by default. A flag or the given vocabulary may decide otherwise."""

import json
import re
import shutil
import unicodedata

import pytest

from bert_fast.data import document_tokenizer, letters, shards, vocab
from bert_fast.data.prepare import prepare
from bert_fast.hf import tokenizer

GERMAN = "Für die Gäste backt Björn heute süße Brötchen.\n\nÜber Köln fällt Schnee.\n\nWir müssen früh aufstehen.\n"
KOREAN = "한국어를 배웁니다.\n\n서울은 큰 도시입니다.\n\n아침에 물을 마십니다.\n"
JAPANESE = "これはガラスです。\n\n朝ごはんを食べます。\n\nどこへ行きますか。\n"
PLAIN = [*vocab.SPECIAL, "fur", "gaste", "##n", "."]
ACCENTED = [*vocab.SPECIAL, "für", "gäste", "##n", "."]
CASED = [*vocab.SPECIAL, "Für", "für", "Gäste", "."]


def write(folder, tokens, **files):
    """Writes a vocab.txt, and JSON files next to it. Returns the path of the vocab.txt."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in tokens), "utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / "vocab.txt"


def entry(path, **settings):
    """The entry of a manifest for a vocab.txt."""
    return {"vocab": {**vocab.load(path).to_json(), **settings}}


def made(tmp_path, text, **options):
    """Prepares a text. Returns (manifest, vocabulary)."""
    (tmp_path / "a.txt").write_text(text, "utf-8")
    out = tmp_path / "shards"
    manifest = prepare(f"files:{tmp_path}/a.txt", out, **{"processes": 1, "vocab_size": 200, **options})
    return manifest, vocab.from_json(manifest["vocab"], out / "vocab.txt")


def warnings(said: str) -> list[str]:
    """The warnings about letters. A warning that the vocabulary is large is left out: these texts are short."""
    return [line for line in said.splitlines() if line.startswith("WARNING") and "vocabulary is large" not in line]


@pytest.mark.parametrize(("text", "word"), [(GERMAN, "für"), (KOREAN, "한국어를"), (JAPANESE, "ガラスです")])
def test_default_keeps_the_letters_of_any_language_without_a_warning(tmp_path, capsys, text, word):
    manifest, words = made(tmp_path, text)
    assert (manifest["vocab"]["cased"], manifest["vocab"]["strip_accents"]) == (False, False)
    assert sum(split["unknown"] for split in manifest["splits"].values()) == 0
    tokens = words.tokenizer.encode(word, add_special_tokens=False).tokens
    assert "".join(token.removeprefix("##") for token in tokens) == word
    assert not warnings(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        (GERMAN, r"1\d\.\d% of the letters: (Für becomes Fur|Gäste becomes Gaste)"),
        (KOREAN, "100.0% of the letters: .* becomes [0-9]+ separate letters"),
        (JAPANESE, "20.0% of the letters: これはガラスです becomes これはカラスてす"),
    ],
    ids=["German", "Korean", "Japanese"],
)
def test_stripping_accents_that_harms_a_language_is_warned_about(tmp_path, capsys, text, becomes):
    made(tmp_path, text, strip_accents=True)
    said = capsys.readouterr().out
    (line,) = warnings(said)
    assert re.search(f"stripping accents changes {becomes}", line), line
    assert line.endswith("Leave out --strip_accents to keep them")


def test_lower_casing_turkish_is_warned_about(tmp_path, capsys):
    text = "Işık İstanbul'da yandı.\n\nKırmızı balık sıcak suda.\n"
    made(tmp_path, text)
    assert "WARNING: lower-casing turns I into i" in capsys.readouterr().out
    (tmp_path / "cased").mkdir()
    made(tmp_path / "cased", text, cased=True)
    said = capsys.readouterr().out
    assert not warnings(said)
    assert "Letters     case kept, accents kept (--cased=True; the default)" in said


def test_text_in_either_unicode_form_has_the_same_tokens(tmp_path):
    words = vocab.load(write(tmp_path, ACCENTED), strip_accents=False)
    encoder = document_tokenizer.DocumentTokenizer(words)
    text = "Für Gästen."
    composed, decomposed = encoder([unicodedata.normalize(form, text) for form in ("NFC", "NFD")])
    assert composed == decomposed
    assert composed.unknown == 0
    trained = vocab.train([unicodedata.normalize("NFD", GERMAN)] * 20, 120).decode().split("\n")
    assert "für" in trained
    assert not [token for token in trained if unicodedata.normalize("NFC", token) != token]


def test_document_tokenizer_equals_the_plain_tokenizer_if_accents_are_stripped(tmp_path):
    words = vocab.load(write(tmp_path, PLAIN))
    texts = [unicodedata.normalize(form, "Für Gästen. \u212b") for form in ("NFC", "NFD")]
    for text, made_ in zip(texts, document_tokenizer.DocumentTokenizer(words)(texts), strict=True):
        assert shards.decode(made_.records[0], "uint16").tokens_T.tolist() == words.tokenizer.encode(text).ids
        assert made_.raw_bytes == len(text.encode())


@pytest.mark.parametrize(
    ("tokens", "files", "expected"),
    [
        (PLAIN, {}, (False, True)),
        (ACCENTED, {}, (False, False)),
        (CASED, {}, (True, False)),
        (PLAIN, {"tokenizer_config": {}}, (False, True)),  # BertTokenizer's defaults
        (PLAIN, {"tokenizer_config": {"strip_accents": None, "do_lower_case": True}}, (False, True)),
        (PLAIN, {"tokenizer_config": {"strip_accents": False}}, (False, False)),
        (PLAIN, {"tokenizer_config": {"do_lower_case": False}}, (True, False)),
        (PLAIN, {"tokenizer": {"normalizer": {"lowercase": False, "strip_accents": True}}}, (True, True)),
    ],
)
def test_settings_of_a_vocabulary_come_from_its_files_or_else_from_its_tokens(tmp_path, tokens, files, expected):
    path = write(tmp_path, tokens, **files)
    assert letters.of_vocabulary(path)[:2] == expected


@pytest.mark.parametrize("name", ["manifest", "about"])
def test_settings_of_a_vocabulary_come_from_the_manifest_or_checkpoint_next_to_it(tmp_path, name):
    path = write(tmp_path, PLAIN)
    for cased, strip, expected in [
        (False, None, (False, True)),
        (True, None, (True, False)),
        (False, False, (False, False)),
    ]:
        write(tmp_path, PLAIN, **{name: entry(path, cased=cased, strip_accents=strip)})
        assert letters.of_vocabulary(path)[:2] == expected
    write(tmp_path, PLAIN, **{name: entry(path, sha256="another", strip_accents=False)})
    assert letters.of_vocabulary(path)[:2] == (False, True)


def test_uncased_bert_still_strips_accents(tmp_path, capsys):
    given = write(
        tmp_path / "bert", PLAIN, tokenizer_config={"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    )
    manifest, words = made(tmp_path, GERMAN, vocab=given)
    assert manifest["vocab"]["strip_accents"] is True
    assert words == tokenizer.read(tmp_path / "bert")
    assert "The vocabulary needs that (as tokenizer_config.json next to the vocabulary says)" in capsys.readouterr().out


def test_flags_decide_and_are_warned_about_if_they_contradict_the_vocabulary(tmp_path, capsys):
    manifest, _ = made(tmp_path, GERMAN, vocab=write(tmp_path / "given", PLAIN), strip_accents=False, cased=True)
    assert (manifest["vocab"]["cased"], manifest["vocab"]["strip_accents"]) == (True, False)
    said = capsys.readouterr().out
    assert "Letters     case kept, accents kept (--cased=True; --strip_accents=False)" in said
    assert "WARNING: --strip_accents=False, but the vocabulary" in said
    assert "was made without accents" in said
    assert "WARNING: --cased=True, but the vocabulary" in said
    assert "was made without capitals" in said


def test_finished_folder_keeps_the_settings_it_was_made_with(tmp_path, capsys):
    """Earlier versions wrote `null` for strip_accents. With `null`, accents are stripped unless the case is kept."""
    manifest, _ = made(tmp_path, GERMAN, strip_accents=True)
    path = tmp_path / "shards/manifest.json"
    manifest["settings"]["strip_accents"] = manifest["vocab"]["strip_accents"] = None
    del manifest["text"]
    path.write_text(json.dumps(manifest | {"format": shards.UNSEALED}))
    before = path.read_bytes()
    made(tmp_path, GERMAN)
    assert "already finished" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert vocab.from_json(manifest["vocab"], tmp_path / "shards/vocab.txt").strip_accents is True


def test_finished_folder_says_which_setting_this_command_leaves_out(tmp_path, capsys):
    made(tmp_path, GERMAN, cased=True)
    capsys.readouterr()
    made(tmp_path, GERMAN, cased=True)
    assert "It was made with" not in capsys.readouterr().out
    made(tmp_path, GERMAN)
    said = capsys.readouterr().out
    assert "is already finished: nothing to do" in said
    assert "It was made with --cased=True (case kept, accents kept), which this command does not have" in said
    assert "A new folder would treat letters differently (lower-cased, accents kept)" in said


def test_export_writes_whether_accents_are_stripped(tmp_path):
    for strip in (None, True, False):
        words = vocab.parse(("\n".join(PLAIN) + "\n").encode(), "vocab.txt", False, strip)
        tokenizer.write(tmp_path, words, 16)
        assert json.loads((tmp_path / "tokenizer_config.json").read_text())["strip_accents"] is (strip is not False)
        assert tokenizer.read(tmp_path) == words


def test_ten_lines_show_the_tokens_and_what_is_unknown(tmp_path, capsys):
    text = "\n\n".join(f"Für Gäste {number}." for number in range(200))
    said = []
    for processes in (1, 2):
        made(tmp_path, text, vocab=write(tmp_path / "given", ACCENTED), processes=processes, unit=500)
        said.append(capsys.readouterr().out.partition("What the vocabulary does")[2].partition("Unknown tokens")[0])
        shutil.rmtree(tmp_path / "shards")
    assert said[0] == said[1]
    lines = said[0].splitlines()[1:]
    assert len(lines) - 1 == 2 * 10
    numbers = [int(line.split()[-1].rstrip(".")) for line in lines[:20:2]]
    assert lines[1] == f"      für gäste [UNK: {numbers[0]}] ."
    assert max(numbers) - min(numbers) > 50
