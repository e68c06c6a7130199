"""Windows over a context, compared with run_squad.py: characters, labels, and the best answers."""

import itertools
import json

import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.data import vocab as vocabularies
from bert_fast.tasks.model import Head, no_logits
from bert_fast.tasks.spans import Question, answers, windows

PIECES = (
    "[UNK] [PAD] [SEP] who ? play ##ing ##er ##s the cafe in zurich was built 18 ##95 ( ) . , a b c d e f g "
    "istanbul 東 京 naive ##ly 'k \u1112 ##\u1161 ##\u11ab ##\u1100 ##\u116e ##\u11a8 resume ##\u0301 [MASK] [CLS]"
).split()
LETTERS = "abcdefg"


def load(folder, **settings):
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return vocabularies.load(folder / "vocab.txt", **settings)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return load(tmp_path_factory.mktemp("vocab"))


def question(context, *texts, id="q", asked="who?", starts=None):
    starts = tuple(context.index(text) for text in texts) if starts is None else starts
    return Question(id, asked, context, texts, starts, not texts)


def letters(count):
    """A context of `count` letters, one token each; letter n is at character 2 n."""
    return " ".join(LETTERS[i % 7] for i in range(count))


def logits_of_labels(made):
    """Logits that are highest at the labels."""
    return [
        [np.where(np.arange(len(ids)) == place, 9.0, 0.0) for ids, place in zip(made.ids, places, strict=True)]
        for places in (made.starts, made.ends)
    ]


def random_logits(made, seed=0):
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=len(ids) + 3).astype(np.float32) for ids in made.ids] for _ in range(2)]


def test_a_window_is_the_question_and_a_part_of_the_context(words):
    made = windows([question("The players play.", "players")], words, 32, 8, 16)
    token = words.tokenizer.id_to_token
    assert [token(i) for i in made.ids[0]] == ("[CLS] who ? [SEP] the play ##er ##s play . [SEP]".split())
    assert made.types[0].tolist() == [0] * 4 + [1] * 7
    assert (made.firsts[0], made.starts[0], made.ends[0]) == (4, 5, 7)
    assert made.characters[0].tolist() == [[0, 3], [4, 8], [8, 10], [10, 11], [12, 16], [16, 17]]


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("Built in Zürich.", "Zürich"),
        ("The CAFÉ was", "CAFÉ"),
        ("The cafe\u0301 was", "cafe\u0301"),  # a combining mark at the end
        ("re\u0301sume\u0301, was", "re\u0301sume\u0301"),  # also a mark inside; the comma follows immediately
        ("naïvely built", "naïvely"),
        ("a cafe\u0301\u0301\u0301", "cafe\u0301\u0301\u0301"),  # several marks at the end of the text
        ("İstanbul was", "İstanbul"),  # the lower case of İ is two characters
        ("the 東京 cafe", "京"),
        ("the東京cafe", "東京"),
        ("built (1895).", "1895"),
        ("built (1895).", "95"),  # the second piece of a word
        ("players, playing", "playing"),
        ("in\u00a0Zürich  \n was", "Zürich  \n was"),  # white space is unchanged
        ("zz\u200bz the cafe", "cafe"),  # a character that the tokenizer drops, in an unknown word
        ("the [MASK] was", "[MASK]"),
        ("the [SEP] was built", "was"),
        ("한국 was", "한"),  # three pieces from one character
        ("한국 was", "국"),
    ],
)
def test_an_answer_is_returned_as_written_in_the_context(words, context, answer):
    asked = question(context, answer)
    made = windows([asked], words, 48, 8, 16)
    assert made.starts[0] >= made.firsts[0]
    found = answers([asked], made, *logits_of_labels(made), "1.1")
    assert found.best == {"q": answer}


def test_combining_marks_that_are_tokens_stay_separate(tmp_path):
    words = load(tmp_path, strip_accents=False)
    made = windows([question("cafe\u0301 was", "cafe\u0301")], words, 32, 8, 16)
    assert [words.tokenizer.id_to_token(i) for i in made.ids[0][4:-1]] == ["cafe", "##\u0301", "was"]
    assert made.characters[0].tolist() == [[0, 4], [4, 5], [6, 9]]


