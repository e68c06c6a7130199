"""Questions about contexts longer than one example: windows of tokens, and answers as substrings of the context.

An answer is cut from the original context, not put together from word pieces. Each token records its range of
characters in the context, so an answer keeps its accents, capitals and spaces. Windows and the choice of answers
follow run_squad.py of google-research/bert.

Axes: N windows (one example each), S positions, T tokens of a context or of its part in a window, K lengths of an
answer (in `_best_spans`) or windows that may hold a token (in `_most_context`).
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bert_fast import BadInput
from bert_fast.data.vocab import Vocab
from bert_fast.train.log import counted

_AT_ONCE = 10_000  # texts tokenised per call, to save memory: an encoding is larger than its example
_PORTION = 64  # spans sorted at once: a window has about ten thousand, and only the best few are needed


class Question(NamedTuple):
    """A question, the context to search, and the texts of its answers.

    starts: for each answer, the index of its first character in the context; -1 if it is unknown.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    impossible: bool


class Windows(NamedTuple):
    """Examples of the form "[CLS] question [SEP] part of a context [SEP]". They are grouped by question, not padded.

    Each field has one entry per window.

    ids, types: [S], the token ids and token types.
    starts, ends: the first and last position of the first answer that is entirely in the window. If there is none,
        both are 0, the position of [CLS].
    questions: the index of the window's question. firsts: the position of the first context token.
    characters: [T, 2], where each context token begins and ends in the context: the index of its first character, and
        the index after its last.
    most_context: [T], whether this window has the most context around each token: see `_most_context`.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray]
    starts: np.ndarray
    ends: np.ndarray
    questions: np.ndarray
    firsts: np.ndarray
    characters: list[np.ndarray]
    most_context: list[np.ndarray]


class Answers(NamedTuple):
    """Answers by question id.

    best: the text of the answer, or an empty text if there is no answer.
    n_best: the best answers, best first, as dicts with the keys text, probability, start_logit and end_logit. The
        probabilities of a question's answers sum to 1.
    null_score_difference: the score of "no answer" minus the score of the best span. Only for version 2.0.
    """

    best: dict[str, str]
    n_best: dict[str, list[dict]]
    null_score_difference: dict[str, float]


def windows(questions: Sequence[Question], words: Vocab, seq_len: int, stride: int, max_question: int) -> Windows:
    """Windows of at most `seq_len` tokens: a question's first `max_question` tokens, and a part of its context.

    Parts begin `stride` tokens apart. If a window holds fewer than `stride` context tokens, the parts are adjacent.
    Raises BadInput if a question leaves no room for a context.
    """
    if stride < 1 or max_question < 1:
        raise BadInput(f"stride={stride}, max_question={max_question}: expected at least 1 token each")
    asked = [ids[:max_question] for ids, _ in _tokens([question.question for question in questions], words)]
    longest = max(map(len, asked), default=0)
    if seq_len < longest + 4:
        raise BadInput(
            f"seq_len={seq_len} leaves no room for a context next to a question of {counted(longest, 'token')}, [CLS] "
            f"and two [SEP]: raise seq_len, or lower max_question={max_question}"
        )
    contexts = list(dict.fromkeys(question.context for question in questions))
    tokens = dict(zip(contexts, _tokens(contexts, words), strict=True))
    rows = []
    for n, (question, ids) in enumerate(zip(questions, asked, strict=True)):
        context_T, characters_T2 = tokens[question.context]
        room, head, first = seq_len - len(ids) - 3, [words.cls, *ids, words.sep], len(ids) + 2
        step = min(room, stride)
        count = 1 + max(0, -(-(len(context_T) - room) // step))
        most_T = _most_context(len(context_T), room, step, count)
        spans = list(_spans(question, characters_T2))
        for window, start in enumerate(range(0, count * step, step)):
            part = slice(start, start + room)
            ids_S = np.array([*head, *context_T[part], words.sep], np.int32)
            types_S = (np.arange(len(ids_S)) >= first).astype(np.int32)
            inside = [(a - start + first, b - start + first) for a, b in spans if start <= a and b < start + room]
            label = inside[0] if inside else (0, 0)
            rows.append(((*label, n, first), ids_S, types_S, characters_T2[part], most_T[part] == window))
    numbers_N4, ids, types, characters, most_context = map(list, zip(*rows, strict=True))
    starts, ends, asked_by, firsts = np.array(numbers_N4, np.int32).T
    return Windows(ids, types, starts, ends, asked_by, firsts, characters, most_context)


def _tokens(texts: list[str], words: Vocab) -> Iterator[tuple[list[int], np.ndarray]]:
    """For each text, its token ids and the `characters` of its tokens (see `Windows`).

    Special tokens in a text, such as "[SEP]", are treated like other words.
    """
    tokenizer = words.for_text()
    for at in range(0, len(texts), _AT_ONCE):
        part = texts[at : at + _AT_ONCE]
        for text, encoding in zip(part, tokenizer.encode_batch(part, add_special_tokens=False), strict=True):
            characters_T2 = np.array(encoding.offsets, np.int32).reshape(-1, 2)
            yield encoding.ids, characters_T2 if text.isascii() else _with_marks(text, characters_T2)


def _with_marks(text: str, characters_T2: np.ndarray) -> np.ndarray:
    """Extends each token over the combining marks after it that belong to no token.

    A tokenizer that strips accents assigns such a mark to no token, so an answer could end before its last accent.
    """
    nexts_T = np.append(characters_T2[1:, 0], len(text))
    for t in np.flatnonzero(characters_T2[:, 1] < nexts_T):
        end = characters_T2[t, 1]
        while end < nexts_T[t] and unicodedata.category(text[end]) == "Mn":  # stripped by BERT's normalisation
            end += 1
        characters_T2[t, 1] = end
    return characters_T2


def _spans(question: Question, characters_T2: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last token of each answer whose start is known: the fewest tokens that cover all its characters."""
    for text, start in zip(question.answers, question.starts, strict=True):
        first = int(np.searchsorted(characters_T2[:, 1], start, "right"))
        last = int(np.searchsorted(characters_T2[:, 0], start + len(text), "left")) - 1
        if start >= 0 and first <= last:
            yield first, last


