"""The user's own labelled files: which texts and classes are read, and the errors about unusable files."""

import json

import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.configs import own as own_config
from bert_fast.tasks import own, own_task, tables
from bert_fast.tasks.settings import OwnFiles, make
from bert_fast.tasks.task import held_out
from helpers.made_tasks import make_vocab, own_settings

FILES = OwnFiles("classes", "train.csv", "", "", "text", "", "label", 0.1)
PLAIN = "text,label\na,x\nb,y\nc,x\nd,y\n"


def write(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def files(**changes):
    return OwnFiles(**{**FILES.__dict__, **changes})


def test_quoted_cells_keep_commas_quotes_and_line_ends(tmp_path):
    write(
        tmp_path, train_csv='\ufefftext,label\r\n"a, b",x\r\n"he said ""no""\nand left\u2028",y\r\nc,x\r\nd, y\r\n\r\n'
    )
    found = own.read(FILES, str(tmp_path))
    assert found.splits["train"].texts == (["a, b", 'he said "no"\nand left\u2028', "c", "d"],)
    assert found.names == ("x", "y")
    np.testing.assert_array_equal(found.splits["train"].labels, [0, 1, 0, 1])


def test_tsv_and_json_lines_give_the_same_as_csv(tmp_path):
    lines = [{"text": text, "label": label} for text, label in zip("abcd", "xyxy", strict=True)]
    write(tmp_path, train_csv=PLAIN, train_tsv=PLAIN.replace(",", "\t"), train_jsonl="\n".join(map(json.dumps, lines)))
    found = [own.read(files(train=f"train.{suffix}"), str(tmp_path)) for suffix in ("csv", "tsv", "jsonl")]
    assert [one.splits["train"].texts for one in found] == [(["a", "b", "c", "d"],)] * 3
    assert {one.names for one in found} == {("x", "y")}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "2", "10", "9", "2"], ("2", "9", "10")),  # numeric order
        (["10", "9", "b", "10", "9", "b"], ("10", "9", "b")),
        ([True, False, True, False], ("false", "true")),
        ([1, 0, 1, 0], ("0", "1")),
        (["B", "a", "B", "a"], ("B", "a")),
    ],
)
def test_order_of_classes_does_not_depend_on_the_order_of_rows(labels, names, tmp_path):
    for order in (labels, labels[::-1]):
        lines = [json.dumps({"text": f"t{n}", "label": label}) for n, label in enumerate(order)]
        write(tmp_path, train_jsonl="\n".join(lines))
        assert own.read(files(train="train.jsonl"), str(tmp_path)).names == names


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (
            "text,stars\na,1\n",
            {},
            r"train\.csv has no column 'label'; it has 'text', 'stars': name the columns.*label=",
        ),
        ("text;label\na;1\n", {}, "separated by semicolons: save it with commas"),
        ("text,label\na,x\nb,\n", {}, r"train\.csv, line 3: the label 'label' is empty"),
        ("text,label\na,x\n ,y\n", {}, "line 3: the text 'text' is empty"),
        ('text,label\n"a\nb",x\nc\n', {}, "line 4: 1 field, but the header has 2 columns: .*a comma needs quotes"),
        ('text,label\na,x\n"b,y\nc,x\n', {}, "line 3: .*a cell that begins with a quote must end with one"),
        ('text,label\na,x\n"b" c,y\n', {}, "line 3: .*quote"),
        ("text,label\na,x\n\nb,y\n", {}, "line 3: the line is blank"),
        ("text,text,label\n", {}, "line 1: the column 'text' occurs twice"),
        ("text,label\n", {}, "holds no rows"),
        ("", {}, "holds no rows"),
        (b"text,label\na,x\n\xfc,y\n", {}, "line 3: not UTF-8 at byte 15: convert it"),
        ("text,label\na,1\nb,2.5\nc,1\nd,3\n", {}, "line 3: the label '2.5' is a fraction.*kind=score"),
        ("text,label\na,1\nb,2\nc,3\nd,4\n", {}, "4 different labels in 4 examples: .*label=, or give kind=score"),
        ("text,label\na,x\nb,x\n", {}, "every label is 'x': expected at least two classes"),
        ("text,label\na,1\nb,x\n", {"kind": "score"}, "line 3: the label 'x' is not a number: give kind=classes"),
        ("text,label\na,1\nb,nan\n", {"kind": "score"}, "line 3: the label 'nan' is not a number"),
        ("text,label\na,1\nb,1.0\n", {"kind": "score"}, "every label is 1: expected different numbers"),
    ],
)
def test_error_about_an_unusable_file_says_what_is_wrong_and_where(content, changes, message, tmp_path):
    write(tmp_path, train_csv=content)
    with pytest.raises(BadInput, match=message):
        own.read(files(**changes), str(tmp_path))