def test_a_special_token_written_in_a_text_is_ordinary_text(words):
    context = "the [SEP] [MASK]"
    made = windows([question(context, "[MASK]", asked="[CLS] ?")], words, 32, 8, 16)
    ids = made.ids[0].tolist()
    assert (ids.count(words.cls), ids.count(words.sep), ids.count(words.mask)) == (1, 2, 0)


def test_an_answer_inside_a_token_becomes_the_whole_token(words):
    asked = question("built in 1895", "8", starts=(10,))
    made = windows([asked], words, 32, 8, 16)
    assert answers([asked], made, *logits_of_labels(made), "1.1").best == {"q": "18"}


def test_a_long_question_is_cut(words):
    made = windows([question(letters(3), "b", asked=letters(9))], words, 32, 8, 4)
    assert made.ids[0].tolist() == [
        words.cls, *map(words.tokenizer.token_to_id, "abcd"), words.sep,
        *map(words.tokenizer.token_to_id, "abc"), words.sep,
    ]  # fmt: skip


def spans_of_run_squad(tokens, room, stride):
    """Start and length of each window, in order."""
    start, found = 0, []
    while not found or sum(found[-1]) < tokens:
        found.append((start, min(room, tokens - start)))
        start += min(found[-1][1], stride)
    return found


def most_context_of_run_squad(spans, t):
    scores = [
        min(t - start, start + length - 1 - t) + 0.01 * length if start <= t < start + length else -1
        for start, length in spans
    ]
    return scores.index(max(scores))


