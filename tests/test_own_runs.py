"""Fine-tuning on the user's own files, up to predictions and the export to transformers."""

import csv
import json
import shutil
from typing import Any

import numpy as np
import pytest

from bert_fast import BadInput, encoder
from bert_fast.hf import write
from bert_fast.tasks import sweep
from bert_fast.tasks.conll import is_iob, to_iob2
from bert_fast.tasks.predict import predict, predict_file
from helpers.command_line import bert_fast
from helpers.made_tasks import own_settings, text, write_checkpoint, write_sentences

RUN = "own/lr=0.003,seed=0"
ARGUMENTS = {
    "classes": "train=train.csv,text=review,label=stars,test=test.csv",
    "score": "kind=score,train=pairs.jsonl,valid=pairs.jsonl,text=first,pair=second,label=likeness",
    "tags": "kind=tags,train=train.conll,valid=valid.conll,test=valid.conll",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The user's own files, and for each kind of task a finished call of `finetune` in out-KIND."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    (root / "start").mkdir()
    start = write_checkpoint(root / "start", pooler=True)
    rows = [(text(rng, good), ("bad, really", "good")[good]) for good in rng.integers(0, 2, 150).tolist()]
    for name, columns in (("train", 2), ("test", 1)):
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("review", "stars")[:columns], *(row[:columns] for row in rows)])
    pairs = [
        (text(rng, good), text(rng, good), float(100 + 50 * good + rng.normal())) for good in rng.integers(0, 2, 60)
    ]
    lines = [json.dumps(dict(zip(("first", "second", "likeness"), pair, strict=True))) for pair in pairs]
    (root / "pairs.jsonl").write_text("\n".join(lines))
    write_sentences(root / "train.conll", 80)
    write_sentences(root / "valid.conll", 20, seed=1, longest=30)
    for kind, arguments in ARGUMENTS.items():
        seq_len = 16 if kind == "tags" else 48  # some sentences are split
        made, config = own_settings(root, arguments, data__seq_len=seq_len, epochs=5.0, widths=2, keep="last")
        sweep.finetune(made, config, root / f"out-{kind}", str(start))
    return root


def table(path, dialect="excel-tab") -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, dialect=dialect))


def result_of(root, kind) -> dict:
    return json.loads((root / f"out-{kind}" / RUN / "result.json").read_text())


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_run_scores_better_than_the_same_prediction_for_every_example(root, kind):
    result = result_of(root, kind)
    assert result["last"]["score"] > result["baseline"]["score"] + 10
    expected = {"classes": "always ", "score": "always the mean", "tags": "always O"}[kind]
    assert result["baseline"]["prediction"].startswith(expected)
    results = json.loads((root / f"out-{kind}/results.json").read_text())
    assert results["tasks"]["own"]["baseline"] == result["baseline"]
    table = sweep.table(results)
    main = {"classes": "accuracy", "score": "rmse", "tags": "f1"}[kind]
    assert f"{main} {result['last'][main]:.2f} ({result['baseline'][main]:.2f})" in table
    assert f"in brackets: the same prediction for every example (own: {result['baseline']['prediction']})" in table


def test_predict_gives_the_classes_that_finetune_wrote(root, tmp_path):
    done = bert_fast(
        "predict", f"--checkpoint={root}/out-classes/{RUN}", f"--data={root}/test.csv", f"--out={tmp_path}/out.tsv"
    )
    assert done.returncode == 0, done.stderr
    said = table(tmp_path / "out.tsv")
    assert {"index", "label", "probability_bad, really", "probability_good"} == said[0].keys()
    written = table(root / "out-classes/submission/test.tsv")
    assert [row["label"] for row in said] == [row["prediction"] for row in written]
    assert len(said) == 150
    # The held-out rows are rows of the training file. They keep the indices of that file.
    held_out = table(root / "out-classes" / RUN / "dev/valid.tsv")
    rows = table(root / "train.csv", "excel")
    assert len(held_out) == 15
    assert [rows[int(row["index"])]["stars"] for row in held_out] == [row["label"] for row in held_out]
    assert [said[int(row["index"])]["label"] for row in held_out] == [row["prediction"] for row in held_out]


