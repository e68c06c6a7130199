"""Predictions of fine-tuned models: they equal the ones scored in fine-tuning, and errors name what is unusable."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from bert_fast import BadInput, encoder
from bert_fast.data import files
from bert_fast.tasks import inputs, predict
from bert_fast.train.description import TaskHead
from helpers.command_line import bert_fast
from helpers.made_tasks import write_checkpoint, write_glue, write_squad

transformers = pytest.importorskip("transformers")

SMALL = {
    "data.seq_len": 48, "batch_size": 8, "epochs": 2.0, "widths": 2, "dropout": 0.0, "eval.batch_size": 16,
    "learning_rates": "3e-3", "seeds": "0",
}  # fmt: skip
RUN = "lr=0.003,seed=0"
PAIR = TaskHead("mrpc", "classes", 2, ("0", "1"), ("#1 String", "#2 String"), 48)
ONE = TaskHead("cola", "classes", 2, ("0", "1"), ("sentence",), 48)
SPAN = TaskHead("squad1.1", "span", 2, (), ("question", "context"), 48)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A pre-trained checkpoint, task files, and a fine-tuned run of each kind in folders `out-*`."""
    root = tmp_path_factory.mktemp("root")
    (root / "start").mkdir()
    write_checkpoint(root / "start", pooler=True)
    write_glue(root / "glue", ("mrpc", "stsb"), train=150, dev=21)
    write_squad(root, "1.1")
    write_squad(root, "2.0")
    finetune(root, "configs/glue.py:task=mrpc", root / "glue", epochs=4.0, seeds="0,1")
    finetune(root, "configs/glue.py:task=stsb", root / "glue")
    for version in ("1.1", "2.0"):
        more = {"data.seq_len": 20, "data.stride": 8}
        finetune(root, f"configs/squad.py:version={version}", root, **more)
    return root


