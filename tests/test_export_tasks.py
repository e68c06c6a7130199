"""Export of fine-tuned checkpoints to transformers: logits for every layout and head, pipelines, and model card."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from bert_fast import BadInput, bert, encoder
from bert_fast.data import vocab
from bert_fast.hf import read, tensors, weights, write
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.schedule import Schedule
from bert_fast.tasks import model as task_model
from bert_fast.tasks.conll import to_iob2
from bert_fast.tasks.predict import predict
from bert_fast.train.description import TaskHead
from helpers.command_line import bert_fast
from helpers.made_folders import save_checkpoint
from helpers.made_shards import WORDS
from helpers.reference import random_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = bert.Config(
    len(WORDS), depth=2, width=24, heads=3, head_size=8, mlp_dim=40, max_len=20, type_count=2,
    special_ids=tuple(WORDS.index(piece) for piece in vocab.SPECIAL), norm_eps=1e-6,
)  # fmt: skip
LAYOUTS = {
    "bert": {},
    "megatron-bert": {"norm": "pre", "embed_norm": False, "activation": "gelu_tanh"},
    "roberta-prelayernorm": {"norm": "pre", "heads": (1, 2), "mlp_dim": (33, 5)},
}
SQUAD = {"version": "2.0", "stride": 4, "max_question": 6, "n_best": 20, "max_tokens": 30, "null_threshold": 0.0}
TASKS = {
    "classes": TaskHead("mnli", "classes", 3, ("yes", "maybe", "no"), ("sentence1", "sentence2"), 16),
    "one class text": TaskHead("cola", "classes", 2, ("0", "1"), ("sentence",), 16),
    "score": TaskHead("stsb", "score", 1, (), ("sentence1", "sentence2"), 16),
    "own score": TaskHead("own", "score", 1, (), ("text",), 16, {"train": "a.csv", "mean": 9e4, "deviation": 2e4}),
    "tags": TaskHead("own", "tags", 3, ("O", "B-X", "I-X"), ("tokens",), 16, {"train": "a.conll"}),
    "span": TaskHead("squad2.0", "span", 2, (), ("question", "context"), 16, SQUAD),
}
SUFFIXES = {"tags": "ForTokenClassification", "span": "ForQuestionAnswering"}
LOGITS = {"tags": "tag_logits", "span": "span_logits"}
ROW = {"step": 7, "epoch": 2.5, "train_loss": 0.5, "accuracy": 81.25, "score": 81.25}
PAIRS = [("word1 word3", "word2"), ("word5", "word7 word8 word9"), ("word200 word11", "word12 ##piece3 word4")]


def made(folder, config, task, **about):
    """Saves a fine-tuned run with random weights, also for the heads and neurons that a narrow layer does not use."""
    head = task_model.Head(task.kind, task.outputs)
    params = task_model.init(config, head, random_params(config), jax.random.key(0))
    rng = np.random.default_rng(1)
    params["task"] = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), params["task"])
    stage = Stage(task.name, Program(config, whole(config.depth), 8, 1, 16, 0, "x"), 7, Schedule(3e-5, 7))
    about = {"stage": stage, "data": None, "eval": None, "task": task, "scored": ({**ROW, "step": 3}, ROW), **about}
    return save_checkpoint(folder, config, params, WORDS, **about)


def config_of(layout):
    return dataclasses.replace(BASE, **LAYOUTS[layout])


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exported_model_gives_the_logits_of_the_checkpoint(layout, kind, tmp_path):
    task = TASKS[kind]
    done = write.export(made(tmp_path / "run", config_of(layout), task), tmp_path / "out", compare=True)
    suffix = SUFFIXES.get(kind, "ForSequenceClassification")
    classes = {"bert": "Bert", "megatron-bert": "MegatronBert", "roberta-prelayernorm": "RobertaPreLayerNorm"}
    assert done.class_name == classes[layout] + suffix
    assert done.differences.keys() == {"hidden", LOGITS.get(kind, "class_logits")}
    assert max(done.differences.values()) < 1e-5
    auto = getattr(transformers, f"AutoModel{suffix}")
    theirs, found = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(theirs).__name__ == done.class_name
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (theirs.config.model_type, theirs.config.num_labels) == (layout, task.outputs)
    assert any("slim" in note for note in done.notes) == (layout == "roberta-prelayernorm")
    # Now compare the predictions for texts, so that the tokenizers are compared too.
    trained = encoder.load(tmp_path / "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == task.seq_len
    if kind == "span":
        return
    if kind == "tags":
        tokens = PAIRS[2][1].split()
        given = tokenizer(tokens, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            chosen_S = theirs.eval()(**given).logits[0].argmax(1).tolist()
        words = given.word_ids(0)
        names = [theirs.config.id2label[chosen_S[words.index(word)]] for word in range(len(tokens))]
        (row,) = predict(trained, [tokens])
        assert row["tags"] == to_iob2(names)
        return
    pairs = [pair[: len(task.columns)] for pair in PAIRS]
    with torch.no_grad():
        given = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
        logits_NC = theirs.eval()(**given).logits
    ours = predict(trained, pairs)
    if task.kind == "score":
        np.testing.assert_allclose([row["score"] for row in ours], logits_NC[:, 0], rtol=1e-5, atol=1e-5)
    else:
        shares = [list(row["probabilities"].values()) for row in ours]
        np.testing.assert_allclose(shares, logits_NC.softmax(1), atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pipeline_gives_the_same_labels_as_predict(layout, tmp_path):
    for kind in ("classes", "one class text", "score"):
        task, run = TASKS[kind], tmp_path / kind / "run"
        write.export(made(run, config_of(layout), task), tmp_path / kind / "out")
        pipeline: Any = transformers.pipeline("text-classification", str(tmp_path / kind / "out"))
        pairs = [pair[: len(task.columns)] for pair in PAIRS]
        names = ("text", "text_pair")
        theirs = [pipeline(dict(zip(names, pair, strict=False)), truncation=True) for pair in pairs]
        ours = predict(encoder.load(run), pairs)
        if kind == "score":
            assert [row["label"] for row in theirs] == ["score"] * 3
            np.testing.assert_allclose([row["score"] for row in theirs], [row["score"] for row in ours], atol=1e-5)
        else:
            assert [row["label"] for row in theirs] == [row["label"] for row in ours]
            best = [max(row["probabilities"].values()) for row in ours]
            np.testing.assert_allclose([row["score"] for row in theirs], best, atol=1e-5)
        if kind == "classes":
            assert [pipeline.model.config.id2label[number] for number in range(3)] == ["yes", "maybe", "no"]
            assert pipeline.model.config.label2id == {"yes": 0, "maybe": 1, "no": 2}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_best_span_of_transformers_is_the_answer_of_predict(layout, tmp_path):
    options = {**SQUAD, "version": "1.1"}
    task = dataclasses.replace(TASKS["span"], name="squad1.1", options=options)
    write.export(made(tmp_path / "run", config_of(layout), task), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    asked, context = "word1 word3", "word5 word7, word9 word11 word2 word4"
    given = tokenizer(asked, context, return_tensors="pt", return_offsets_mapping=True)
    offsets_S2 = given.pop("offset_mapping")[0].numpy()
    with torch.no_grad():
        output = theirs(**given)
    starts_S, ends_S = output.start_logits[0].numpy(), output.end_logits[0].numpy()
    places = [s for s, number in enumerate(given.sequence_ids(0)) if number == 1]
    first, last = max(
        ((a, b) for a in places for b in places if a <= b), key=lambda span: starts_S[span[0]] + ends_S[span[1]]
    )
    (row,) = predict(encoder.load(tmp_path / "run"), [(asked, context)])
    assert row["answer"] == context[offsets_S2[first, 0] : offsets_S2[last, 1]]
    assert row["score"] == pytest.approx(starts_S[first] + ends_S[last], abs=1e-4)


def test_fine_tuned_model_with_an_untied_output_table_can_be_exported(tmp_path):
    run = made(tmp_path / "run", dataclasses.replace(BASE, tied=False), TASKS["classes"])
    assert write.export(run, tmp_path / "out").class_name == "BertForSequenceClassification"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_task_heads_are_not_imported(layout, tmp_path):
    write.export(made(tmp_path / "run", config_of(layout), TASKS["classes"]), tmp_path / "out")
    with pytest.raises(BadInput, match=r"unknown classifier\..*Task heads are not read"):
        read.read(tmp_path / "out")


@pytest.mark.parametrize("kind", ["classes", "tags", "span"])
def test_export_that_differs_from_the_checkpoint_is_not_kept(kind, tmp_path, monkeypatch):
    made(tmp_path / "run", BASE, TASKS[kind])
    true, name = weights.write, "qa_outputs.bias" if kind == "span" else "classifier.bias"

    def wrong(path, arrays):
        true(path, {**arrays, name: arrays[name] + np.float32(1e-2) * (np.arange(len(arrays[name])) == 1)})

    monkeypatch.setattr(weights, "write", wrong)
    logits = LOGITS.get(kind, "class_logits")
    with pytest.raises(
        BadInput, match=rf"differs from the checkpoint by more than 0\.0001 \(hidden.*{logits} 1\.0e-02"
    ):
        write.export(tmp_path / "run", tmp_path / "out", compare=True)

    def without_pooler(path, arrays):
        true(path, {key: array for key, array in arrays.items() if "pooler" not in key})

    if kind == "classes":
        monkeypatch.setattr(weights, "write", without_pooler)
        with pytest.raises(BadInput, match=r"does not load all.*missing_keys.*pooler"):
            write.export(tmp_path / "run", tmp_path / "out", compare=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_task_heads_replace_the_mlm_head():
    for layout in LAYOUTS:
        config = config_of(layout)
        assert not any(path.startswith("mlm/") for _, path, _ in tensors.rows_of(config, "score"))
        assert len(tensors.rows_of(config, "score")) == len(tensors.rows_of(config, "span")) + 2


def test_card_shows_the_task_and_the_scores(tmp_path):
    call = tmp_path / "call"
    run = call / "mnli/lr=3e-05,seed=1"
    made(run, BASE, TASKS["classes"], init="runs/base/checkpoints/9", methods=(("early_bert", {"search": 0.1}),))
    (run / "result.json").write_text(json.dumps({"seed": 1}))
    words = encoder.load(run).vocab
    summed = {name: {"mean": 80.5, "deviation": 0.75, "median": 80.25} for name in ("accuracy", "score")}
    result = {
        "encoder": {"checkpoint": "runs/base/checkpoints/9", "random_weights": False, "vocab": words.fingerprint},
        "tasks": {"mnli": {"learning_rates": {"3e-05": {"seeds": [0, 1, 2], "last": summed}}}},
    }
    (call / "results.json").write_text(json.dumps(result))
    (call / "config.json").write_text(json.dumps({"keep": "best"}))
    write.export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\ndatasets:\n- nyu-mll/glue\nlibrary_name: transformers\nmetrics:\n- accuracy\n")
    for fact in (
        "A BERT model fine-tuned on `mnli`", "the weights of `runs/base/checkpoints/9`",
        'pipeline("text-classification"', '"text_pair"',
        "AutoModelForSequenceClassification.from_pretrained", "examples of at most 16 tokens",
        "labels are `yes`, `maybe`, `no`", "| task | mnli: sentence1, sentence2 |", "| steps | 7, 2.5 epochs |",
        "| peak learning rate | 3e-05 |", "| seed | 1 |", "early_bert (search=0.1)",
        "|  | this model | mean | deviation | median |", "| accuracy | 81.25 | 80.50 | 0.75 | 80.25 |", "3 seeds",
        "scores are optimistic",
    ):  # fmt: skip
        assert fact in card, fact
    assert "train_loss" not in card
    # Results of another encoder or vocabulary are ignored: the card shows only the model's own scores.
    (tmp_path / "others").mkdir()
    for changes in ({"checkpoint": "runs/other/checkpoints/9"}, {"vocab": "0"}, {"random_weights": True}):
        other = {**result, "encoder": {**result["encoder"], **changes}}
        (tmp_path / "others/results.json").write_text(json.dumps(other))
        write.export(run, out := tmp_path / f"out-{next(iter(changes))}", results=tmp_path / "others")
        assert "| accuracy | 81.25 |\n" in (out / "README.md").read_text()
    (tmp_path / "others/results.json").write_text('{"tasks": 1}')
    with pytest.raises(BadInput, match="was not written by finetune"):
        write.export(run, tmp_path / "no", results=tmp_path / "others")


def test_card_describes_span_and_score_tasks(tmp_path):
    row = {**ROW, "f1": 81.25, "best_f1_thresh": -3.5}
    write.export(made(tmp_path / "a", BASE, TASKS["span"], scored=(row,)), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for fact in (
        "pipeline_tag: question-answering", "AutoModelForQuestionAnswering", "windows that start 4 tokens apart",
        "has no answer", "from random weights", "| seed | unknown |", "| score | 81.25 |",
    ):  # fmt: skip
        assert fact in card, fact
    assert "_thresh" not in card  # a threshold is a difference of logits, not a percentage
    write.export(made(tmp_path / "b", BASE, TASKS["score"]), tmp_path / "score")
    assert "one number, the raw logit" in (tmp_path / "score/README.md").read_text()


def test_card_of_the_users_own_task_names_its_file_and_the_baseline(tmp_path):
    run, row = tmp_path / "own/lr=3e-05,seed=1", {**ROW, "f1": 80.0, "score": 80.0}
    made(run, BASE, TASKS["tags"], scored=(row,))
    baseline = {"prediction": "always O", "accuracy": 70.0, "f1": 0.0, "score": 0.0}
    (run / "result.json").write_text(json.dumps({"seed": 1, "baseline": baseline}))
    write.export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for fact in (
        "pipeline_tag: token-classification", "A BERT model fine-tuned on `a.conll`", "split longer texts",
        'pipeline("token-classification"', "AutoModelForTokenClassification", "labels are `O`, `B-X`, `I-X`",
        "|  | this model | always O |", "| accuracy | 81.25 | 70.00 |", "| f1 | 80.00 | 0.00 |",
    ):  # fmt: skip
        assert fact in card, fact


def test_command_exports_and_verifies(tmp_path):
    run = made(tmp_path / "run", config_of("roberta-prelayernorm"), TASKS["classes"])
    done = bert_fast("export", f"--checkpoint={run}", f"--out={tmp_path}/out", "--verify")
    assert done.returncode == 0, done.stderr
    assert "RobertaPreLayerNormForSequenceClassification" in done.stdout
    assert "largest difference from transformers, class_logits:" in done.stdout
