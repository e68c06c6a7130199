"""Vocabularies of Hugging Face folders: every format gives the same vocabulary; errors name what is unsupported."""

import json

import pytest

from bert_fast import BadInput
from bert_fast.data import vocab
from bert_fast.hf import tokenizer
from helpers.made_folders import PIECES, write_vocab
from helpers.made_shards import WORDS


def tokenizer_json(folder, change=lambda tree: None):
    """Moves a folder's vocabulary from vocab.txt to tokenizer.json, and applies `change` to its content."""
    tokenizer.write(folder, tokenizer.read(folder), 16)
    (folder / "vocab.txt").unlink()
    tree = json.loads((folder / "tokenizer.json").read_text())
    change(tree)
    (folder / "tokenizer.json").write_text(json.dumps(tree))


def test_vocabulary_is_the_same_from_tokenizer_json_alone(tmp_path):
    write_vocab(tmp_path, do_lower_case=False, strip_accents=True)
    before = tokenizer.read(tmp_path)
    tokenizer_json(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    after = tokenizer.read(tmp_path)
    assert after == before
    assert after.content == before.content
    assert (after.cased, after.strip_accents) == (True, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["model"].update(type="BPE"), "model.type is 'BPE'"),
        (lambda tree: tree["model"].update(continuing_subword_prefix="@@"), "continuing_subword_prefix"),
        (lambda tree: tree.update(normalizer=None), "normalizer.type is None"),
        (lambda tree: tree["normalizer"].update(handle_chinese_chars=False), "handle_chinese_chars is False"),
        (lambda tree: tree["model"]["vocab"].update({"new": 500}), "gaps"),
        (lambda tree: tree["added_tokens"].append({"content": "<new>", "id": 900}), "added tokens <new>"),
    ],
)
def test_unsupported_tokenizers_are_refused(change, message, tmp_path):
    write_vocab(tmp_path)
    tokenizer_json(tmp_path, change)
    with pytest.raises(BadInput, match=message):
        tokenizer.read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_class": "RobertaTokenizer"}, "RobertaTokenizer"),
        ({"tokenize_chinese_chars": False}, "tokenize_chinese_chars"),
        ({"mask_token": "<mask>"}, "mask_token is '<mask>'"),
    ],
)
def test_unsupported_tokenizer_settings_are_refused(settings, message, tmp_path):
    write_vocab(tmp_path, **settings)
    with pytest.raises(BadInput, match=message):
        tokenizer.read(tmp_path)


def test_missing_or_contradictory_vocabulary_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no vocab\.txt and no tokenizer\.json"):
        tokenizer.read(tmp_path)
    write_vocab(tmp_path)
    tokenizer_json(tmp_path)
    write_vocab(tmp_path, [*PIECES[:-1], "other"])
    with pytest.raises(BadInput, match=r"differ in \['\.', 'other'\]"):
        tokenizer.read(tmp_path)


def test_special_tokens_may_have_any_ids(tmp_path):
    write_vocab(tmp_path, WORDS)
    found = tokenizer.read(tmp_path)
    assert found == vocab.load(tmp_path / "vocab.txt")
    assert found.content == (tmp_path / "vocab.txt").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer_config.json", {"strip_accents": 1.5}, r"strip_accents is 1\.5 .*expected true, false or null"),
        ("tokenizer_config.json", {"do_lower_case": []}, r"do_lower_case is \[\]"),
        ("added_tokens.json", {"x": [None]}, "not in the vocabulary"),
        ("tokenizer_config.json", {"tokenizer_class": []}, "tokenizer is a"),
        ("tokenizer_config.json", {"tokenizer_class": {}, "do_lower_case": True}, "tokenizer is a"),
    ],
)
def test_values_of_the_wrong_type_are_errors(tmp_path, name, content, said):
    (tmp_path / "vocab.txt").write_text("\n".join(vocab.SPECIAL) + "\n")
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(BadInput, match=said):
        tokenizer.read(tmp_path)


def test_a_tokenizer_json_with_a_damaged_part_is_an_error(tmp_path):
    words = vocab.parse(("\n".join(vocab.SPECIAL) + "\nword\n").encode(), "vocab.txt", False, None)
    tokenizer.write(tmp_path, words, 16)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    for key in ("added_tokens", "model"):
        for value in (7, [1], None, {}):
            (tmp_path / "tokenizer.json").write_text(json.dumps(whole | {key: value}))
            if (key, value) != ("added_tokens", {}):
                with pytest.raises(BadInput):
                    tokenizer.read(tmp_path)