def finetune(root, config, data, **more):
    name = config.split("=")[-1]
    values = [f"--config.{key}={value}" for key, value in {**SMALL, **more}.items()]
    done = bert_fast(
        "finetune", f"--config={config}", f"--checkpoint={root}/start", f"--workdir={root}/out-{name}",
        f"--config.data.dir={data}", *values,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def run_of(root, task):
    return root / f"out-{task.removeprefix('squad')}" / task / RUN


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_labels_equal_the_ones_written_in_fine_tuning(root):
    done = bert_fast("predict", f"--checkpoint={run_of(root, 'mrpc')}", f"--data={root}/glue/MRPC/dev.tsv")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    written = (run_of(root, "mrpc") / "dev/MRPC.tsv").read_text().splitlines()[1:]
    assert [row["label"] for row in rows] == [line.split("\t")[1] for line in written]
    assert [row["index"] for row in rows] == list(range(21))
    assert len({row["label"] for row in rows}) == 2
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["probabilities"].keys() == {"0", "1"}
        assert max(row["probabilities"], key=row["probabilities"].get) == row["label"]


def test_scores_equal_the_ones_written_in_fine_tuning(root, tmp_path):
    out = tmp_path / "scores.tsv"
    step = next((run_of(root, "stsb") / "checkpoints").iterdir())
    done = bert_fast("predict", f"--checkpoint={step}", f"--data={root}/glue/STS-B/dev.tsv", f"--out={out}")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "wrote 21 predictions of stsb to" in done.stderr
    head, *lines = (line.split("\t") for line in out.read_text().splitlines())
    assert head == ["index", "score"]
    written = (run_of(root, "stsb") / "dev/STS-B.tsv").read_text().splitlines()[1:]
    wanted = [float(line.split("\t")[1]) for line in written]
    np.testing.assert_allclose(np.clip([float(score) for _, score in lines], 0, 5), wanted, atol=6e-4)


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_answers_equal_the_ones_written_in_fine_tuning(root, version, tmp_path):
    run, data = run_of(root, f"squad{version}"), root / f"dev-v{version}.json"
    done = bert_fast("predict", f"--checkpoint={run}", f"--data={data}", "--batch_size=3")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    read = lambda name: json.loads((run / "dev" / name).read_text())  # noqa: E731
    assert {row["id"]: row["answer"] for row in rows} == read("predictions.json")
    best = {key: entries[0]["probability"] for key, entries in read("nbest_predictions.json").items()}
    assert {row["id"]: row["probability"] for row in rows if row["answer"]} == pytest.approx(
        {row["id"]: best[row["id"]] for row in rows if row["answer"]}, rel=1e-4
    )
    assert all(("none" in row) == (version == "2.0") for row in rows)
    if version == "2.0":
        differences = {row["id"]: row["none_minus_best"] for row in rows}
        assert differences == pytest.approx(read("null_odds.json"), rel=1e-4, abs=1e-5)
        assert all(row["none"] == (row["answer"] == "") == (row["none_minus_best"] > 0) for row in rows)
    # The same questions, one object per line, all with the same id.
    content = json.loads(data.read_text())
    asked = [(p["context"], q["question"]) for d in content["data"] for p in d["paragraphs"] for q in p["qas"]]
    lines = [json.dumps({"id": "same", "question": q, "context": c}) for c, q in asked]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    again = rows_of(predict.predict_file(str(run), str(tmp_path / "asked.jsonl")))
    assert [row["answer"] for row in again] == [row["answer"] for row in rows]
    assert {row["id"] for row in again} == {"same"}


def test_questions_are_answered_even_if_the_file_holds_no_answers(root, tmp_path):
    content = json.loads((root / "dev-v1.1.json").read_text())
    for paragraph in content["data"][0]["paragraphs"]:
        del paragraph["qas"][0]["answers"]
    (tmp_path / "dev.json").write_text(json.dumps(content))
    assert predict.predict_file(str(run_of(root, "squad1.1")), str(tmp_path / "dev.json")) == predict.predict_file(
        str(run_of(root, "squad1.1")), str(root / "dev-v1.1.json")
    )


def test_predict_takes_texts_from_python(root):
    found = encoder.load(run_of(root, "mrpc"))
    rows = predict.predict(found, [("good w1 w2", "w3"), ["bad w1", "w4 " * 60]])
    assert [row["index"] for row in rows] == [0, 1]
    assert {row["label"] for row in rows} <= {"0", "1"}
    assert predict.predict(found, []) == []
    with pytest.raises(BadInput, match=r"row 1 is .*mrpc takes 2 texts per row.*#1 String, #2 String"):
        predict.predict(found, [("a", "b"), "good"])
    (row,) = predict.predict(encoder.load(run_of(root, "squad1.1")), [("w3 w4", "\u0000\u200b")])
    assert (row["answer"], row["probability"], row["score"]) == ("", 0.0, None)


def test_a_prediction_does_not_depend_on_the_other_rows(root):
    found = encoder.load(run_of(root, "mrpc"))
    rows = [("w1 " * n, "w2 good") for n in range(1, 30)]
    together = predict.predict(found, rows, batch_size=4)
    for n in (0, 13, 28):
        (alone,) = predict.predict(found, [rows[n]])
        assert alone["probabilities"] == pytest.approx(together[n]["probabilities"], rel=1e-4)


def test_tsv_has_a_column_for_each_label(root, tmp_path):
    out = tmp_path / "out.tsv"
    args = (str(run_of(root, "mrpc")), str(root / "glue/MRPC/test.tsv"))
    assert predict.predict_file(*args, str(out)) == ""
    head, *lines = (line.split("\t") for line in out.read_text().splitlines())
    assert head == ["index", "label", "probability_0", "probability_1"]
    rows = rows_of(predict.predict_file(*args))
    assert [line[1] for line in lines] == [row["label"] for row in rows]
    assert [float(line[3]) for line in lines] == [row["probabilities"]["1"] for row in rows]
    assert (
        predict.as_tsv([{"answer": "a\tb\n c", "score": None, "none": True}]) == "answer\tscore\tnone\na b c\t\ttrue\n"
    )


@pytest.mark.parametrize(
    ("task", "columns", "given", "expected"),
    [
        (PAIR, ("#1 String", "#2 String", "sentence1", "sentence2"), (), ("#1 String", "#2 String")),
        (PAIR, ("#1 String", "#2 String", "a", "b"), ("b", "a"), ("b", "a")),
        (PAIR, ("sentence2", "x", "sentence1"), (), ("sentence1", "sentence2")),
        (PAIR, ("hypothesis", "premise"), (), ("premise", "hypothesis")),
        (ONE, ("id", "text"), (), ("text",)),
        (ONE, ("text", "sentence"), (), ("sentence",)),  # the task's own column comes first
        (SPAN, ("id", "context", "question"), (), ("question", "context")),
    ],
)
def test_given_columns_come_first_then_those_of_the_task_then_generic_ones(task, columns, given, expected):
    assert inputs.choose(task, columns, given, "file") == expected


@pytest.mark.parametrize(
    ("task", "columns", "given", "message"),
    [
        (
            PAIR,
            ("sentence1", "sentence2", "text_a", "text_b"),
            (),
            r"sentence1,sentence2 or in text_a,text_b.*columns=A,B",
        ),
        (PAIR, ("premise", "x"), (), r"no columns #1 String,#2 String.*it has 'premise', 'x': name.*--columns=A,B"),
        (ONE, ("sentence1", "sentence2"), (), r"no columns sentence, .*--columns=A"),
        (PAIR, ("a", "b"), ("a",), "mrpc takes 2 .*name exactly 2"),
        (PAIR, ("a", "b"), ("a", "a"), "each once"),
        (PAIR, ("a", "b"), ("a", "c"), "has no column 'c'; it has 'a', 'b'"),
        (SPAN, ("sentence1", "sentence2"), (), "no columns question,context"),
    ],
)
def test_missing_and_ambiguous_columns_are_named(task, columns, given, message):
    with pytest.raises(BadInput, match=message):
        inputs.choose(task, columns, given, "file")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "text\tx\nw1\ty\nw1\n", r"a\.tsv, line 3: 1 field, but the header has 2 columns: correct"),
        ("a.tsv", "text\tx\nw1\ty\n \ty\n", r"a\.tsv, line 3: the text 'text' is empty: fill it in"),
        ("a.tsv", "text\ttext\n", "line 1: the column 'text' occurs twice"),
        ("a.tsv", "text\n", "holds no rows"),
        ("a.tsv", "", "holds no rows"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", '{"text": "w1"}\n{"text": \n', r"a\.jsonl, line 2: not JSON .*expected one object per line"),
        ("a.jsonl", '{"text": "w1"}\n\n{"text": "w1"}\n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": "w1"}\n["w1"]\n', "line 2: a list, expected one object"),
        ("a.jsonl", '{"text": "w1"}\n{"other": "w1"}\n', "line 2: no 'text', found 'other': add it"),
        ("a.jsonl", '{"text": 5}\n', "line 1: 'text' is 5, expected a text"),
        ("a.tsv", b"text\n\xff\n", "not UTF-8 at byte 5: convert it"),
        ("a.txt", "text\nw1\n", r"unknown suffix '\.txt': expected \.csv or \.tsv or \.jsonl"),
        ("a.json", "{}", "SQuAD's JSON holds questions, which cola does not answer"),
    ],
)  # fmt: skip
def test_unusable_files_and_lines_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=message):
        inputs.read(str(tmp_path / name), ONE)


