"""SQuAD's files, scores and submissions: official layouts, and the same scores as the official scripts."""

import functools
import gzip
import json
import os
import pathlib

import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.data import vocab
from bert_fast.tasks import squad

CONTEXT = "Łódź was a village; the first mill was built there in 1825. The mill burnt in 1831."
DATA = pathlib.Path(os.environ.get("BERT_FAST_DATA", "/nonexistent"))
real = pytest.mark.skipif(not (DATA / "squad").is_dir(), reason="BERT_FAST_DATA names no folder with squad/")


def answer(text, start=None):
    return {"text": text, "answer_start": CONTEXT.index(text) if start is None else start}


def asked(id="1", question="When?", answers=(answer("1825"),), **more):
    return {"id": id, "question": question, "answers": list(answers), **more}


def none(id="3", **more):
    return asked(id, "Who?", (), is_impossible=True, plausible_answers=[answer("Łódź")], **more)


def save(folder, *questions, context=CONTEXT, name="train.json"):
    content = {
        "version": "x",
        "data": [{"title": "Mills", "paragraphs": [{"context": context, "qas": list(questions)}]}],
    }
    raw = json.dumps(content, ensure_ascii=False).encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return str(folder / name)


def test_version_1_1_is_read_in_its_official_layout(tmp_path):
    path = save(tmp_path, asked(answers=(answer("1825"), answer("in 1825"))), asked("2", "What?", (answer("Łódź"),)))
    questions = squad.read(path, "1.1", train=True)
    assert questions == [
        squad.Question("1", "When?", CONTEXT, ("1825", "in 1825"), (54, 51), False),
        squad.Question("2", "What?", CONTEXT, ("Łódź",), (0,), False),
    ]


def test_version_2_0_is_read_in_its_official_layout(tmp_path):
    path = save(tmp_path, asked(is_impossible=False), none())
    first, second = squad.read(path, "2.0", train=True)
    assert (first.answers, first.impossible) == (("1825",), False)
    assert (second.answers, second.starts, second.impossible) == ((), (), True)


def test_gzip_and_a_byte_order_mark_are_read(tmp_path):
    plain = squad.read(save(tmp_path, asked()), "1.1", train=True)
    assert squad.read(save(tmp_path, asked(), name="train.json.gz"), "1.1", train=True) == plain
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "train.json").read_bytes())
    assert squad.read(str(marked), "1.1", train=True) == plain