@pytest.mark.parametrize(
    ("tokens", "seq_len", "stride"), [*itertools.product((1, 9, 12, 13, 40), (17, 18), (1, 3, 7, 50)), (170, 155, 140)]
)
def test_windows_and_most_context_match_run_squad(words, tokens, seq_len, stride):
    context, room = letters(tokens), seq_len - 5
    made = windows([question(context, "a")], words, seq_len, stride, 16)
    spans = spans_of_run_squad(tokens, room, stride)
    assert [(c[0, 0] // 2, len(c)) for c in made.characters] == spans
    for n, (start, length) in enumerate(spans):
        best = [most_context_of_run_squad(spans, t) == n for t in range(start, start + length)]
        assert made.most_context[n].tolist() == best
        assert len(made.ids[n]) == len(made.types[n]) == length + 5


def test_the_label_of_a_window_is_the_first_answer_in_it_or_else_cls(words):
    asked = question(letters(20), "f g a", "b c", "g", starts=(10, 16, 26))
    made = windows([asked], words, 11, 4, 16)  # six context tokens at a time; the first window ends within "f g a"
    labels = [(int(s) - 4, int(e) - 4) for s, e in zip(made.starts, made.ends, strict=True)]
    first = {0: None, 4: (5, 7), 8: (8, 9), 12: (13, 13), 16: None}
    assert [c[0, 0] // 2 for c in made.characters] == list(first)
    assert labels == [(s[0] - start, s[1] - start) if s else (-4, -4) for start, s in first.items()]


def test_the_label_is_cls_if_there_is_no_answer_or_its_position_is_unknown(words):
    asked = [question("the cafe", "cafe", starts=(-1,)), question("the cafe", id="none")]
    made = windows(asked, words, 32, 8, 16)
    assert made.starts.tolist() == made.ends.tolist() == [0, 0]


def test_a_context_without_tokens_has_a_window_and_no_answer(words):
    asked = [question("\u200b", id="empty"), question("the cafe", "cafe", id="full")]
    made = windows(asked, words, 32, 8, 16)
    assert made.questions.tolist() == [0, 1]
    for version in ("1.1", "2.0"):
        assert answers(asked, made, *logits_of_labels(made), version, null_threshold=99).best == {
            "empty": "",
            "full": "cafe",
        }


def test_seq_len_that_leaves_no_room_is_refused(words):
    asked = [question("the cafe", "cafe", asked=letters(9))]
    assert len(windows(asked, words, 13, 1, 16).ids) == 2
    with pytest.raises(BadInput, match=r"seq_len=12 leaves no room.*9 tokens.*max_question=16"):
        windows(asked, words, 12, 1, 16)
    with pytest.raises(BadInput, match="stride=0"):
        windows(asked, words, 13, 0, 16)


def every_span(asked, made, start_logits, end_logits, longest):
    """(text, its highest score) for every text, best first, found by trying all spans."""
    best: dict[str, float] = {}
    for n, characters in enumerate(made.characters):
        first, tokens = made.firsts[n], len(characters)
        for a, b in itertools.combinations_with_replacement(range(tokens), 2):
            if b - a < longest and made.most_context[n][a]:
                text = asked.context[characters[a, 0] : characters[b, 1]]
                score = float(start_logits[n][first + a]) + float(end_logits[n][first + b])
                best[text] = max(best.get(text, -np.inf), score)
    return sorted(best.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("longest", [1, 3, 60])
def test_the_best_answers_are_the_best_of_all_spans(words, longest):
    asked = question(letters(33), "a")
    made = windows([asked], words, 17, 4, 16)
    logits = random_logits(made)
    expected = every_span(asked, made, *logits, longest)
    found = answers([asked], made, *logits, "1.1", n_best=12, max_answer_tokens=longest)
    entries = found.n_best["q"]
    assert [entry["text"] for entry in entries] == [text for text, _ in expected[:12]]
    np.testing.assert_allclose(
        [e["start_logit"] + e["end_logit"] for e in entries], [s for _, s in expected[: len(entries)]]
    )
    assert found.best["q"] == expected[0][0]
    odds = np.exp([score for _, score in expected[: len(entries)]])
    np.testing.assert_allclose([entry["probability"] for entry in entries], odds / odds.sum())
    assert found.null_score_difference == {}
    every = answers([asked], made, *logits, "1.1", n_best=10_000, max_answer_tokens=longest)
    assert [entry["text"] for entry in every.n_best["q"]] == [text for text, _ in expected]


def test_the_lowest_cls_score_and_the_best_span_decide_whether_the_answer_is_empty(words):
    asked = question(letters(33))
    made = windows([asked], words, 17, 4, 16)
    logits = random_logits(made)
    none = min(float(start[0]) + float(end[0]) for start, end in zip(*logits, strict=True))
    text, best = every_span(asked, made, *logits, 30)[0]
    for threshold, expected in ((none - best - 0.01, ""), (none - best + 0.01, text)):
        found = answers([asked], made, *logits, "2.0", null_threshold=threshold, n_best=5)
        assert found.best == {"q": expected}
        assert found.null_score_difference["q"] == pytest.approx(none - best)
    entries = found.n_best["q"]
    assert len(entries) == 6  # "no answer" is not among the best 5 here, but is always included
    assert entries[-1]["text"] == ""
    assert sum(entry["probability"] for entry in entries) == pytest.approx(1)
    for start in logits[0]:
        start[0] = 50
    found = answers([asked], made, *logits, "2.0", n_best=5)
    assert found.best == {"q": ""}
    assert [entry["text"] == "" for entry in found.n_best["q"]] == [True] + [False] * 4


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_answers_of_a_diverged_run_are_empty(words, version):
    asked = [question(letters(20), "a b"), question("the cafe", id="r")]
    made = windows(asked, words, 14, 4, 16)
    assert len(made.ids) > len(asked)
    logits_NS2 = no_logits(Head("span", 2), len(made.ids), 20)
    found = answers(asked, made, logits_NS2[..., 0], logits_NS2[..., 1], version)
    assert found.best == {"q": "", "r": ""}
    json.dumps(found._asdict(), allow_nan=False)


def test_the_first_of_equal_spans_wins(words):
    asked = question("b a c d", "a")
    made = windows([asked], words, 32, 8, 16)
    flat = np.zeros((1, 32))
    assert answers([asked], made, flat, flat, "1.1").best == {"q": "b"}


def test_questions_that_share_a_context_keep_their_own_windows(words):
    asked = [question(letters(30), id=str(n), asked=letters(n + 1)) for n in range(3)]
    together = windows(asked, words, 16, 3, 16)
    apart = [windows([one], words, 16, 3, 16) for one in asked]
    assert [row.tolist() for row in together.ids] == [row.tolist() for made in apart for row in made.ids]
    assert together.questions.tolist() == [n for n, made in enumerate(apart) for _ in made.ids]
    logits = random_logits(together)
    found = answers(asked, together, *logits, "1.1")
    at = np.cumsum([0] + [len(made.ids) for made in apart])
    for n, made in enumerate(apart):
        own = [column[at[n] : at[n + 1]] for column in logits]
        assert answers([asked[n]], made, *own, "1.1").n_best[str(n)] == found.n_best[str(n)]
