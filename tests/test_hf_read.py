"""Import of Hugging Face folders: every kind of folder makes an exact round trip; errors name what is unsupported."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_fast import BadInput, encoder, inference
from bert_fast.hf import read, write
from bert_fast.train import initial_params, state
from bert_fast.train.sharding import make_mesh
from helpers.made_folders import PIECES, SIZES, save_theirs, their_model, write_vocab
from helpers.small_runs import make_settings, run, small_config
from helpers.tiers import tiers

torch = pytest.importorskip("torch")


def silent(line):
    raise AssertionError(f"unexpected warning: {line}")


def tensors_in(folder):
    return load_file(folder / "model.safetensors")


def rewrite(folder, tensors):
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    return folder


def as_type(tensors, dtype):
    return {name: array.astype(dtype) for name, array in tensors.items()}


def before_renaming(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def plain(folder):
    return save_theirs(folder, their_model())


def megatron(folder):
    return save_theirs(folder, their_model("megatron-bert"))


def roberta(folder):
    """RoBERTa-PreLayerNorm. The padding row of its position table is not zero, although no token uses that row."""
    save_theirs(folder, their_model("roberta-prelayernorm", "ForMaskedLM"))
    assert tensors_in(folder)["roberta_prelayernorm.embeddings.position_embeddings.weight"][0].any()
    return folder


def old(folder):
    """A folder with TensorFlow's tensor names, stored position ids and copies of tied tensors, in bfloat16."""
    save_theirs(folder, their_model())
    found = as_type(tensors_in(folder), ml_dtypes.bfloat16)
    found["cls.predictions.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"]
    found["cls.predictions.decoder.bias"] = found["cls.predictions.bias"]
    found["bert.embeddings.position_ids"] = np.arange(16)[None]
    return rewrite(folder, {before_renaming(name): array for name, array in found.items()})


def encoder_alone(folder):
    """A folder without heads and without the prefix "bert.", in float16."""
    save_theirs(folder, their_model(heads="Model"))
    assert "encoder.layer.0.output.dense.weight" in tensors_in(folder)
    return rewrite(folder, as_type(tensors_in(folder), np.float16))


def only_a_copy(folder):
    """A folder that holds the output bias only under the name of its tied copy."""
    save_theirs(folder, their_model())
    found = tensors_in(folder)
    found["cls.predictions.decoder.bias"] = found.pop("cls.predictions.bias")
    return rewrite(folder, found)


