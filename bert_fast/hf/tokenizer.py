"""The tokenizer's files of a Hugging Face folder, in both directions."""

import json
import pathlib
from typing import Any

from tokenizers import Tokenizer, processors

from bert_fast import BadInput
from bert_fast.data import vocab
from bert_fast.data.vocab import CONTINUES, SPECIAL, Vocab

ROLES = dict(zip(SPECIAL, ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), strict=True))
# Classes that are BERT's WordPiece, and those that are whatever their tokenizer.json says.
CLASSES = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# What our tokenizer does, by its place in a tokenizer.json; other values make other tokens.
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
    """The object in a file, {} where there is none. Raises BadInput where it is no JSON."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is no JSON ({error}): is it whole? Download it again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def read(folder: pathlib.Path) -> Vocab:
    """The vocabulary of a folder; its vocab.txt is made where only a tokenizer.json is there.

    `tokenizer_config.json` says whether case and accents are kept; where it does not, `tokenizer.json`;
    where neither does they are dropped, as transformers' BertTokenizer does. Raises BadInput for
    another tokenizer than BERT's WordPiece, by its name.
    """
    settings, whole = read_json(folder / "tokenizer_config.json"), read_json(folder / "tokenizer.json")
    kind = settings.get("tokenizer_class")
    if kind not in (None, *CLASSES):
        raise BadInput(f"{folder}: the tokenizer is a {kind}, only BERT's WordPiece is read ({', '.join(CLASSES[:2])})")
    if settings.get("tokenize_chinese_chars", True) is False or settings.get("do_basic_tokenize", True) is False:
        raise BadInput(
            f"{folder}/tokenizer_config.json: tokenize_chinese_chars and do_basic_tokenize must be true: text is split "
            "as BERT splits it"
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
            f"{folder} holds no vocab.txt and no tokenizer.json: put BERT's vocabulary there, a token a line"
        )
    normalizer = whole.get("normalizer", {})
    cased = not settings.get("do_lower_case", normalizer.get("lowercase", True))
    words = vocab.parse(content, path, cased, settings.get("strip_accents", normalizer.get("strip_accents")))
    ids = words.tokenizer.get_vocab()
    if whole and whole["model"]["vocab"] != ids:
        differing = sorted(dict(whole["model"]["vocab"].items() ^ ids.items()))
        raise BadInput(f"{path} and tokenizer.json of {folder} differ in {differing[:5]}: delete the one that is wrong")
    added = {entry["content"]: entry["id"] for entry in whole.get("added_tokens", [])}
    added |= read_json(folder / "added_tokens.json")
    if strange := sorted(token for token, number in added.items() if ids.get(token) != number):
        raise BadInput(
            f"{folder}: the added tokens {', '.join(strange[:5])} are not words of the vocabulary: write a vocab.txt "
            "with them as its next lines, and delete tokenizer.json and added_tokens.json"
        )
    for token, role in ROLES.items():
        name = settings.get(role, token)
        name = name.get("content") if isinstance(name, dict) else name
        if name not in (token, None):
            raise BadInput(f"{folder}: the {role} is {name!r}, expected {token}, which BERT's vocabularies have")
    return words


def check(path: pathlib.Path, whole: dict[str, Any]):
    """Raises BadInput that names what a tokenizer.json does otherwise than BERT."""
    for place, expected in OURS.items():
        value: Any = whole
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value != expected:
            raise BadInput(
                f"{path}: {place} is {value!r}, expected {expected!r}: only BERT's own way of splitting text is read"
            )


def vocab_txt(path: pathlib.Path, ids: dict[str, int]) -> bytes:
    """A vocab.txt with these ids. Raises BadInput where they leave a gap."""
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(ids))):
        raise BadInput(f"{path}: the ids of the {len(ids)} tokens are not 0 to {len(ids) - 1}: the vocabulary has gaps")
    return "".join(f"{token}\n" for token in tokens).encode()


def write(folder: pathlib.Path, words: Vocab, max_len: int):
    """Writes the tokenizer's files: those that transformers reads today, and vocab.txt and the special tokens' map
    for older programs.
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