def test_supported_files_are_read(tmp_path):
    (tmp_path / "a.tsv").write_bytes('\ufeffx\ttext\r\n1\t"w1\u2028 w2\r\n2\tw3\r\n'.encode())
    assert inputs.read(str(tmp_path / "a.tsv"), ONE) == ([('"w1\u2028 w2',), ("w3",)], None)
    (tmp_path / "a.csv").write_bytes('\ufeffx,text\r\n1,"a ""b"", c"\r\n'.encode())
    assert inputs.read(str(tmp_path / "a.csv"), ONE).texts_N == [('a "b", c',)]
    (tmp_path / "a.jsonl").write_text('{"b": "w2", "a": "w1", "n": 1}\n{"a": "w3", "b": "w4"}')
    assert inputs.read(str(tmp_path / "a.jsonl"), PAIR, ("a", "b")).texts_N == [("w1", "w2"), ("w3", "w4")]
    (tmp_path / "a.jsonl").write_text('{"id": 7, "question": "w1?", "context": "w2"}\n')
    assert inputs.read(str(tmp_path / "a.jsonl"), SPAN) == ([("w1?", "w2")], ["7"])
    with pytest.raises(BadInput, match="SQuAD's JSON has no columns"):
        inputs.read("a.json", SPAN, ("a", "b"))
    with pytest.raises(BadInput, match=r"data=.*b\.tsv cannot be read \(No such file"):
        inputs.read(str(tmp_path / "b.tsv"), ONE)