def in_parts(folder):
    save_theirs(folder, their_model())
    found = tensors_in(folder)
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(sorted(found))}
    for file in set(files.values()):
        save_file({name: found[name] for name in found if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def of_torch(folder, **how):
    model = their_model()
    save_theirs(folder, model)
    (folder / "model.safetensors").unlink()
    state = model.half().state_dict()
    state["bert.pooler.dense.weight"] = state["bert.pooler.dense.weight"].T.contiguous().T  # other strides
    state["bert.pooler.dense.bias"] = torch.nn.Parameter(state["bert.pooler.dense.bias"])
    torch.save(state, folder / "pytorch_model.bin", **how)
    return folder


def of_old_torch(folder):
    return of_torch(folder, _use_new_zipfile_serialization=False)


MAKERS = (plain, megatron, roberta, old, encoder_alone, only_a_copy, in_parts, of_torch, of_old_torch)


def what_came(folder) -> dict[str, np.ndarray]:
    """The tensors of a folder, read with torch if torch wrote them."""
    if (folder / "pytorch_model.bin").exists():
        return {name: tensor.detach().numpy() for name, tensor in torch.load(folder / "pytorch_model.bin").items()}
    return {name: array for path in sorted(folder.glob("*.safetensors")) for name, array in load_file(path).items()}


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_import_then_export_returns_every_tensor_byte_for_byte(make, tmp_path):
    folder, warned = make(tmp_path / "theirs"), []
    imported = read.read(folder, warned.append)
    assert bool(warned) == (make is encoder_alone)
    read.save(imported, tmp_path / "run")
    done = write.export(tmp_path / "run", tmp_path / "back", compare=True)
    assert max(done.differences.values()) < 2e-5  # a fifth of the limit; a one-pass LayerNorm reaches 1.1e-5
    came, back = what_came(folder), tensors_in(tmp_path / "back")
    came = {name.replace("gamma", "weight").replace("beta", "bias"): array for name, array in came.items()}
    assert back.keys() == came.keys()
    for name, array in came.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape), name
        assert back[name].tobytes() == array.tobytes(), name


def test_missing_heads_are_named_and_written_only_on_request(tmp_path):
    folder, warned = encoder_alone(tmp_path / "theirs"), []
    imported = read.read(folder, warned.append)
    assert imported.untrained == ("MLM head", "next-sentence head")
    assert "no MLM head, no next-sentence head: initialised" in warned[0]
    assert np.asarray(imported.params["mlm"]["dense"]["kernel"]).std() > 0.01
    pooler = np.asarray(tensors_in(folder)["pooler.dense.weight"], np.float32)
    np.testing.assert_array_equal(imported.params["next"]["pooler"]["kernel"], pooler.T)
    read.save(imported, tmp_path / "run")
    assert write.export(tmp_path / "run", tmp_path / "alone").class_name == "BertModel"
    with_heads = write.export(tmp_path / "run", tmp_path / "heads", compare=True, initialised_heads=True)
    assert with_heads.class_name == "BertForPreTraining"
    assert with_heads.differences.keys() == {"hidden", "mlm_logits", "next_logits"}


def test_model_without_pooler_gets_a_pooler_and_a_next_sentence_head(tmp_path):
    imported = read.read(save_theirs(tmp_path / "theirs", their_model(heads="ForMaskedLM")), lambda line: None)
    assert imported.untrained == ("pooler", "next-sentence head")
    assert imported.program.objective == "mlm"


@pytest.mark.parametrize("kind", ["bert", "megatron-bert"])
def test_next_sentence_head_alone_is_imported_and_exported(kind, tmp_path):
    folder = save_theirs(tmp_path / "theirs", their_model(kind, heads="ForNextSentencePrediction"))
    read.save(read.read(folder, lambda line: None), tmp_path / "run")
    done = write.export(tmp_path / "run", tmp_path / "back", compare=True)
    assert done.class_name.endswith("ForNextSentencePrediction")
    assert done.differences.keys() == {"hidden", "next_logits"}
    came, back = what_came(folder), tensors_in(tmp_path / "back")
    assert {name: array.tobytes() for name, array in back.items()} == {n: a.tobytes() for n, a in came.items()}
    assert "AutoModelForNextSentencePrediction.from_pretrained" in (tmp_path / "back/README.md").read_text()


def test_vocabulary_that_may_belong_to_another_model_draws_a_warning(tmp_path):
    warned = []
    read.read(save_theirs(tmp_path / "theirs", their_model(vocab_size=len(PIECES) + 128)), warned.append)
    assert "do they belong together" in warned[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"hidden_act": ["gelu"]}, "hidden_act \\['gelu'\\]"),
        ({"model_type": ["bert"]}, "model_type \\['bert'\\]"),
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"pad_token_id": "0"}, "pad_token_id='0'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads="),
        ({"hidden_size": 25}, "hidden_size=25 is not a multiple"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers='2'"),
        ({"intermediate_size": None}, "intermediate_size=None"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob=1.5"),
        ({"num_hidden_layers": 3}, r"missing bert\.encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"unknown bert\.encoder\.layer\.1"),
        ({"max_position_embeddings": 15}, r"position_embeddings\.weight has shape \(16, 24\), expected \(15, 24\)"),
        ({"vocab_size": 60}, "only 60 rows"),
    ],
)
def test_unsupported_or_mismatched_configuration_is_refused(changes, message, tmp_path):
    folder = plain(tmp_path / "theirs")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BadInput, match=message):
        read.read(folder)


def test_configuration_that_has_only_sizes_gets_the_defaults(tmp_path):
    folder = plain(tmp_path / "theirs")
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: whole[name] for name in (*SIZES, "max_position_embeddings")}))
    assert read.read(folder, silent).model.norm_eps == 1e-12
    (folder / "config.json").write_text(json.dumps({"hidden_size": 24}))
    with pytest.raises(BadInput, match="lacks vocab_size"):
        read.read(folder)


def without_a_bias(found):
    del found["cls.predictions.transform.dense.bias"]


def with_a_classifier(found):
    found["classifier.weight"] = np.zeros((2, 24), np.float32)


def with_a_hole(found):
    found["bert.pooler.dense.bias"] = np.full(24, np.nan, np.float32)


def in_double(found):
    found["bert.pooler.dense.bias"] = np.zeros(24)


def twice(found):
    found["embeddings.LayerNorm.weight"] = found["bert.embeddings.LayerNorm.weight"]


def twice_by_its_old_name(found):
    found["bert.embeddings.LayerNorm.gamma"] = found["bert.embeddings.LayerNorm.weight"]


def with_other_positions(found):
    found["bert.embeddings.position_ids"] = np.arange(1, 17)[None]


