"""A tag for each token of a sentence, such as the entities of CoNLL-2003: examples, tags from logits, and scores.

A token's tag is learned and predicted at its first word piece. A sentence that is longer than an example is split
between tokens, so that every token gets a tag.

Axes: N windows (one example each), S positions, W tokens of a window, C tags.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import sklearn.metrics

from bert_fast import BadInput
from bert_fast.data.vocab import Vocab
from bert_fast.tasks.batches import NO_LABEL, TaskExamples, tokenize
from bert_fast.tasks.conll import OUTSIDE, Sentence, entities, is_iob, to_iob2
from bert_fast.train.log import counted
from bert_fast.train.report import say


class TagWindows(NamedTuple):
    """Examples [CLS] tokens [SEP], in the order of the sentences; not padded.

    ids: N arrays [S] of word piece ids.
    labels: N arrays [S] with the number of a token's tag at its first word piece, and NO_LABEL elsewhere. None if the
        sentences have no tags.
    sentences: for each window, the index of its sentence.
    firsts: N arrays [W] with the position of each token's first word piece.
    """

    ids: list[np.ndarray]
    labels: list[np.ndarray] | None
    sentences: list[int]
    firsts: list[np.ndarray]


def prepared(
    train: Sequence[Sentence], others: Sequence[Sequence[Sentence]]
) -> tuple[tuple[str, ...], list[Sentence], list[list[Sentence]]]:
    """The names of the tags, then the training sentences and the other sentences, with entity tags in IOB2.

    The names of entity tags are O, then B-X and I-X for each type X of the training file. Types and the names of plain
    tags are in alphabetical order. Raises BadInput for tags of another scheme, and if `others` have a tag that is not
    among the names.
    """
    used = {tag for sentence in train for tag in sentence.tags}
    iob = is_iob(used)
    if not iob:
        _refuse_other_schemes(train)
    types = sorted({tag[2:] for tag in used - {OUTSIDE}})
    names = [OUTSIDE, *(f"{part}-{kind}" for kind in types for part in "BI")] if iob else sorted(used)
    if len(names) < 2:
        raise BadInput(f"{train[0].places[0]}: all tokens have the tag {names[0]!r}: expected at least two tags")
    for sentences in others:
        for sentence in sentences:
            for tag, place in zip(sentence.tags, sentence.places, strict=True):
                if tag not in names:
                    raise BadInput(
                        f"{place}: the tag {tag!r} does not occur in the training file, which has {', '.join(names)}: "
                        "correct it, or add training sentences with it"
                    )
    if not iob:
        return tuple(names), list(train), [list(sentences) for sentences in others]
    fixed = [[s._replace(tags=tuple(to_iob2(s.tags))) for s in sentences] for sentences in (train, *others)]
    pairs = zip((s for part in (train, *others) for s in part), (s for part in fixed for s in part), strict=True)
    changed = [
        place
        for before, after in pairs
        for old, new, place in zip(before.tags, after.tags, before.places, strict=True)
        if old != new
    ]
    if changed:
        say(f"{counted(len(changed), 'I- tag')} at the start of an entity became B-, as in IOB2 (first: {changed[0]})")
    return tuple(names), fixed[0], fixed[1:]


def _refuse_other_schemes(train: Sequence[Sentence]):
    """Raises BadInput, with the place, if only some tags are IOB tags. An example is BIOES, which also has tags such as
    S-PER and E-PER.
    """
    placed = [(tag, place) for s in train for tag, place in zip(s.tags, s.places, strict=True)]
    if any(tag[:2] in ("B-", "I-") for tag, _ in placed):
        tag, place = next((tag, place) for tag, place in placed if not is_iob([tag]))
        raise BadInput(
            f"{place}: the tag {tag!r} is none of O, B-TYPE and I-TYPE, but other tags are: convert the file to IOB2 "
            "(an entity begins with B- and continues with I-; all else is O)"
        )


def windows(sentences: Sequence[Sentence], names: Sequence[str] | None, words: Vocab, seq_len: int) -> TagWindows:
    """Windows of at most `seq_len` word pieces. The windows of one sentence hold consecutive tokens, without overlap.

    names: the names of the tags; None to leave out labels. A token without word pieces (an invisible character) is
    [UNK]. A token longer than a window is truncated to fit.
    """
    every = list(dict.fromkeys(token for sentence in sentences for token in sentence.tokens))
    room, unknown = seq_len - 2, [words.unk]
    pieces = {token: (ids or unknown)[:room] for token, ids in zip(every, tokenize(every, words), strict=True)}
    number = {name: n for n, name in enumerate(names or ())}
    found = TagWindows([], None if names is None else [], [], [])
    for index, sentence in enumerate(sentences):
        for first, last in _parts([len(pieces[token]) for token in sentence.tokens], room):
            parts = [pieces[token] for token in sentence.tokens[first:last]]
            ids_S = np.array([words.cls, *(i for part in parts for i in part), words.sep], np.int32)
            firsts_W = 1 + np.cumsum([0, *map(len, parts[:-1])])
            found.ids.append(ids_S)
            found.sentences.append(index)
            found.firsts.append(firsts_W)
            if found.labels is not None:
                labels_S = np.full(len(ids_S), NO_LABEL, np.int32)
                labels_S[firsts_W] = [number[tag] for tag in sentence.tags[first:last]]
                found.labels.append(labels_S)
    return found


def rows(made: TagWindows) -> TaskExamples:
    """The windows as examples."""
    return TaskExamples(made.ids, [np.zeros_like(ids_S) for ids_S in made.ids], made.labels)


def _parts(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """(first token, token after the last) of each window: as many tokens as fit, in order."""
    starts, filled = [0], 0
    for n, length in enumerate(lengths):
        if filled + length > room:
            starts.append(n)
            filled = 0
        filled += length
    return list(zip(starts, [*starts[1:], len(lengths)], strict=True))


def predicted(made: TagWindows, logits_NSC: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    """The most likely tag of every token, by sentence. An I-X that does not continue an entity becomes B-X, as in
    IOB2.
    """
    found: dict[int, list[str]] = collections.defaultdict(list)
    for index, firsts_W, logits_SC in zip(made.sentences, made.firsts, logits_NSC, strict=True):
        found[index].extend(names[int(number)] for number in logits_SC[firsts_W].argmax(1))
    tags = [found[index] for index in sorted(found)]
    return [to_iob2(part) for part in tags] if is_iob(names) else tags


def score(wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, float]:
    """Metrics in percent. For entities: precision, recall and f1 over whole entities, and the accuracy of tags.

    All four equal what seqeval computes by default, and `score` is f1. For plain tags: accuracy and macro_f1, and
    `score` is the accuracy.
    """
    flat = [[tag for tags in part for tag in tags] for part in (wanted, found)]
    accuracy = 100 * sklearn.metrics.accuracy_score(*flat)
    if not is_iob(names):
        macro = 100 * sklearn.metrics.f1_score(*flat, average="macro", zero_division=0)  # pyright: ignore
        return {"accuracy": accuracy, "macro_f1": float(macro), "score": accuracy}
    there, said = (
        {(n, *entity) for n, tags in enumerate(part) for entity in entities(tags)} for part in (wanted, found)
    )
    right = len(there & said)
    shares = {"precision": right / max(len(said), 1), "recall": right / max(len(there), 1)}
    shares["f1"] = 2 * right / max(len(there) + len(said), 1)
    return {name: 100 * share for name, share in shares.items()} | {"accuracy": accuracy, "score": 100 * shares["f1"]}