@pytest.mark.parametrize(
    ("version", "questions", "complaint"),
    [
        ("1.1", (asked(question="  "),), "question '1': the question is empty"),
        ("1.1", (asked(), asked()), "question '1': this id occurs twice"),
        ("1.1", (asked(answers=()),), r"question '1': no answer.*version=2\.0"),
        ("2.0", (asked(),), r"question '1': no 'is_impossible'.*version=1\.1"),
        ("2.0", (asked(is_impossible=True),), "is_impossible is true, with 1 answer:"),
        ("2.0", (asked(is_impossible=False, answers=()),), "is_impossible is false, with 0 answers:"),
        ("2.0", (asked(is_impossible="no"),), "'is_impossible' is 'no', expected bool"),
        ("1.1", ({"id": "1", "question": "When?"},), r"paragraphs\[0\].qas\[0\]: no 'answers', found 'id'"),
        ("1.1", (asked(answers=({"text": "1825"},)),), "no 'answer_start', found 'text'"),
        ("1.1", (asked(answers=(answer("1825", "54"),)),), "'answer_start' is '54', expected int"),
        ("1.1", (asked(answers=("1825",)),), "no 'text', found a str"),
        ("1.1", (), "holds no questions"),
        ("3.0", (asked(),), r"version '3\.0': expected one of 1\.1, 2\.0"),
    ],
)  # fmt: skip
def test_unusable_questions_are_named(tmp_path, version, questions, complaint):
    with pytest.raises(BadInput, match=complaint):
        squad.read(save(tmp_path, *questions), version, train=True)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"the context is empty"):
        squad.read(save(tmp_path, asked(answers=(answer("", 0),)), context=" \n"), "1.1", train=True)
    with pytest.raises(BadInput, match=r"no file at .*absent\.json"):
        squad.read(str(tmp_path / "absent.json"), "1.1", train=True)
    path = tmp_path / "broken.json"
    for content, complaint in (
        (b'{"data":\n [}', r"broken\.json, line 2: not JSON"),
        (b'{"data": "\xff"}', "not UTF-8 at byte 10"),
        (b"[]", "no 'data', found a list"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=complaint):
            squad.read(str(path), "1.1", train=True)
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(pathlib.Path(save(tmp_path, asked(), name="a.json.gz")).read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"cut\.json\.gz: the gzip file is truncated"):
        squad.read(str(cut), "1.1", train=True)


@pytest.mark.parametrize(("text", "start"), [("1825", 55), ("831.", -4), ("1825", 4_000)])
def test_misplaced_answers_are_counted_and_the_first_is_named(tmp_path, capsys, text, start):
    path = save(tmp_path, asked(), asked("2", answers=(answer(text, start), answer("1825"), answer(" ", 4))))
    with pytest.raises(BadInput, match=rf"2 of 4 answers: .*The first: .*question '2': '{text}' at character {start}"):
        squad.read(path, "1.1", train=True)
    questions = squad.read(path, "1.1", train=False)
    assert "2 of 4 answers" in capsys.readouterr().err
    assert questions[1].answers == (text, "1825", " ")
    assert questions[1].starts == (-1, 54, -1)


@pytest.mark.parametrize("version", squad.VERSIONS)
def test_data_set_of_tensorflow_datasets_gives_the_same_questions(tmp_path, monkeypatch, version):
    """Uses a small data set with the features of `squad/v1.1` or `squad/v2.0`, because those need a download."""
    import tensorflow_datasets as tfds

    questions = [asked("1", is_impossible=False, answers=(answer("1825"), answer("in 1825")))]
    questions += [none()] if version == "2.0" else []
    texts = tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32})
    features = {name: tfds.features.Text() for name in ("id", "title", "context", "question")} | {"answers": texts}
    features |= {"plausible_answers": texts, "is_impossible": np.bool_} if version == "2.0" else {}

    class SmallSquad(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for one in questions:
                row = {"title": "Mills", "context": CONTEXT, "plausible_answers": [], **one}
                yield one["id"], {name: row[name] for name in features}

    SmallSquad(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    monkeypatch.setattr(squad.tfds, "examples", functools.partial(squad.tfds.examples, data_dir=str(tmp_path)))
    found = squad.read("tfds:small_squad:train", version, train=True)
    assert sorted(found) == squad.read(save(tmp_path, *questions), version, train=True)
    with pytest.raises(BadInput, match=r"tfds:small_squad:train, question '1': no 'is_impossible'|no answer"):
        squad.read("tfds:small_squad:train", {"1.1": "2.0", "2.0": "1.1"}[version], train=True)


def question(*answers, id="q"):
    return squad.Question(id, "?", "the context", answers, (-1,) * len(answers), not answers)


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("The  Denver, Broncos!", ("Denver Broncos",), 1, 1),
        ("denver", ("Denver Broncos",), 0, 2 / 3),
        ("broncos denver", ("Denver Broncos",), 0, 1),
        ("Carolina", ("Denver Broncos",), 0, 0),
        ("b b", ("b b c",), 0, 4 / 5),  # a word counts as often as it occurs in both
        ("b", ("x y", "b c", "b d e"), 0, 2 / 3),  # the best-fitting answer counts
        ("b.c", ("bc",), 1, 1),  # punctuation is removed, and leaves no space
        ("an anthem", ("anthem",), 1, 1),
        ("anthem", ("them",), 0, 0),  # only a whole word is an article
        ("$5-million", ("5million",), 1, 1),
        ("5\u2013million", ("5million",), 0, 0),  # a non-ASCII dash is not punctuation
        ("Zürich", ("Zurich",), 0, 0),  # accents count
        ("ZÜRICH", ("zürich",), 1, 1),
        ("b\u00a0c", ("b c",), 1, 1),
        ("", ("b",), 0, 0),
        ("the", ("a",), 1, 0),  # both normalise to nothing: they are equal, but have no word in common
    ],
)
def test_scores_follow_the_rules_of_version_1_1(prediction, golds, exact, f1):
    result = squad.score([question(*golds)], {"q": prediction})
    assert result == {"exact_match": 100 * exact, "f1": pytest.approx(100 * f1), "total": 1}


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("denver", ("Denver Broncos",), 0, 2 / 3),
        ("", (), 1, 1),
        ("the", (), 1, 1),  # empty once normalised
        ("Denver", (), 0, 0),
        ("", ("Denver",), 0, 0),
        ("", ("the",), 1, 1),  # a gold answer that normalises to nothing means no answer
        ("Denver", ("the", "Denver Broncos"), 0, 2 / 3),  # such a gold answer is ignored if there is another one
        ("", ("the", "Denver"), 0, 0),
    ],
)
def test_scores_follow_the_rules_of_version_2_0(prediction, golds, exact, f1):
    result = squad.score([question(*golds)], {"q": prediction}, {"q": 0.0})
    name = "HasAns" if golds else "NoAns"
    for prefix in ("", f"{name}_"):
        assert result[f"{prefix}exact_match"] == 100 * exact
        assert result[f"{prefix}f1"] == pytest.approx(100 * f1)
    assert result["total"] == result[f"{name}_total"] == 1
    assert not any(key.startswith("NoAns" if golds else "HasAns") for key in result)


