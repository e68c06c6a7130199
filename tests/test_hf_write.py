"""Export to Hugging Face folders: every layout and shape of model, the model card, and what is refused."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from bert_fast import BadInput, bert, encoder, qkv
from bert_fast.data import vocab
from bert_fast.hf import card, read, tensors, tokenizer, verify, weights, write
from bert_fast.method import Stage
from bert_fast.schedule import Schedule
from bert_fast.train import checkpoint
from bert_fast.train.counters import Counters
from helpers.command_line import bert_fast
from helpers.made_folders import save_checkpoint
from helpers.made_shards import WORDS
from helpers.reference import random_params
from helpers.small_runs import run, small_config
from helpers.tiers import tiers

transformers = pytest.importorskip("transformers")

BASE = bert.Config(
    len(WORDS), depth=2, width=24, heads=3, head_size=8, mlp_dim=40, max_len=20, type_count=2,
    special_ids=tuple(WORDS.index(piece) for piece in vocab.SPECIAL), norm_eps=1e-6,
)  # fmt: skip
# [PAD] has id 101 in WORDS, so the positions of roberta-prelayernorm start far from 0.
MODELS = {
    "bert": {"pooler": True},
    "bert without a pooler": {},
    "megatron-bert, slim": {
        "norm": "pre", "embed_norm": False, "pooler": True, "heads": (1, 2), "mlp_dim": (7, 30),
        "activation": "gelu_tanh",
    },
    "roberta-prelayernorm, slim": {"norm": "pre", "pooler": True, "heads": 2, "mlp_dim": (33, 5), "dtype": "bfloat16"},
}  # fmt: skip


def config_of(name):
    return dataclasses.replace(BASE, **MODELS[name])


def made(folder, config, **about):
    """A run folder of this model. All weights are random, so even unused heads and neurons are not zero."""
    return save_checkpoint(folder, config, random_params(config), WORDS, **about)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_of_an_export_in_transformers_equal_those_of_the_checkpoint(name, tmp_path):
    model = config_of(name)
    done = write.export(made(tmp_path / "run", model), tmp_path / "out", compare=True)
    with_next = {"next_logits"} if done.class_name.endswith("ForPreTraining") else set()
    assert done.differences.keys() == {"hidden", "mlm_logits"} | with_next
    assert bool(with_next) == (model.pooler and "roberta" not in name)
    assert max(done.differences.values()) < 1e-5
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == name.split(",")[0].split(" ")[0]
    assert (config["num_attention_heads"], config["intermediate_size"]) == (3, max(model.mlp_dim_L))
    message = " ".join(done.notes)
    assert ("slim" in message) == ("slim" in name)
    assert ("attention of this export is no smaller" in message) == ("slim" in name)
    assert ("no next-sentence head" in message) == name.startswith("roberta")
    assert ("bfloat16" in message) == (model.dtype == "bfloat16")
    assert all(note in (tmp_path / "out/README.md").read_text() for note in done.notes)


@pytest.mark.parametrize("name", ["bert", "megatron-bert, slim", "roberta-prelayernorm, slim"])
def test_auto_classes_load_an_export(name, tmp_path):
    write.export(made(tmp_path / "run", config_of(name)), tmp_path / "out")
    for auto in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"):
        _, found = getattr(transformers, auto).from_pretrained(tmp_path / "out", output_loading_info=True)
        fresh = ("classifier", "pooler") if "Sequence" in auto or "roberta" in name else ()
        assert [key for key in found["missing_keys"] if not any(part in key for part in fresh)] == []
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = vocab.load(tmp_path / "out/vocab.txt")
    ids = [ours.cls, *ours.tokenizer.encode("word1 word3", add_special_tokens=False).ids, ours.sep]
    pair = tokenizer("word1 word3", "word2")
    assert pair["input_ids"][: len(ids)] == ids
    assert pair["token_type_ids"] == [0] * len(ids) + [1] * (len(pair["input_ids"]) - len(ids))
    assert (tokenizer.model_max_length, tokenizer.mask_token_id, tokenizer.pad_token_id) == (20, ours.mask, ours.pad)


@pytest.mark.parametrize(("cased", "strip_accents"), [(True, None), (True, True), (False, False)])
def test_exported_tokenizer_treats_case_and_accents_like_the_vocabulary(cased, strip_accents, tmp_path):
    pieces = [*vocab.SPECIAL, "É", "é", "E", "e", "##a", "##A", "##á"]
    content = "".join(f"{piece}\n" for piece in pieces).encode()
    ours = vocab.parse(content, "vocab.txt", cased, strip_accents)
    tokenizer.write(tmp_path, ours, 20)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("É é E e", "Éa éÁ ea", *verify.TEXTS):
        expected = ours.tokenizer.encode(text, add_special_tokens=False).ids
        assert theirs(text, add_special_tokens=False)["input_ids"] == expected
    assert tokenizer.read(tmp_path) == ours


@pytest.mark.skipif("BERT_FAST_DATA" not in os.environ, reason="needs the real text and vocabulary of $BERT_FAST_DATA")
def test_transformers_finds_the_same_tokens_in_real_text(tmp_path):
    data = pathlib.Path(os.environ["BERT_FAST_DATA"])
    ours = vocab.load(data / "vocab/bert-base-uncased.txt")
    tokenizer.write(tmp_path, ours, 512)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = (data / "glue/CoLA/dev.tsv").read_text().splitlines()[:500]
    for text, made in zip(texts, theirs(texts, add_special_tokens=False)["input_ids"], strict=True):
        assert made == ours.tokenizer.encode(text, add_special_tokens=False).ids, text


def test_added_heads_and_neurons_of_a_widened_model_are_zero():
    for name in ("megatron-bert, slim", "roberta-prelayernorm, slim"):
        model = config_of(name)
        wide, config = tensors.widen(random_params(model), model)
        assert (config.heads, config.mlp_dim) == (3, max(model.mlp_dim_L))
        shapes = jax.eval_shape(lambda config=config: bert.init(config, jax.random.key(0)))
        jax.tree.map(lambda leaf, like: np.testing.assert_equal(leaf.shape, like.shape), wide, shapes)
        for layer, (heads, hidden) in enumerate(zip(model.heads_L, model.mlp_dim_L, strict=True)):
            assert not qkv.separate(wide["layers"])["query"]["kernel"][layer, :, heads:].any()
            assert not wide["layers"]["attention_output"]["kernel"][layer, heads:].any()
            assert not wide["layers"]["mlp_output"]["kernel"][layer, hidden:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_norm": False}, "no Hugging Face layout"),
        ({"tied": False}, "separate output table"),
        ({"heads": 4}, "4 heads of size 8 at a width of 24"),
        ({"head_size": 7, "heads": 1}, "1 heads of size 7 at a width of 24"),
    ],
)
def test_model_without_a_layout_is_refused_before_anything_is_written(changes, message, tmp_path):
    made(tmp_path / "run", dataclasses.replace(BASE, **changes))
    with pytest.raises(BadInput, match=message):
        write.export(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_export_that_differs_from_the_checkpoint_is_not_kept(tmp_path, monkeypatch):
    made(tmp_path / "run", BASE)
    true = weights.write

    def wrong(path, arrays):
        name = "bert.encoder.layer.1.output.dense.bias"
        true(path, {**arrays, name: arrays[name] + np.float32(1e-2) * np.eye(24, dtype=np.float32)[0]})

    monkeypatch.setattr(weights, "write", wrong)
    with pytest.raises(BadInput, match=r"differs from the checkpoint by more than 0\.0001 \(hidden"):
        write.export(tmp_path / "run", tmp_path / "out", compare=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_export_with_logits_that_are_not_finite_is_not_kept(tmp_path, monkeypatch):
    made(tmp_path / "run", BASE)
    true, name = weights.write, "cls.predictions.bias"
    monkeypatch.setattr(weights, "write", lambda path, arrays: true(path, {**arrays, name: arrays[name] * np.nan}))
    with pytest.raises(BadInput, match=r"differs from the checkpoint .*mlm_logits nan"):
        write.export(tmp_path / "run", tmp_path / "out", compare=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_export_with_a_missing_tensor_or_wrong_tokens_is_not_kept(tmp_path, monkeypatch):
    made(tmp_path / "run", BASE)
    true = weights.write
    with monkeypatch.context() as patch:
        patch.setattr(weights, "write", lambda path, arrays: true(path, dict(list(arrays.items())[:-1])))
        with pytest.raises(BadInput, match=r"does not load all.*missing_keys"):
            write.export(tmp_path / "run", tmp_path / "out", compare=True)
    monkeypatch.setattr(
        tokenizer, "write_json", lambda path, value: path.write_text(json.dumps({**value, "do_lower_case": False}))
    )
    with pytest.raises(BadInput, match=r"into tokens .* expected"):
        write.export(tmp_path / "run", tmp_path / "out", compare=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_export_works_without_torch_but_verify_says_how_to_install_it(tmp_path, monkeypatch):
    made(tmp_path / "run", BASE)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput, match="pip install torch"):
        write.export(tmp_path / "run", tmp_path / "out", compare=True)
    write.export(tmp_path / "run", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip


def test_weights_file_has_the_permissions_of_other_files(tmp_path):
    weights.write(tmp_path / "model.safetensors", {"a": np.ones(3, np.float32)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_export_into_a_folder_that_is_not_empty_is_refused(tmp_path):
    made(tmp_path / "run", BASE)
    with pytest.raises(BadInput, match="already exists"):
        write.export(tmp_path / "run", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    write.export(tmp_path / "run", tmp_path / "empty")


SCORE = {"last": {"score": {"mean": 81.25, "deviation": 0.5, "median": 81.5}}, "chosen": "2e-05"}
ENCODER = {
    "checkpoint": "run/checkpoints/7",
    "step": 7,
    "model": json.loads(json.dumps(dataclasses.asdict(BASE))),
}
RESULTS = {
    "tasks": {"mrpc": {**SCORE, "learning_rates": {"2e-05": {"seeds": [0, 1, 2]}}}},
}


def test_model_card_describes_the_run(tmp_path, capsys):
    counts = {"examples": 448, "tokens_real": 12_345, "tokens_padded": 13_000, "flops": 6e12, "flops_dense": 8e12}
    counters = Counters(counts=counts, ends=[3], end_seconds=[50.0], times={"seconds": 125.0})
    early = Stage("search", read.program_of(BASE, False)[0], 5_000, Schedule(1e-3, 5_000))
    more = {"earlier_stages": (early,), "init": "runs/bert-base", "fingerprint": ""}
    data = read_data(tmp_path / "text")
    made(tmp_path / "run", BASE, counters=counters, methods=(("layer_drop", {"theta": 0.5}),), data=data, **more)
    (tmp_path / "text").mkdir()
    split, sha256 = {"documents": 1_200, "tokens": 345_678}, encoder.load(tmp_path / "run").vocab.fingerprint
    (tmp_path / "text/manifest.json").write_text(
        json.dumps({"source": "files:corpus/*.txt", "splits": {"train": split}, "vocab": {"sha256": sha256}})
    )
    rows = [
        {"split": "valid", "step": 7, "mlm_loss": 5.4321, "mlm_accuracy": 0.25},
        {"split": "train", "step": 6, "mlm_loss": 5.5, "mask_loss": 6.25},
        {"split": "valid", "step": 9, "mlm_loss": 1.0},
    ]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run/config.json").write_text(json.dumps({"optimizer": {"name": "lamb"}}))
    about = ENCODER | {"vocab": encoder.load(tmp_path / "run").vocab.fingerprint}
    others = {
        "control": {"random_weights": True},
        "another": {"checkpoint": "other/checkpoints/7"},
        "slimmer": {"model": {**ENCODER["model"], "heads": 1}},
    }
    for name, changes in ({"mrpc": {}} | others).items():
        (tmp_path / "scores" / name).mkdir(parents=True)
        result = RESULTS | {"encoder": about | changes}
        (tmp_path / "scores" / name / "results.json").write_text(json.dumps(result))
    write.export(tmp_path / "run", tmp_path / "out", results=tmp_path / "scores")
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\nmetrics:\n- accuracy\n- perplexity\npipeline_tag: fill-mask\n"
    )
    for fact in (
        "files:corpus/*.txt", "1,200 documents, 345,678 tokens", "layer_drop (theta=0.5)", "| 7, lamb |",
        "12,345 tokens", "6e+12 (forward", "8e+12 for the same examples; this run took 75%", "2 min 05 s",
        "| search | 3 |", "| made | 4 |", "Training started from the weights of `runs/bert-base`",
        "5.4321 | 5.5000", "- | 6.2500",
        "| mrpc | 81.25 | 0.50 | 81.50 | 3 | 7 |", "# pip install torch transformers",
        'AutoTokenizer.from_pretrained("out")',
    ):  # fmt: skip
        assert fact in card, fact
    assert card.count("mrpc") == 1
    assert "FOLDER" not in card
    assert "left out of the model card: 3 results.json of other models" in capsys.readouterr().err
    with pytest.raises(BadInput, match="is not a folder"):
        write.export(tmp_path / "run", tmp_path / "other", results=tmp_path / "typo")
    assert "1.0000" not in card


def test_card_says_how_many_positions_were_trained():
    model = dataclasses.replace(BASE, max_len=512)
    assert ", 512 positions, " in card.shape_of(model)
    assert ", 512 positions, " in card.shape_of(model, 512)
    assert "512 positions (trained on examples of up to 128 tokens, so do not use longer ones)" in card.shape_of(
        model, 128
    )
    early, late = (types.SimpleNamespace(program=types.SimpleNamespace(seq_len=seq_len)) for seq_len in (128, 64))
    about = types.SimpleNamespace(imported=None, earlier_stages=(early,), stage=late)
    assert card.longest(about) == 128
    about.imported = {"folder": "hf"}
    assert card.longest(about) == 0


def read_data(folder):
    _, data, _ = read.program_of(BASE, False)
    return dataclasses.replace(data, dir=str(folder))


def test_commands_export_and_import(tmp_path):
    made(tmp_path / "run", dataclasses.replace(BASE, pooler=True))
    done = bert_fast("export", f"--checkpoint={tmp_path}/run/checkpoints/7", f"--out={tmp_path}/out")
    assert (done.returncode, "BertForPreTraining" in done.stdout) == (0, True), done.stderr
    done = bert_fast("import", f"--hf={tmp_path}/out", f"--out={tmp_path}/in")
    assert (done.returncode, "--config.init=" in done.stdout) == (0, True), done.stderr
    before, after = (encoder.load(tmp_path / name) for name in ("run", "in"))
    assert after.about.step == 0
    assert dataclasses.replace(after.program.model, residual_init_std=0.02) == before.program.model
    ours, theirs = (jax.tree.map(np.asarray, trained.params) for trained in (before, after))
    rows = BASE.vocab_size
    ours["embed"]["word"], ours["mlm"]["bias"] = ours["embed"]["word"][:rows], ours["mlm"]["bias"][:rows]
    theirs["embed"]["word"], theirs["mlm"]["bias"] = theirs["embed"]["word"][:rows], theirs["mlm"]["bias"][:rows]
    jax.tree.map(np.testing.assert_array_equal, theirs, dict(ours))
    for mistake, message in (
        (["export", f"--checkpoint={tmp_path}/run"], "--out is missing"),
        (["export", f"--checkpoint={tmp_path}", f"--out={tmp_path}/new"], "no checkpoint in"),
        (["import", f"--hf={tmp_path}", f"--out={tmp_path}/new"], "no config.json in"),
        (["import", f"--hf={tmp_path}/out", f"--out={tmp_path}/in"], "already exists"),
    ):
        done = bert_fast(*mistake)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "new").exists()


# For each run: changes to its config, and the checkpoints to export (20 means the last checkpoint).
TRAINED = {
    "layer dropping, pre-LN": ({"methods": "layer_drop", "model__norm": "pre"}, (20,)),
    "token dropping, post-LN": ({"methods": "token_drop"}, (20,)),
    "stacking, half grown and whole": (
        {"methods": "stacking", "model__norm": "pre", "model__embed_norm": False},
        (5, 20),
    ),
    "slim and with coefficients": ({"methods": "early_bert", "early_bert__search": 10.0}, (5, 20)),
    "all": (
        {"methods": "stacking,early_bert,token_drop,layer_drop", "early_bert__search": 10.0, "model__norm": "pre"},
        (20,),
    ),
}


@pytest.mark.parametrize("name", tiers(TRAINED, slow=["all"]))
def test_checkpoints_of_every_method_are_exported_and_verified(name, small_shards, tmp_path):
    changes, steps = TRAINED[name]
    sizes = {"model__depth": 4, "phases": "16:1", "steps": 20, "eval__every": 0}
    config = small_config(small_shards, checkpoint__every=5, checkpoint__keep=100, **sizes, **changes)
    run(config, tmp_path / "run")
    depths, last = [], max(checkpoint.steps(tmp_path / "run/checkpoints"))
    for step in (5 if step == 5 else last for step in steps):
        done = write.export(tmp_path / f"run/checkpoints/{step}", tmp_path / f"{step}", compare=True)
        assert max(done.differences.values()) < verify.LIMIT
        depths.append(json.loads((tmp_path / f"{step}/config.json").read_text())["num_hidden_layers"])
    assert (depths[0] < 4) == name.startswith("stacking")
    assert depths[-1] == 4
    assert any("slim" in note for note in done.notes) == ("early_bert" in changes["methods"])
    assert "## Losses" in (tmp_path / f"{last}/README.md").read_text()


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    made(tmp_path / "run", BASE)

    def full(*_, **__):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(BadInput, match=r"out cannot be written .*No space left"):
        write.export(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("files:/home/me/wiki/*.txt.gz", "files:*.txt.gz"),
        ("0.7*files:/home/me/a/*.txt + 0.3*files:b/*.txt", "0.7*files:*.txt + 0.3*files:b/*.txt"),
        ("/home/me/runs/base", "base"),
        ("/home/me/runs/base/checkpoints/1000", "base/checkpoints/1000"),
        ("runs/base", "runs/base"),
        ("hf:org/name:train", "hf:org/name:train"),
        ("docs", "docs"),
    ],
)
def test_a_card_shows_no_folders_of_the_machine(text, shown):
    assert card.without_folders(text) == shown
