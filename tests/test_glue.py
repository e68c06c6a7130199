"""GLUE's files, metrics and submissions. Each of the nine tasks is read from its official layout."""

import os
import pathlib

import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.tasks import glue
from bert_fast.tasks.task import sample
from helpers.made_tasks import LAYOUTS, names, rows, write_glue, write_tsv


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.mark.parametrize("name", glue.TASKS)
def test_every_task_is_read_from_its_official_layout(folder, name):
    task, found = glue.TASKS[name], glue.read(name, str(folder))
    held_out = ["dev_matched", "dev_mismatched"] if name == "mnli" else ["dev"]
    tests = [split.replace("dev", "test") for split in held_out] + (["diagnostic"] if name == "mnli" else [])
    assert list(found) == ["train", *held_out, *tests]
    for split, examples in found.items():
        assert len(examples.texts) == (1 if name in ("cola", "sst2") else 2)
        assert len(examples.texts[0]) == {"train": 64, **dict.fromkeys(held_out, 32)}.get(split, 10)
        if split in tests:
            assert examples.labels is None
            continue
        labels = LAYOUTS[name][-1].split()
        for text, label in zip(examples.texts[0], examples.labels, strict=True):
            assert label == (labels.index(labels["good" in text]) if labels else (4.5 if "good" in text else 0.5))
    assert task.outputs == {"mnli": 3, "stsb": 1}.get(name, 2)


def test_case_and_hyphens_in_the_names_of_task_folders_do_not_matter(tmp_path):
    write_glue(tmp_path, ("stsb", "cola", "sst2"))
    (tmp_path / "STS-B").rename(tmp_path / "STSB")
    (tmp_path / "CoLA").rename(tmp_path / "cola")
    assert list(glue.found(str(tmp_path))) == ["cola", "sst2", "stsb"]
    assert list(glue.found(str(tmp_path / "STSB"))) == ["stsb"]
    with pytest.raises(BadInput, match=r"no MRPC/train\.tsv; it has CoLA, SST-2, STS-B"):
        glue.read("mrpc", str(tmp_path))


def test_quotes_and_unusual_line_separators_are_text_and_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "train.tsv"
    content = '\ufeffsentence\tlabel\r\n"open quote\t1\r\nline\u2028separator and\x0bfeed\t0\r\n'
    path.write_bytes(content.encode())
    found = glue.read_tsv(glue.TASKS["sst2"], path, True)
    assert found.texts == (['"open quote', "line\u2028separator and\x0bfeed"],)
    assert found.labels.tolist() == [1, 0]


def broken(tmp_path, name, change):
    """Path of a train.tsv with changed rows."""
    _, header, *_ = LAYOUTS[name]
    found = rows(name, header, 5, 0)
    path = tmp_path / "train.tsv"
    write_tsv(path, header, change(found) or found)
    return path


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rte", lambda rows: rows[2].pop(), r"train\.tsv, line 4: 3 fields, expected 4"),
        ("rte", lambda rows: rows[2].__setitem__(3, "maybe"), "line 4: label 'maybe' is not one of RTE's labels"),
        ("rte", lambda rows: rows[0].__setitem__(1, " "), "line 2: the text 'sentence1' is empty"),
        ("cola", lambda rows: rows[1].__setitem__(1, "2"), "line 2: label '2'"),
        ("stsb", lambda rows: rows[3].__setitem__(9, "5.1"), "line 5: score '5.1': expected a number from 0 to 5"),
        ("qqp", lambda rows: rows[3].pop(), "1 of 5 rows cannot be used"),
    ],
)
def test_errors_name_file_and_line(tmp_path, name, change, message):
    with pytest.raises(BadInput, match=message):
        glue.read_tsv(glue.TASKS[name], broken(tmp_path, name, lambda rows: change(rows) and None), True)


def test_missing_column_or_file_is_named(tmp_path):
    write_tsv(tmp_path / "train.tsv", "index sentence1 label", [["0", "a", "0"]])
    with pytest.raises(BadInput, match=r"line 1: no column 'sentence2'; found 'index', 'sentence1', 'label'"):
        glue.read_tsv(glue.TASKS["wnli"], tmp_path / "train.tsv", True)
    write_glue(tmp_path / "all", ("rte",))
    (tmp_path / "all/RTE/dev.tsv").unlink()
    with pytest.raises(BadInput, match=r"dev\.tsv is missing"):
        glue.read("rte", str(tmp_path / "all"))


def test_a_truncated_row_of_qqp_is_left_out(tmp_path):
    _, header, *_ = LAYOUTS["qqp"]
    found = rows("qqp", header, 1500, 0)
    del found[700][4:]
    write_tsv(tmp_path / "train.tsv", header, found)
    assert len(glue.read_tsv(glue.TASKS["qqp"], tmp_path / "train.tsv", True).labels) == 1499


