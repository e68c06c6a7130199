"""The Python interface: its docstring examples, from text to a Hugging Face folder, and vectors of texts."""

import doctest
import json
import pathlib

import numpy as np
import pytest

import bert_fast
from bert_fast import BadInput, api, inference
from bert_fast.configs import bert
from helpers import command_line
from helpers.made_tasks import write_glue

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards vex bold gnomes".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """The folder in which the docstring examples ran, in order. Each example can use the files of earlier examples."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "corpus").mkdir()
    documents = [
        "\n".join(" ".join(WORDS[(d * 7 + s * 3 + w * (d % 5 + 1)) % len(WORDS)] for w in range(9)) for s in range(12))
        for d in range(120)
    ]
    (folder / "corpus/text.txt").write_text("\n\n".join(documents) + "\n")
    write_glue(folder / "glue", ("mrpc",), 64, 32)
    shared = {"bert_fast": bert_fast}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in bert_fast.API:
            (test,) = doctest.DocTestFinder(recurse=False).find(getattr(bert_fast, name), name, globs=shared)
            assert test.examples, f"{name} has no example"
            said: list[str] = []
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            runner.run(test, out=said.append, clear_globs=False)
            assert runner.summarize(verbose=False).failed == 0, "".join(said)
            shared = test.globs
    return folder


def test_docstring_examples_write_their_folders(folder):
    assert (folder / "run/summary.json").is_file()
    assert (folder / "mrpc/results.json").is_file()
    assert (folder / "exported/model.safetensors").is_file()


def test_every_api_name_can_be_imported_and_an_unknown_name_is_refused():
    assert {name for name in dir(api) if getattr(getattr(api, name), "__module__", "") == "bert_fast.api"} >= set(
        bert_fast.API
    )
    assert set(bert_fast.API) <= set(dir(bert_fast))
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        _ = bert_fast.pretrian


def test_vector_is_the_mean_hidden_state_or_the_hidden_state_of_cls(folder):
    model = bert_fast.load(folder / "run")
    texts = ["the quick brown fox", "a lazy dog", "seven wizards vex bold gnomes while a dog jumps"]
    means, firsts = (bert_fast.embed(model, texts, pooling, batch_size=2) for pooling in ("mean", "cls"))
    for text, mean_D, first_D in zip(texts, means, firsts, strict=True):
        outputs = model(text)  # alone, without padding
        assert outputs.real_BS.all()
        np.testing.assert_allclose(mean_D, outputs.hidden_BSD[0].mean(0), atol=1e-5)
        np.testing.assert_allclose(first_D, outputs.hidden_BSD[0, 0], atol=1e-5)


def test_first_word_from_fill_mask_has_the_highest_logit_at_the_mask(folder):
    model = bert_fast.load(folder / "run")
    outputs = model("the quick [MASK] fox")
    place = outputs.tokens[0].index("[MASK]")
    logits_V = outputs.logits_BSV[0, place].copy()
    logits_V[list(model.encoder.vocab.special)] = -np.inf
    [[words]] = bert_fast.fill_mask(folder / "run", "the quick [MASK] fox", top=1)
    assert model.encoder.vocab.tokenizer.id_to_token(int(logits_V.argmax())) == words[0][0]


def test_embed_truncates_a_long_text_with_a_warning_and_the_model_refuses_it(folder):
    model = bert_fast.load(folder / "run")
    longest = model.encoder.model.max_len
    text = " ".join(["dog"] * (longest + 5))
    with pytest.warns(UserWarning, match=f"1 of 2 texts are longer than the model's {longest} tokens"):
        vectors = bert_fast.embed(model, [text, "a dog"])
    np.testing.assert_allclose(vectors[0], bert_fast.embed(model, [" ".join(["dog"] * (longest - 2))])[0], atol=1e-5)
    with pytest.raises(BadInput, match="shorten it"):
        model(text)


def test_empty_list_of_texts_gives_no_vectors(folder):
    assert bert_fast.embed(folder / "run", []).shape == (0, 32)