def test_every_token_gets_one_tag_even_in_long_sentences(root, tmp_path):
    run, data, out = f"{root}/out-tags/{RUN}", f"{root}/valid.conll", tmp_path / "out.conll"
    assert predict_file(run, data, str(out)) == ""
    said = [line.split("\t") for line in out.read_text().splitlines()]
    given = [line.split(" ") for line in (root / "valid.conll").read_text().splitlines()[2:]]
    assert [row[0] for row in said] == [row[0] for row in given]
    assert max(map(len, (root / "valid.conll").read_text().split("\n\n"))) > 16 * 6
    written = (root / "out-tags/submission/test.conll").read_text()
    assert written == out.read_text()
    with_gold = [line.split("\t") for line in (root / "out-tags" / RUN / "dev/valid.conll").read_text().splitlines()]
    assert [row[1:2] for row in with_gold] == [row[2:] for row in given]
    sentences = [json.loads(line) for line in predict_file(run, data).splitlines()]
    assert [tag for row in sentences for tag in row["tags"]] == [row[1] for row in said if len(row) > 1]
    assert all(row["tags"] == to_iob2(row["tags"]) and is_iob(row["tags"]) for row in sentences)
    assert {key: len(row["tags"]) for key, row in enumerate(sentences)} == {
        key: len(row["tokens"]) for key, row in enumerate(sentences)
    }


def test_scores_are_predicted_in_the_unit_of_the_labels(root):
    run = encoder.load(f"{root}/out-score/{RUN}")
    said = [json.loads(line)["score"] for line in predict_file(str(run.folder), f"{root}/pairs.jsonl").splitlines()]
    written = table(root / "out-score" / RUN / "dev/valid.tsv")
    np.testing.assert_allclose(said, [float(row["prediction"]) for row in written], rtol=1e-4)
    assert 90 < min(said) < 110 < 140 < max(said)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_pipeline_of_transformers_gives_the_same_labels(root, kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    run = f"{root}/out-{kind}/{RUN}"
    done = write.export(run, tmp_path / "out", compare=True)
    assert max((done.differences or {}).values()) < 1e-4
    found, card = encoder.load(run), (tmp_path / "out/README.md").read_text()
    name = {"classes": "train.csv", "score": "pairs.jsonl", "tags": "train.conll"}[kind]
    assert f"fine-tuned on `{name}`" in card
    assert f"|  | this model | {result_of(root, kind)['baseline']['prediction']} |" in card
    if kind == "tags":
        pipeline: Any = transformers.pipeline(
            "token-classification", str(tmp_path / "out"), aggregation_strategy="none"
        )
        tokens = "good w1ly w2 bad w3".split()
        theirs = [row["entity"] for row in pipeline(" ".join(tokens), ignore_labels=[]) if row["word"][:2] != "##"]
        (ours,) = predict(found, [tokens])
        assert to_iob2(theirs) == ours["tags"]
        return
    pipeline = transformers.pipeline("text-classification", str(tmp_path / "out"))
    pairs = [("good w1", "good w2"), ("w1 bad", "w3 w4 bad"), ("w1", "w2")]
    given = [{"text": a, "text_pair": b} if kind == "score" else {"text": a} for a, b in pairs]
    theirs = [pipeline(one, truncation=True, function_to_apply=None) for one in given]
    ours = predict(found, [tuple(one.values()) for one in given])
    if kind == "score":
        np.testing.assert_allclose([row["score"] for row in theirs], [row["score"] for row in ours], rtol=1e-5)
    else:
        assert [row["label"] for row in theirs] == [row["label"] for row in ours]
        assert set(pipeline.model.config.id2label.values()) == {"bad, really", "good"}


def test_mistakes_in_a_call_leave_no_folder(root, tmp_path):
    def said(command, *flags):
        done = bert_fast(command, *flags)
        assert done.returncode == 2, done.stderr
        return done.stderr

    common = (f"--checkpoint={root}/start", f"--workdir={tmp_path}/out", f"--config.data.dir={root}")
    assert "has no column 'text'; it has 'review', 'stars'" in said("finetune", "--config=own:train=train.csv", *common)
    assert "did you mean train" in said("finetune", "--config=own:trian=train.csv", *common)
    assert not (tmp_path / "out").exists()
    run = f"--checkpoint={root}/out-tags/{RUN}"
    data = f"--data={root}/valid.conll"
    assert "unknown suffix '.tsv': expected .jsonl or .conll" in said("predict", run, data, f"--out={tmp_path}/x.tsv")
    assert "takes one column of tokens" in said("predict", run, data, "--columns=1,2")


def test_a_call_is_not_continued_after_its_training_file_was_edited(root, tmp_path):
    shutil.copytree(root / "out-classes", tmp_path / "out")
    for name in ("train.csv", "test.csv"):
        shutil.copy(root / name, tmp_path)
    made, config = own_settings(tmp_path, ARGUMENTS["classes"], data__seq_len=48, epochs=5.0, widths=2, keep="last")
    config["data"]["dir"] = json.loads((tmp_path / "out/config.json").read_text())["data"]["dir"]
    with (tmp_path / "train.csv").open("a") as file:
        file.write("one more,good\n")
    with pytest.raises(BadInput, match=r"own_sha256\.train"):
        sweep.finetune(made, config, tmp_path / "out", str(root / "start"))