def test_mistakes_are_reported_before_the_weights_are_loaded(root, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(predict, "load", never)
    monkeypatch.setattr(jax, "device_put", never)
    dev = root / "glue/MRPC/dev.tsv"
    (tmp_path / "bad.jsonl").write_text('{"sentence1": "w1", "sentence2": "w2"}\n{"sentence1": "w1"}\n')
    run = run_of(root, "mrpc")
    for mistake, message in (
        ([f"--data={dev}"], "--checkpoint is missing"),
        ([f"--checkpoint={run}"], "--data is missing"),
        ([f"--checkpoint={root}/start", f"--data={dev}"], "was not fine-tuned, so it has no head for predictions: run"),
        ([f"--checkpoint={root}/out-mrpc", f"--data={dev}"], f"is a folder of finetune runs: give one of {run}"),
        ([f"--checkpoint={root}/out-mrpc/mrpc", f"--data={dev}"], f"is a folder of finetune runs: give one of {run}"),
        ([f"--checkpoint={tmp_path}", f"--data={dev}"], "no checkpoint in"),
        ([f"--checkpoint={run}", f"--data={tmp_path}/bad.jsonl"], "bad.jsonl, line 2: no 'sentence2'"),
        ([f"--checkpoint={run}", f"--data={dev}", "--columns=a,b"], "has no column 'a'"),
        (
            [f"--checkpoint={run}", f"--data={dev}", "--out=x.csv"],
            "unknown suffix '.csv': expected .jsonl or .tsv",
        ),
        ([f"--checkpoint={run}", f"--data={dev}", f"--out={tmp_path}/no/x.tsv"], "a file in an existing folder"),
        ([f"--checkpoint={run}", f"--data={dev}", f"--out={dev}"], "is the same file as --data"),
        ([f"--checkpoint={run}", f"--data={dev}", "--batch_size=0"], "batch_size"),
        ([f"--checkpoint={run}", f"--data={dev}", "text"], "unexpected argument 'text'"),
    ):
        done = bert_fast("predict", *mistake)
        assert (done.returncode, message in done.stderr) == (2, True), (message, done.stderr)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/result.json").write_text("{}")
    with pytest.raises(BadInput, match=r"has no weights .*--config\.keep=last"):
        predict.find(str(tmp_path / "none"))


def test_predictions_are_written_atomically(root, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(BadInput, match=r"out\.tsv cannot be written \(No space left on device\): no partial file"):
        predict.predict_file(str(run_of(root, "mrpc")), str(root / "glue/MRPC/dev.tsv"), str(tmp_path / "out.tsv"))
    assert list(tmp_path.iterdir()) == []


def test_a_fine_tuned_run_is_exported_with_the_scores_of_its_seeds(root, tmp_path):
    done = bert_fast("export", f"--checkpoint={run_of(root, 'mrpc')}", f"--out={tmp_path}/out", "--verify")
    assert done.returncode == 0, done.stderr
    assert "BertForSequenceClassification" in done.stdout
    results = json.loads((root / "out-mrpc/results.json").read_text())["tasks"]["mrpc"]
    own, mean = results["runs"][0]["last"]["accuracy"], results["last"]["accuracy"]["mean"]
    card = (tmp_path / "out/README.md").read_text()
    baseline = results["baseline"]
    assert f"|  | this model | {baseline['prediction']} | mean |" in card
    assert f"| accuracy | {own:.2f} | {baseline['accuracy']:.2f} | {mean:.2f} | " in card
    assert "from the weights of `start/checkpoints/0`" in card
    data = root / "glue/MRPC/test.tsv"
    pairs = [line.split("\t")[3:5] for line in data.read_text().splitlines()[1:]]
    pipeline: Any = transformers.pipeline("text-classification", str(tmp_path / "out"))
    theirs = [pipeline({"text": first, "text_pair": second}, truncation=True)["label"] for first, second in pairs]
    ours = rows_of(predict.predict_file(str(run_of(root, "mrpc")), str(data)))
    assert theirs == [row["label"] for row in ours]