def untied(found):
    found["cls.predictions.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"] + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_bias, r"missing cls\.predictions\.transform\.dense\.bias"),
        (with_a_classifier, r"unknown classifier\.weight"),
        (with_a_hole, r"bert\.pooler\.dense\.bias contains NaN or infinite values"),
        (in_double, r"bert\.pooler\.dense\.bias is float64"),
        (twice, r"LayerNorm.* are the same tensor"),
        (twice_by_its_old_name, r"LayerNorm.* are the same tensor"),
        (with_other_positions, r"position_ids is not the constant"),
        (untied, r"decoder\.weight differs"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    folder = plain(tmp_path / "theirs")
    found = tensors_in(folder)
    change(found)
    with pytest.raises(BadInput, match=message):
        read.read(rewrite(folder, found), silent)


def test_folder_with_missing_or_damaged_files_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json"):
        read.read(tmp_path)
    folder = plain(tmp_path / "theirs")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(BadInput, match="is it complete"):
        read.read(folder)
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(BadInput, match=r"tf_model\.h5"):
        read.read(folder)
    parts = in_parts(tmp_path / "parts")
    (parts / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadInput, match="lists model-00002"):
        read.read(parts)


def test_padding_ids_that_disagree_are_refused(tmp_path):
    folder = roberta(tmp_path / "theirs")
    write_vocab(folder, [PIECES[1], PIECES[0], *PIECES[2:]])
    with pytest.raises(BadInput, match="pad_token_id is 0"):
        read.read(folder)


def test_import_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    imported = read.read(plain(tmp_path / "theirs"))
    monkeypatch.setattr(read, "atomic_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BadInput, match="No space left"):
        read.save(imported, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
    with pytest.raises(BadInput, match="already exists"):
        read.save(imported, tmp_path / "theirs")


SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}


def theirs_for(shards_folder, folder, **changes):
    """A Hugging Face model with the vocabulary of a shards folder and the sizes that `small_config` trains."""
    pieces = (shards_folder / "vocab.txt").read_text().splitlines()
    model = their_model(vocab_size=len(pieces) + 100, **SMALL, **changes)
    return save_theirs(folder, model, pieces)


def test_run_starts_from_an_imported_model(small_shards, tmp_path):
    imported = read.read(theirs_for(small_shards, tmp_path / "theirs"))
    read.save(imported, tmp_path / "run")
    config = small_config(small_shards, init=str(tmp_path / "run"))
    settings = make_settings(config)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    params = initial_params.warm(settings, settings.model, {"vocab": {"sha256": imported.vocab.fingerprint}}, mesh)
    state.check_model("first", params, settings.model)
    jax.tree.map(np.testing.assert_array_equal, params["layers"], imported.params["layers"])
    rows = settings.model.vocab_size
    np.testing.assert_array_equal(params["embed"]["word"][:rows], imported.params["embed"]["word"][:rows])
    other = make_settings(small_config(small_shards, init=str(tmp_path / "run"), model__norm_eps=1e-5))
    with pytest.raises(BadInput, match="norm_eps is 1e-12 there, 1e-05 here"):
        initial_params.warm(other, other.model, {"vocab": {"sha256": imported.vocab.fingerprint}}, mesh)
    with pytest.raises(BadInput, match="a different vocabulary"):
        initial_params.warm(settings, settings.model, {"vocab": {"sha256": "other"}}, mesh)


@pytest.mark.filterwarnings("ignore:layer dropping on a post-LN model:UserWarning")
@pytest.mark.parametrize(
    "methods", tiers(["", "layer_drop", "token_drop", "early_bert,token_drop"], slow=["early_bert,token_drop"])
)
def test_imported_model_is_pre_trained_further_with_any_method_and_exported(methods, small_shards, tmp_path):
    read.save(read.read(theirs_for(small_shards, tmp_path / "theirs")), tmp_path / "run")
    config = small_config(
        small_shards, init=str(tmp_path / "run"), methods=methods, steps=20, eval__every=0, early_bert__search=10.0
    )
    run(config, tmp_path / "more")
    done = write.export(tmp_path / "more", tmp_path / "out", compare=True)
    assert done.class_name == "BertForPreTraining"


@pytest.mark.slow
def test_results_come_with_a_warning_until_random_heads_are_trained(small_shards, tmp_path):
    folder = theirs_for(small_shards, tmp_path / "theirs", heads="Model")
    read.save(read.read(folder, lambda line: None), tmp_path / "run")
    said = r"run/checkpoints/0 has random weights in its MLM head, .* say nothing about the model"
    with pytest.warns(UserWarning, match=said):
        found = inference.evaluate(str(tmp_path / "run"), str(small_shards), examples=16, seq_len=16)
    assert found["untrained_heads"] == ["MLM head"]
    with pytest.warns(UserWarning, match=said):
        inference.fill_mask(encoder.load(tmp_path / "run"), ["w1 [MASK]"], 3)
    for objective, left in (("mlm", ["next-sentence head"]), ("mlm+nsp", [])):
        config = small_config(
            small_shards,
            init=str(tmp_path / "run"),
            steps=1,
            eval__every=0,
            model__pooler=True,
            data__objective=objective,
        )
        run(config, more := tmp_path / objective)
        assert [*encoder.load(more).untrained] == left
        assert inference.evaluate(str(more), examples=16, seq_len=16)["untrained_heads"] == []
        inference.fill_mask(encoder.load(more), ["w1 [MASK]"], 3)


@pytest.mark.slow
def test_imported_model_is_evaluated_and_fills_masks(small_shards, tmp_path):
    read.save(read.read(theirs_for(small_shards, tmp_path / "theirs")), tmp_path / "run")
    with pytest.raises(BadInput, match="--data=DIR"):
        inference.evaluate(str(tmp_path / "run"))
    found = inference.evaluate(str(tmp_path / "run"), str(small_shards), examples=16, seq_len=16)
    assert (found["nsp_loss"] > 0, found["untrained_heads"]) == (True, [])
    (masks,) = inference.fill_mask(encoder.load(tmp_path / "run"), ["w1 [MASK]"], 3)
    assert len(masks[0]) == 3
    with pytest.raises(BadInput, match="holds a run with another config"):
        run(small_config(small_shards), tmp_path / "run")