def _most_context(tokens: int, room: int, step: int, count: int) -> np.ndarray:
    """For each token [T], the window with the most context around it, counted on the token's shorter side.

    Windows begin `step` tokens apart and hold at most `room` tokens. Longer windows get a small bonus. In a tie the
    first window wins. All this is as in _check_is_max_context of run_squad.py.
    """
    at_T = np.arange(tokens)
    window_KT = at_T // step - np.arange(-(-room // step))[::-1, None]
    left_KT = at_T - window_KT * step
    length_KT = np.minimum(room, tokens - window_KT * step)
    right_KT = length_KT - 1 - left_KT
    score_KT = np.minimum(left_KT, right_KT) + 0.01 * length_KT
    score_KT[(window_KT < 0) | (window_KT >= count) | (right_KT < 0)] = -np.inf
    return np.take_along_axis(window_KT, score_KT.argmax(0)[None], 0)[0]


def answers(
    questions: Sequence[Question],
    windows: Windows,
    start_logits_NS: Sequence[np.ndarray],
    end_logits_NS: Sequence[np.ndarray],
    version: str,
    n_best: int = 20,
    max_answer_tokens: int = 30,
    null_threshold: float = 0.0,
) -> Answers:
    """The answers to the questions: the spans with the highest sum of start and end logit, as text.

    The arrays of logits may be longer than the windows. A span counts only in the window that has the most context
    around its first token. run_squad.py combines only a window's `n_best` starts and ends, and some of those may be
    outside the context. Here all spans of at most `max_answer_tokens` tokens of the context compete, so none is missed.

    In version 2.0, the span from [CLS] to [CLS] stands for "no answer". Its score is its lowest score in any window of
    the question. If that exceeds the best span's score by more than `null_threshold`, the answer is an empty text.
    """
    found = Answers({}, {}, {})
    for rows in np.split(np.arange(len(windows.ids)), np.flatnonzero(np.diff(windows.questions)) + 1):
        question = questions[int(windows.questions[rows[0]])]
        spans = _best_spans(question.context, windows, rows, start_logits_NS, end_logits_NS, n_best, max_answer_tokens)
        best = spans[0]["text"] if spans else ""
        if version == "2.0":
            nones = [_entry("", start_logits_NS[row][0], end_logits_NS[row][0]) for row in rows]
            none = min(nones, key=_score)
            difference = _score(none) - (_score(spans[0]) if spans else 0.0)
            found.null_score_difference[question.id] = difference
            best = "" if difference > null_threshold else best
            spans = sorted([*spans, none], key=_score, reverse=True)
            spans = spans[:n_best] if none in spans[:n_best] else [*spans[:n_best], none]
        found.best[question.id] = best
        found.n_best[question.id] = _with_probabilities(spans)
    return found


def _best_spans(context, windows, rows, start_logits_NS, end_logits_NS, n_best, max_tokens) -> list[dict]:
    """The `n_best` best spans of a question's windows, best first, each text once."""
    scores = []
    for row in rows:
        part = slice(windows.firsts[row], windows.firsts[row] + len(windows.characters[row]))
        start_T = np.where(windows.most_context[row], np.asarray(start_logits_NS[row][part], np.float64), -np.inf)
        behind = np.full(max_tokens, -np.inf)
        end_T = np.concatenate([np.asarray(end_logits_NS[row][part], np.float64), behind])
        end_TK = np.lib.stride_tricks.sliding_window_view(end_T, max_tokens)[: len(start_T)]
        scores.append((start_T[:, None] + end_TK).ravel())
    bounds = np.cumsum([0, *map(len, scores)])
    found: dict[str, dict] = {}
    for i in _best_first(np.concatenate(scores)):
        w = np.searchsorted(bounds, i, "right") - 1
        t, k = divmod(int(i - bounds[w]), max_tokens)
        row, characters_T2 = rows[w], windows.characters[rows[w]]
        text = context[characters_T2[t, 0] : characters_T2[t + k, 1]]
        if text not in found:
            at = windows.firsts[row] + t
            found[text] = _entry(text, start_logits_NS[row][at], end_logits_NS[row][at + k])
        if len(found) == n_best:
            break
    return list(found.values())


def _best_first(scores: np.ndarray) -> Iterator[np.intp]:
    """Indices of the finite scores, highest first; ties keep their order."""
    left = np.flatnonzero(np.isfinite(scores))
    while len(left):
        count = min(_PORTION, len(left))
        chosen = scores[left] >= np.partition(scores[left], -count)[-count]
        yield from left[chosen][np.argsort(-scores[left[chosen]], kind="stable")]
        left = left[~chosen]


def _entry(text: str, start_logit, end_logit) -> dict:
    return {"text": text, "start_logit": float(start_logit), "end_logit": float(end_logit)}


def _score(entry: dict) -> float:
    return entry["start_logit"] + entry["end_logit"]


def _with_probabilities(entries: list[dict]) -> list[dict]:
    odds = np.exp([_score(entry) - _score(entries[0]) for entry in entries])
    return [
        {"text": entry["text"], "probability": float(odd / odds.sum())} | entry
        for entry, odd in zip(entries, odds, strict=True)
    ]