def test_unusable_files_and_labels_that_do_not_occur_in_training_are_refused(tmp_path):
    write(tmp_path, train_csv=PLAIN, valid_csv="text,label\na,x\nb,z\n", test_csv="text\na\n", train_txt=PLAIN)
    with pytest.raises(
        BadInput, match=r"valid\.csv, line 3: the label 'z' does not occur in the training file, .* x, y"
    ):
        own.read(files(valid="valid.csv"), str(tmp_path))
    assert own.read(files(test="test.csv"), str(tmp_path)).splits["test"].labels is None
    with pytest.raises(BadInput, match=r"own\.train=.*train\.txt: unknown suffix '\.txt': expected \.csv or \.tsv or"):
        own.read(files(train="train.txt"), str(tmp_path))
    with pytest.raises(BadInput, match=r"own\.train=.*none\.csv cannot be read \(No such file"):
        own.read(files(train="none.csv"), str(tmp_path))
    write(tmp_path, train_jsonl='{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n')
    with pytest.raises(BadInput, match="line 2: the label 'label' is empty"):
        own.read(files(train="train.jsonl"), str(tmp_path))
    write(tmp_path, train_jsonl='{"text": "a", "label": ["x"]}\n')
    with pytest.raises(BadInput, match=r"line 1: the label 'label' is .*expected text or a number"):
        own.read(files(train="train.jsonl"), str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "own.train is missing: give the training file"),
        ("train=a.csv,text=label", "names of different columns"),
        ("train=a.csv,kind=tags,pair=b", "leave pair out"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        make(own_config.get_config(arguments).to_dict())
    for text, expected in (("kind=class", "expected kind=classes"), ("recipe=layer_drop", "expected recipe=bert")):
        with pytest.raises(BadInput, match=expected):
            own_config.get_config(text)
    with pytest.raises(BadInput, match=r"valid_share=0\.6: expected a share"):
        make({**(found := own_config.get_config("train=a.csv").to_dict()), "own": {**found["own"], "valid_share": 0.6}})


def test_held_out_examples_are_spread_over_the_labels_and_never_take_all_of_one_label():
    labels = np.repeat(np.arange(5, dtype=np.int32), [50, 30, 20, 2, 1])
    rows = held_out(labels, 0.1)
    np.testing.assert_array_equal(rows, held_out(labels, 0.1))
    assert len(set(rows)) == len(rows) == 10
    assert np.bincount(labels[rows], minlength=5).tolist()[:3] == [5, 3, 2]
    rest = np.setdiff1d(np.arange(len(labels)), held_out(labels, 0.5))
    assert set(labels[rest]) == {0, 1, 2, 3, 4}
    scores = np.linspace(0, 1, 100, dtype=np.float32)
    assert np.ptp(scores[held_out(scores, 0.1)]) > 0.8


def test_without_a_valid_file_a_share_of_the_training_file_is_held_out(tmp_path, capsys):
    rows = "".join(f"t{n},{'xy'[n % 2]}\n" for n in range(40))
    write(tmp_path, train_csv=f"text,label\n{rows}")
    made, _ = own_settings(tmp_path, "train=train.csv")
    splits = own_task.read(made).splits
    assert (len(splits["train"].indices), len(splits["valid"].indices)) == (36, 4)
    assert {*splits["train"].indices, *splits["valid"].indices} == {str(n) for n in range(40)}
    assert "train.csv: 4 of 40 examples are held out" in capsys.readouterr().err
    made, _ = own_settings(tmp_path, "train=train.csv", data__train_examples=10, own__valid_share=0.5)
    assert len(own_task.read(made).splits["train"].indices) == 10
    write(tmp_path, train_csv=PLAIN)
    made, _ = own_settings(tmp_path, "train=train.csv")
    with pytest.raises(BadInput, match=r"4 examples are too few to hold out a share of 0\.1: give .* valid=FILE"):
        own_task.read(made)


def test_baseline_is_the_score_of_the_most_frequent_training_label(tmp_path):
    write(tmp_path, train_csv="text,label\na,x\nb,y\nc,y\nd,x\ne,y\n", valid_csv="text,label\na,x\nb,y\nc,x\nd,x\n")
    made, _ = own_settings(tmp_path, "train=train.csv,valid=valid.csv")
    task = own_task.make(own_task.read(made), make_vocab(tmp_path), made)
    assert task.baseline.prediction == "always y"
    assert task.baseline.metrics == {"accuracy": 25, "macro_f1": 20, "matthews": 0, "score": 25}


def test_scores_are_standardised_for_training_and_reported_in_the_unit_of_the_labels(tmp_path):
    write(tmp_path, train_csv="text,label\na,100\nb,300\n", valid_csv="text,label\na,150\nb,250\n")
    made, _ = own_settings(tmp_path, "kind=score,train=train.csv,valid=valid.csv,test=valid.csv")
    task = own_task.make(own_task.read(made), make_vocab(tmp_path), made)
    np.testing.assert_allclose(task.train.labels, [-1, 1])
    assert task.about.options == {"train": "train.csv", "mean": 200, "deviation": 100}
    assert task.baseline.prediction == "always the mean"
    assert task.baseline.metrics["rmse"] == 50
    logits = np.array([[-0.5], [1.0]])
    assert task.score({"valid": logits}) == pytest.approx(
        {"pearson": 100, "spearman": 100, "rmse": np.sqrt(50**2 / 2), "score": 100}
    )
    (path,) = task.write(tmp_path, "valid", logits)
    assert path.read_text() == "index\tlabel\tprediction\n0\t150\t150\n1\t250\t300\n"
    (path,) = task.write(tmp_path, "test", logits)
    assert path.read_text() == "index\tprediction\n0\t150\n1\t300\n"


def test_quotes_are_text_in_a_tsv_file_of_glue_but_not_in_the_users_own(tmp_path):
    write(tmp_path, a_tsv='text\tlabel\n"a"\tx\n')
    assert [tables.read(tmp_path / "a.tsv", "--data", quoted)[0].cells["text"] for quoted in (False, True)] == [
        '"a"', "a",
    ]  # fmt: skip


def test_text_longer_than_a_field_of_pythons_csv_is_read():
    long = "word " * 40_000
    (row,) = tables.from_csv(f"text,label\n{long},x\n", "long.csv", ",")
    assert row.cells["text"] == long
