"""Case and accents: whether a text is lower-cased and loses its accents, what decides this, and which texts are harmed.

A flag decides, else an earlier call for the same folder, else the given vocabulary. Without any of these, letters are
lower-cased and accents are kept.
"""

import collections
import pathlib
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.data import sealed
from bert_fast.data import vocab as vocabulary

# A file next to a vocabulary may lack a seal (sealed.py) if it has one of these formats. None stands for a file that
# states no format, such as Hugging Face's files.
OLDER = (*range(6), None)
_HARMED = 0.002  # a larger share of changed letters prints a warning; English Wikipedia has 0.0005
_WORD = re.compile(r"\S+")
_FLAGS = {"cased": "capitals", "strip_accents": "accents"}


class Letters(NamedTuple):
    """Whether letters keep their case and lose their accents. by: what decided that, as text."""

    cased: bool
    strip_accents: bool
    by: str

    def __str__(self):
        return f"{'case kept' if self.cased else 'lower-cased'}, accents {'stripped' if self.strip_accents else 'kept'}"


def settle(
    cased: bool | None, strip_accents: bool | None, given: pathlib.Path | None, begun: dict | None
) -> tuple[Letters, list[str]]:
    """What to do with letters, and warnings about flags that contradict the vocabulary.

    cased, strip_accents: the flags; None if they are not given.
    given: an existing vocab.txt. begun: the settings of a folder that an earlier call began.
    """
    flags = {"cased": cased, "strip_accents": strip_accents}
    if begun is not None:
        there = stored(begun)
        found = Letters(there["cased"], there["strip_accents"], "as in the earlier call for this folder")
    elif given is not None:
        found = of_vocabulary(given)
    else:
        found = Letters(False, False, "the default")
    chosen = {name: getattr(found, name) if flag is None else flag for name, flag in flags.items()}
    reasons = [f"--{name}={flag}" for name, flag in flags.items() if flag is not None]
    by = "; ".join(reasons if len(reasons) == len(flags) else [*reasons, found.by])
    differing = [name for name in flags if given is not None and chosen[name] != getattr(found, name)]
    return Letters(**chosen, by=by), [
        f"--{name}={chosen[name]}, but the vocabulary {given} was made "
        f"{'with' if chosen[name] == (name == 'strip_accents') else 'without'} {_FLAGS[name]} ({found.by}): "
        "some words will be unknown, or tokens never used. Leave out the flag to follow the vocabulary"
        for name in differing
    ]


def stored(entry: dict) -> dict:
    """The `entry` of a manifest or a checkpoint, with True or False for `strip_accents`. None becomes True unless the
    entry is cased.
    """
    strip = entry["strip_accents"]
    return entry | {"strip_accents": not entry["cased"] if strip is None else strip}


def of_vocabulary(path: pathlib.Path) -> Letters:
    """The letters that a vocabulary was made for, from the files next to its vocab.txt, else from its tokens."""
    words = vocabulary.load(path)
    for name in ("manifest.json", "about.json"):  # of a shards folder, and of a checkpoint
        entry = _json(path.with_name(name)).get("vocab")
        if (
            isinstance(entry, dict)
            and entry.get("sha256") == words.fingerprint
            and {"cased", "strip_accents"} <= {*entry}
        ):
            entry = stored(entry)
            return Letters(entry["cased"], entry["strip_accents"], f"as {name} next to the vocabulary says")
    settings, whole = _json(path.with_name("tokenizer_config.json")), _json(path.with_name("tokenizer.json"))
    if settings or whole:
        cased, strip = of_hugging_face(settings, whole)
        name = "tokenizer_config.json" if settings else "tokenizer.json"
        return Letters(cased, not cased if strip is None else strip, f"as {name} next to the vocabulary says")
    tokens = [token for token in words.tokenizer.get_vocab() if token not in vocabulary.SPECIAL]
    return Letters(
        cased=any(token != token.lower() for token in tokens),
        strip_accents=all(token == stripped(token) for token in tokens),
        by="as the tokens of the vocabulary show",
    )


def of_hugging_face(settings: dict, whole: dict) -> tuple[bool, bool | None]:
    """(cased, strip_accents) of a tokenizer_config.json and a tokenizer.json. By default (False, None), as in BERT."""
    normalizer = whole.get("normalizer")
    normalizer = normalizer if isinstance(normalizer, dict) else {}
    lower = settings.get("do_lower_case", normalizer.get("lowercase", True))
    strip = settings.get("strip_accents", normalizer.get("strip_accents"))
    for name, value in (("do_lower_case", lower), ("strip_accents", strip)):
        if not isinstance(value, bool | None):
            raise BadInput(
                f"{name} is {value!r} in the tokenizer's files: expected true, false or null: correct it, or download "
                "them again"
            )
    return not lower, strip


def _json(path: pathlib.Path) -> dict:
    remedy = "restore it, or copy the vocabulary to a separate folder"
    return sealed.read(path, remedy, OLDER) if path.is_file() else {}


def stripped(text: str) -> str:
    """The text without accents: decomposed and without combining marks, as in BERT."""
    return "".join(one for one in unicodedata.normalize("NFD", text) if unicodedata.category(one) != "Mn")


def harm(texts: Iterable[str], letters: Letters, flag: bool | None) -> list[str]:
    """Warnings if letters of these texts would become other letters. flag: --strip_accents; None if not given."""
    count = turkic = harmed = 0
    words: collections.Counter[str] = collections.Counter()
    for text in texts:
        text = unicodedata.normalize("NFC", text)
        count += sum(map(str.isalpha, text))
        if not text.isascii():
            turkic += text.count("ı") + text.count("İ")
            for word in _WORD.findall(text) if letters.strip_accents else ():
                if not word.isascii() and (changed := sum(one != stripped(one) for one in word)):
                    harmed += changed
                    words[word.strip(".,;:!?\"'()«»„“”、。")] += 1
    found = []
    if harmed > _HARMED * count:
        word = min(
            words, key=lambda word: (-words[word], len(word))
        )  # the most frequent; among equally frequent ones, the shortest
        becomes = stripped(word)
        changed = f"{word} becomes {becomes}"
        if len(becomes) > len(word):
            changed = f"{word} becomes {len(becomes)} separate letters"
        remedy = "Leave out --strip_accents to keep them"
        if not flag:
            remedy = (
                f"The vocabulary needs that ({letters.by}): to keep them, give another --vocab, or none to train one"
            )
        found.append(f"stripping accents changes {harmed / max(count, 1):.1%} of the letters: {changed}. {remedy}")
    if turkic > _HARMED * count and not letters.cased:
        found.append("lower-casing turns I into i, but in this text ı and i are different letters: use --cased")
    return found