def test_embed_command_writes_the_same_vectors(folder, tmp_path):
    (tmp_path / "texts.txt").write_text("the quick fox\na dog\n")
    arguments = ["embed", f"--checkpoint={folder}/run", f"--data={tmp_path}/texts.txt"]
    expected = bert_fast.embed(folder / "run", ["the quick fox", "a dog"])
    done = command_line.bert_fast(*arguments, f"--out={tmp_path}/v.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    done = command_line.bert_fast(*arguments)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in found] == ["the quick fox", "a dog"]
    np.testing.assert_allclose([line["vector"] for line in found], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pooling=max", "a text"], "pooling 'max' is unknown: use mean or cls"),
        (["--data=nowhere.txt"], "--data=nowhere.txt cannot be read"),
        ([], "give texts as arguments, or a file"),
        (["--data=x", "a text"], "give texts as arguments, or a file"),
        (["--out=v.txt", "a text"], "--out=v.txt: expected a .npy file"),
    ],
)
def test_embed_command_reports_a_mistake_with_the_remedy(folder, arguments, message):
    done = command_line.bert_fast("embed", f"--checkpoint={folder}/run", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_config_object_is_accepted_and_not_modified(folder, tmp_path):
    config = bert.get_config("size=tiny,objective=mlm,debug")
    before = config.to_dict()
    bert_fast.pretrain(config, tmp_path / "run", data=folder / "shards", changes={"steps": 2, "eval.every": 0})
    assert config.to_dict() == before
    assert json.loads((tmp_path / "run/config.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        ("brt", {}, "unknown config 'brt': did you mean bert"),
        ("nowhere/mine.py", {}, "no config file 'nowhere/mine.py'"),
        ("bert:size=bas", {}, "did you mean base"),
        ("bert:debug", {"stepss": 3}, "unknown config key 'stepss'"),
        ("bert:debug", {"model.hidden": 3}, r"'model\.hidden' was renamed to 'model\.mlp_dim'"),
        ("bert:debug", {"optimizer.nam": "lamb"}, r"unknown config key 'optimizer\.nam'"),
        ("bert:debug", {"steps": "many"}, "steps='many' has a different type"),
        ("bert:debug", {}, "data is missing: give the folder that bert_fast.prepare made"),
    ],
)
def test_mistakes_in_a_config_raise_bad_input(spec, changes, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        bert_fast.pretrain(spec, tmp_path / "run", changes=changes)


def test_fine_tuned_model_has_hidden_states_but_no_mlm_logits(folder):
    [run] = (folder / "mrpc/mrpc").glob("lr=*,seed=0")
    model = bert_fast.load(run)
    assert model("the quick fox").logits_BSV is None
    assert bert_fast.embed(model, ["the quick fox"]).shape == bert_fast.embed(model, "the quick fox").shape == (1, 32)
    with pytest.raises(BadInput, match="fine-tuned"):
        bert_fast.fill_mask(model, "the [MASK]")


def test_amount_of_padding_does_not_change_a_vector(folder, monkeypatch):
    texts = ["the quick brown fox", "a lazy dog"]
    wide = bert_fast.embed(folder / "run", texts)
    monkeypatch.setattr(inference, "WIDTH", 8)
    np.testing.assert_allclose(bert_fast.embed(folder / "run", texts), wide, atol=1e-5)


def test_empty_list_of_texts_is_refused_by_the_model_and_by_fill_mask(folder):
    model = bert_fast.load(folder / "run")
    for call in (model, lambda texts: bert_fast.fill_mask(model, texts)):
        with pytest.raises(BadInput, match="no texts: give at least one"):
            call([])


def test_evaluate_and_export_accept_a_loaded_model(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)  # the run stores a relative path to its shards
    model = bert_fast.load(folder / "run")
    assert bert_fast.evaluate(model, examples=8)["step"] == 20
    assert bert_fast.export(model, tmp_path / "out").class_name == "BertForMaskedLM"
