"""WordPiece vocabularies: trained or loaded, with BERT's normalisation and splitting.

Special tokens may have any ids: they are read from the vocabulary.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bert_fast import BadInput

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
_LONGEST_WORD = 100  # characters; a longer word is [UNK] (default of `tokenizers`; google-research/bert has 200)
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")  # a word that is too long, or words joined by punctuation
# The share of all characters that the alphabet covers (character_coverage in sentencepiece). A word with
# any other character is unknown. Without this limit, rare symbols of other scripts would take up most of a
# small vocabulary.
_COVERAGE = 0.9999
_ALPHABET_SAMPLE = 10_000_000  # characters counted to choose the alphabet


@dataclasses.dataclass(frozen=True)
class Vocab:
    """A vocabulary, with the normalisation of text before lookup.

    content: the bytes of its vocab.txt; `fingerprint` is their sha256.
    """

    content: bytes = dataclasses.field(compare=False, repr=False)
    fingerprint: str
    size: int
    cased: bool
    strip_accents: bool
    special_ids: dict[str, int]
    tokenizer: Tokenizer = dataclasses.field(compare=False, repr=False)

    def to_json(self) -> dict:
        """The entry for a manifest or a checkpoint. `from_json` turns it back into a Vocab, given its vocab.txt."""
        return {
            "size": self.size,
            "sha256": self.fingerprint,
            "cased": self.cased,
            "strip_accents": self.strip_accents,
            "special_ids": self.special_ids,
        }

    @property
    def special(self) -> tuple[int, ...]:
        """Ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        return tuple(self.special_ids[token] for token in SPECIAL)

    def for_text(self) -> Tokenizer:
        """A tokenizer that treats special tokens in a text, such as "[MASK]", like any other word."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.encode_special_tokens = True
        return tokenizer

    @property
    def pad(self) -> int:
        return self.special_ids["[PAD]"]

    @property
    def unk(self) -> int:
        return self.special_ids["[UNK]"]

    @property
    def cls(self) -> int:
        return self.special_ids["[CLS]"]

    @property
    def sep(self) -> int:
        return self.special_ids["[SEP]"]

    @property
    def mask(self) -> int:
        return self.special_ids["[MASK]"]

    @functools.cached_property
    def continues_W(self) -> np.ndarray:
        """For each id, whether its token begins with "##" and so continues a word. Used for whole-word masking."""
        tokens = (self.tokenizer.id_to_token(i) for i in range(self.size))
        return np.array([token is not None and token.startswith(CONTINUES) for token in tokens], bool)


def load(path: str | pathlib.Path, cased: bool = False, strip_accents: bool | None = None) -> Vocab:
    """The vocabulary of a vocab.txt: one token per line. A token's id is its line number, from 0.

    strip_accents: with None, accents are stripped if letters are lower-cased, as in BERT.

    The vocabulary's tokenizer encodes "[MASK]" in a text as the special token. To encode it like any other word, as in
    a corpus, set `tokenizer.encode_special_tokens`. Raises BadInput for a file that is missing or empty, a token
    that occurs twice, and a special token that does not occur.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise BadInput(
            f"no vocabulary at {path}: expected a vocab.txt, one token per line; without --vocab, a new one is trained"
        )
    return parse(path.read_bytes(), path, cased, strip_accents)


def from_json(entry: dict, path: str | pathlib.Path) -> Vocab:
    """The vocabulary for an `entry` that `to_json` returned, read from the vocab.txt at `path`.

    Raises BadInput if the file cannot be used, or is not the one that `entry` describes.
    """
    found, sha256, size = load(path, entry["cased"], entry["strip_accents"]), entry["sha256"], entry["size"]
    if (found.fingerprint, found.size) != (sha256, size):
        raise BadInput(
            f"{path} ({found.size} tokens, sha256 {found.fingerprint[:12]}...) is not the vocabulary that the files "
            f"next to it were made with ({size} tokens, sha256 {sha256[:12]}...): restore that vocabulary, or make "
            "those files again"
        )
    if found.special_ids != entry["special_ids"]:
        raise BadInput(
            f"the description next to {path} is damaged: it says that the ids of the special tokens are "
            f"{entry['special_ids']}, but in the vocabulary they are {found.special_ids}: restore it, or make those "
            "files again"
        )
    return found