def test_scores_of_version_2_0_include_parts_and_best_thresholds():
    """Five questions, worked out by hand.

    At the lowest threshold, "no answer" is predicted for every question. Then `n` and `m` are right: 2 of 5. As the
    threshold rises, the questions are answered in order of their difference:

    `a` is right. Exact match and F1 are 3.
    `n` has no answer. Both fall to 2.
    `b` is half right. Exact match stays 2, and F1 is 2.5.
    `c` is right. Exact match is 3, and F1 is 3.5.
    `m` stays without an answer.

    The best exact match is 3, first reached at `a`. The best F1 is 3.5, reached at `c`.
    """
    questions = [
        question(id="n"),
        question("x", id="a"),
        question("x y z", id="b"),
        question("x", id="c"),
        question(id="m"),
    ]
    said = {"n": "x", "a": "x", "b": "x", "c": "x", "m": ""}
    difference = {"a": -4.0, "n": -3.0, "b": -2.0, "c": -1.0, "m": 5.0, "another": -9.0}
    assert squad.score(questions, said, difference) == {
        "exact_match": 60.0,
        "f1": pytest.approx(70.0),
        "total": 5,
        "HasAns_exact_match": pytest.approx(200 / 3),
        "HasAns_f1": pytest.approx(250 / 3),
        "HasAns_total": 3,
        "NoAns_exact_match": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
        "best_exact_match": 60.0,
        "best_exact_match_thresh": -4.0,
        "best_f1": pytest.approx(70.0),
        "best_f1_thresh": -1.0,
    }


def test_a_missing_prediction_counts_as_zero():
    result = squad.score([question("x"), question("x", id="r")], {"r": "x", "another": "x"})
    assert result == {"exact_match": 50.0, "f1": 50.0, "total": 2}


def test_questions_without_answers_need_the_rules_of_version_2_0():
    with pytest.raises(BadInput, match=r"question 'q' has no answer.*version 2\.0"):
        squad.score([question()], {"q": ""})


def test_submissions_have_the_layout_that_the_official_scripts_read(tmp_path):
    entries = [{"text": "Łódź", "probability": 1.0, "start_logit": 2.0, "end_logit": 3.0}]
    found = squad.Answers({"q": "Łódź"}, {"q": entries}, {"q": -5.0})
    paths = squad.write(tmp_path / "new", found)
    contents = {path.name: json.loads(path.read_text("utf-8")) for path in paths}
    assert contents == {
        "predictions.json": {"q": "Łódź"},
        "nbest_predictions.json": {"q": entries},
        "null_odds.json": {"q": -5.0},
    }
    paths = squad.write(tmp_path / "old", found._replace(null_score_difference={}))
    assert [path.name for path in paths] == ["predictions.json", "nbest_predictions.json"]


@real
def test_gold_answers_of_the_official_dev_set_score_100():
    questions = squad.read(str(DATA / "squad/dev-v1.1.json.gz"), "1.1", train=False)
    assert len(questions) == 10_570
    first = {question.id: question.answers[0] for question in questions}
    assert squad.score(questions, first) == {"exact_match": 100.0, "f1": 100.0, "total": 10_570}


@real
def test_answers_of_real_data_are_recovered_unless_they_start_or_end_inside_a_token():
    questions = squad.read(str(DATA / "squad/train-v1.1-subset.json.gz"), "1.1", train=True)[::40]
    made = squad.windows(questions, vocab.load(DATA / "vocab/bert-base-uncased.txt"), 256, 128, 64)
    at = [[np.eye(256, dtype=np.float32)[place] for place in places] for places in (made.starts, made.ends)]
    rows = {int(n): row for row, n in enumerate(made.questions) if made.starts[row]}
    assert sorted(rows) == list(range(len(questions)))
    found = squad.answers(questions, made, *at, "1.1", n_best=1, max_answer_tokens=256).best
    for n, question in enumerate(questions):
        (text,), (start,), row = question.answers, question.starts, rows[n]
        first, last = (place[row] - made.firsts[row] for place in (made.starts, made.ends))
        characters = made.characters[row]
        covered = question.context[characters[first, 0] : characters[last, 1]]
        assert text in covered
        if characters[first, 0] == start and characters[last, 1] == start + len(text):
            assert covered == text
        else:  # a span one token shorter would not cover the answer
            assert characters[first, 1] > start
            assert characters[last, 0] < start + len(text)
    exact = sum(found[question.id] == question.answers[0] for question in questions)
    assert exact >= 0.99 * len(questions)