def test_metrics_equal_the_official_definitions():
    # Worked out by hand: 3 true positives, 1 false positive, 2 false negatives, 2 true negatives.
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0])
    values = np.array([1, 1, 1, 0, 0, 1, 0, 0])
    assert glue.METRICS["accuracy"](labels, values) == 5 / 8
    assert glue.METRICS["f1"](labels, values) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    matthews = (3 * 2 - 1 * 2) / np.sqrt((3 + 1) * (3 + 2) * (2 + 1) * (2 + 2))
    assert glue.METRICS["matthews"](labels, values) == pytest.approx(matthews)
    x, y = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.1, 0.9, 0.5, 3.0])
    assert glue.METRICS["pearson"](x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert glue.METRICS["spearman"](x, y) == pytest.approx(0.8)  # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * 2 / 60
    assert glue.METRICS["pearson"](x, np.ones(4)) == glue.METRICS["spearman"](x, np.ones(4)) == 0


def one_hot(labels, outputs):
    return np.eye(outputs, dtype=np.float32)[labels]


def test_score_is_the_mean_of_a_tasks_metrics(folder):
    task, found = glue.TASKS["mnli"], glue.read("mnli", str(folder))
    right = {split.file: one_hot(found[split.file].labels, 3) for split in task.held_out}
    assert glue.score(task, found, right) == {"accuracy_matched": 100, "accuracy_mismatched": 100, "score": 100}
    wrong = right | {"dev_mismatched": np.roll(right["dev_mismatched"], 1, axis=1)}
    assert glue.score(task, found, wrong)["score"] == 50
    task, found = glue.TASKS["stsb"], glue.read("stsb", str(folder))
    metrics = glue.score(task, found, {"dev": -found["dev"].labels[:, None]})
    assert metrics == pytest.approx({"pearson": -100, "spearman": -100, "score": -100})


def test_submissions_have_the_names_and_labels_that_the_server_expects(folder, tmp_path):
    task, found = glue.TASKS["mnli"], glue.read("mnli", str(folder))
    path = glue.write(task, tmp_path, task.test[1], found["test_mismatched"], one_hot(np.arange(10) % 3, 3))
    assert path.name == "MNLI-mm.tsv"
    assert path.read_text().splitlines()[:4] == ["index\tprediction", "0\tentailment", "1\tneutral", "2\tcontradiction"]
    task, found = glue.TASKS["stsb"], glue.read("stsb", str(folder))
    path = glue.write(task, tmp_path, task.test[0], found["test"], np.linspace(-1, 6, 10)[:, None])
    assert [line.split("\t")[1] for line in path.read_text().splitlines()[1:]][::9] == ["0.000", "5.000"]
    files = {split.submission for task in glue.TASKS.values() for split in task.test}
    assert files == {"CoLA", "SST-2", "MRPC", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "RTE", "WNLI", "AX"}


def test_tensorflow_datasets_gives_the_same_examples(monkeypatch):
    """Columns and class labels are as listed on the TFDS pages. In a test split the label is -1."""
    asked = []

    def rows_of(spec):
        asked.append(spec)
        name = spec.split("/")[1].split(":")[0]
        entails = ("premise", "hypothesis")
        columns = {"mnli": entails, "ax": entails, "qnli": ("question", "sentence"), "cola": ("sentence",)}
        columns = columns.get(name, ("sentence1", "sentence2"))
        label = -1 if ":test" in spec else 2.5 if name == "stsb" else 1
        return [{**{column: f"{column} text".encode() for column in columns}, "label": label, "idx": np.int32(7)}]

    monkeypatch.setattr(glue.tfds, "examples", rows_of)
    found = glue.read("mnli", "tfds:glue")
    splits = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
    assert asked == [*(f"glue/mnli:{split}" for split in splits), "glue/ax:test"]
    assert found["train"].texts == (["premise text"], ["hypothesis text"])
    assert (found["train"].labels.tolist(), found["test_matched"].labels) == ([1], None)
    assert found["test_matched"].indices == ["7"]
    assert glue.read("stsb", "tfds:glue/stsb")["dev"].labels.tolist() == [2.5]
    assert glue.read("qnli", "tfds:glue")["train"].texts == (["question text"], ["sentence text"])
    assert len(glue.read("mrpc", "tfds:glue")["train"].texts) == 2
    assert len(glue.read("cola", "tfds:glue")["train"].texts) == 1


def test_sample_is_fixed_and_in_order():
    assert sample(5, 0).tolist() == sample(5, 9).tolist() == [0, 1, 2, 3, 4]
    chosen = sample(1000, 100)
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() == sample(1000, 100).tolist()
    assert len(chosen) == 100


@pytest.mark.skipif("BERT_FAST_DATA" not in os.environ, reason="needs BERT_FAST_DATA: a folder with glue/MRPC, ...")
def test_official_files_have_their_official_counts():
    root = pathlib.Path(os.environ["BERT_FAST_DATA"], "glue")
    counts = {"cola": (8_551, 1_043), "mrpc": (3_668, 408), "sst2": (67_349, 872), "stsb": (5_749, 1_500)}
    for name, (train, dev) in counts.items():
        found = glue.read(name, str(root))
        assert (len(found["train"].indices), len(found["dev"].indices)) == (train, dev)
    assert names(LAYOUTS["mrpc"][1]) == (root / "MRPC/train.tsv").read_text("utf-8-sig").split("\n")[0].split("\t")
