"""Reads and writes the tokenizer files of a Hugging Face folder."""

import json
import pathlib
from typing import Any

from tokenizers import Tokenizer, processors

from bert_fast import BadInput
from bert_fast.data import letters, vocab
from bert_fast.data.vocab import CONTINUES, SPECIAL, Vocab

ROLES = dict(zip(SPECIAL, ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), strict=True))
# The supported classes. The first two are BERT's WordPiece; the others do what their tokenizer.json says.
CLASSES = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# The settings of our tokenizer, by their keys in tokenizer.json. With other values, a text is split differently.
OURS = {
    "model.type": "WordPiece",
    "model.unk_token": "[UNK]",
    "model.continuing_subword_prefix": CONTINUES,
    "model.max_input_chars_per_word": 100,
    "normalizer.type": "BertNormalizer",
    "normalizer.clean_text": True,
    "normalizer.handle_chinese_chars": True,
    "pre_tokenizer.type": "BertPreTokenizer",
}


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no file. Raises BadInput if the file holds anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not valid JSON ({error}): is it complete? Download it again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def read(folder: pathlib.Path) -> Vocab:
    """The vocabulary of a folder, from vocab.txt or else from tokenizer.json.

    `tokenizer_config.json`, or else `tokenizer.json`, states whether case and accents are kept. If neither file states
    it, case and accents are dropped, as in transformers' BertTokenizer. Raises BadInput if the tokenizer is not BERT's
    WordPiece, or if its files disagree or are damaged.
    """
    try:
        return _read(folder)
    except (AttributeError, KeyError, TypeError) as error:
        raise BadInput(
            f"{folder}: a file of the tokenizer lacks a value, or has one of the wrong type ({error}): "
            "download it again"
        ) from error


def _read(folder: pathlib.Path) -> Vocab:
    settings, whole = read_json(folder / "tokenizer_config.json"), read_json(folder / "tokenizer.json")
    kind = settings.get("tokenizer_class")
    if kind not in (None, *CLASSES):
        raise BadInput(
            f"{folder}: the tokenizer is a {kind}: only BERT's WordPiece is supported ({', '.join(CLASSES[:2])})"
        )
    if settings.get("tokenize_chinese_chars", True) is False or settings.get("do_basic_tokenize", True) is False:
        raise BadInput(
            f"{folder}/tokenizer_config.json: tokenize_chinese_chars and do_basic_tokenize must be true, "
            "because only BERT's way of splitting text is supported"
        )
    if whole:
        check(folder / "tokenizer.json", whole)
    path = folder / "vocab.txt"
    if path.is_file():
        content = path.read_bytes()
    elif whole:
        path, content = folder / "tokenizer.json", vocab_txt(folder / "tokenizer.json", whole["model"]["vocab"])
    else:
        raise BadInput(
            f"{folder} has no vocab.txt and no tokenizer.json: add BERT's vocabulary as vocab.txt, one token per line"
        )
    words = vocab.parse(content, path, *letters.of_hugging_face(settings, whole))
    ids = words.tokenizer.get_vocab()
    if whole and whole["model"]["vocab"] != ids:
        differing = sorted(dict(whole["model"]["vocab"].items() ^ ids.items()))
        raise BadInput(f"{path} and tokenizer.json of {folder} differ in {differing[:5]}: delete the one that is wrong")
    added = {entry["content"]: entry["id"] for entry in whole.get("added_tokens", [])}
    added |= read_json(folder / "added_tokens.json")
    if strange := sorted(token for token, number in added.items() if ids.get(token) != number):
        raise BadInput(
            f"{folder}: the added tokens {', '.join(strange[:5])} are not in the vocabulary: write a vocab.txt that "
            "lists them after its other lines, and delete tokenizer.json and added_tokens.json"
        )
    for token, role in ROLES.items():
        name = settings.get(role, token)
        name = name.get("content") if isinstance(name, dict) else name
        if name not in (token, None):
            raise BadInput(f"{folder}: the {role} is {name!r}, expected {token}, as in BERT's vocabularies")
    return words


def check(path: pathlib.Path, whole: dict[str, Any]):
    """Raises BadInput for the first setting of a tokenizer.json that differs from BERT's."""
    for place, expected in OURS.items():
        value: Any = whole
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value != expected:
            raise BadInput(
                f"{path}: {place} is {value!r}, expected {expected!r}: only BERT's way of splitting text is supported"
            )


def vocab_txt(path: pathlib.Path, ids: dict[str, int]) -> bytes:
    """The content of a vocab.txt with these ids. Raises BadInput if the ids have gaps."""
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(ids))):
        raise BadInput(f"{path}: the ids of the {len(ids)} tokens are not 0 to {len(ids) - 1}: the vocabulary has gaps")
    return "".join(f"{token}\n" for token in tokens).encode()


def write(folder: pathlib.Path, words: Vocab, max_len: int):
    """Writes the tokenizer files that transformers reads.

    Also writes vocab.txt and special_tokens_map.json, for older programs.
    """
    tokenizer = Tokenizer.from_str(words.tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.cls), ("[SEP]", words.sep)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_bytes(words.content)
    special = {role: token for token, role in ROLES.items()}
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": not words.cased,
        "strip_accents": words.strip_accents,
        "tokenize_chinese_chars": True,
        "model_max_length": max_len,
        **special,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", special)


def write_json(path: pathlib.Path, value: dict):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