def parse(content: bytes, path: str | pathlib.Path, cased: bool, strip_accents: bool | None) -> Vocab:
    """The vocabulary in `content`, the bytes of the vocab.txt at `path`. Raises BadInput as `load` does."""
    strip_accents = not cased if strip_accents is None else strip_accents
    try:
        lines = content.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}: expected a vocab.txt, one token per line") from error
    if lines == [""]:
        raise BadInput(f"{path} is empty: expected one token per line")
    ids = {token: i for i, token in enumerate(lines)}
    if len(ids) < len(lines):
        twice = next(i for i, token in enumerate(lines) if ids[token] != i)
        raise BadInput(
            f"{path}: {lines[twice]!r} is on line {twice + 1} and again on line {ids[lines[twice]] + 1}: "
            "each token may occur only once, or ids would shift; use the file that belongs to the model"
        )
    if missing := [token for token in SPECIAL if token not in ids]:
        raise BadInput(f"{path}: no {', '.join(missing)}: BERT needs {' '.join(SPECIAL)}, each on its own line")
    return Vocab(
        content=content,
        fingerprint=hashlib.sha256(content).hexdigest(),
        size=len(ids),
        cased=cased,
        strip_accents=strip_accents,
        special_ids={token: ids[token] for token in SPECIAL},
        tokenizer=_tokenizer(ids, cased, strip_accents),
    )


def composed(text: str, strip_accents: bool) -> str:
    """The text in NFC, where a letter and its accent are one character. Unchanged if accents are stripped anyway.

    In NFD, the same word would have different tokens, and a Korean syllable would become three tokens.
    """
    return text if strip_accents else unicodedata.normalize("NFC", text)


def train(texts: Iterable[str], size: int, cased: bool = False, strip_accents: bool = False) -> bytes:
    """The bytes of a vocab.txt of at most `size` tokens for these texts: special tokens, then the others in order of
    their characters.

    `tokenizers` numbers the letters inside words differently in each call, so the tokens are sorted. The same text then
    gives the same file, unless two tokens of a small text are equally frequent and only one fits. Raises BadInput if
    the texts hold no word.
    """
    normalise, words_of = _normalizer(cased, strip_accents).normalize_str, _words_of(cased, strip_accents)
    texts = (_LONG_RUN.sub(words_of, composed(text, strip_accents)) for text in texts)
    head: list[str] = []
    characters: collections.Counter[str] = collections.Counter()
    for text in texts:
        head.append(text)
        characters.update(normalise(text))
        if characters.total() >= _ALPHABET_SAMPLE:
            break
    for space in [character for character in characters if character.isspace()]:
        del characters[space]
    if not characters:
        raise BadInput("the text has no words, so no vocabulary can be trained on it: expected text")

    tokenizer = _tokenizer({token: i for i, token in enumerate(SPECIAL)}, cased, strip_accents)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        # a character may be in the vocabulary twice, as "a" and as "##a"
        limit_alphabet=min(_alphabet(characters), (size - len(SPECIAL)) // 3),
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_chained(head, texts), trainer)
    others = sorted(tokenizer.get_vocab().keys() - set(SPECIAL))
    return "".join(f"{token}\n" for token in (*SPECIAL, *others)).encode()


def _words_of(cased: bool, strip_accents: bool) -> Callable[[re.Match], str]:
    """The words of a match, without those that are always [UNK]. Training on a word of megabytes would take hours."""
    normalise, split = _normalizer(cased, strip_accents).normalize_str, pre_tokenizers.BertPreTokenizer()

    def words(match: re.Match) -> str:
        found = split.pre_tokenize_str(normalise(match[0]))
        return " ".join(word for word, _ in found if len(word) <= _LONGEST_WORD)

    return words


def _chained(head: list[str], rest: Iterator[str]) -> Iterator[str]:
    while head:
        yield head.pop()  # freed as it is read
    yield from rest


def _alphabet(characters: collections.Counter[str]) -> int:
    """How many of the most frequent characters are needed to cover the share _COVERAGE of the text."""
    missing = characters.total() * (1 - _COVERAGE)
    for rank, (_, count) in enumerate(reversed(characters.most_common())):
        if (missing := missing - count) < 0:
            return len(characters) - rank
    return len(characters)


def _normalizer(cased: bool, strip_accents: bool) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=not cased
    )


def _tokenizer(ids: dict[str, int], cased: bool, strip_accents: bool) -> Tokenizer:
    model = models.WordPiece(
        ids, unk_token="[UNK]", continuing_subword_prefix=CONTINUES, max_input_chars_per_word=_LONGEST_WORD
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(cased, strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    tokenizer.add_special_tokens(list(SPECIAL))  # so that "[MASK]." becomes the mask and a full stop
    return tokenizer
