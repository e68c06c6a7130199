"""Our models equal Hugging Face's with the same random weights: logits, losses, hidden states and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import BadInput, bert
from bert_fast.hf import layouts, tensors
from bert_fast.plan import Route, whole
from helpers.reference import random_batch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 150,
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
}
# For each layout: configuration class, model class, length of the position table, id of the padding token.
MODELS = {
    "bert": (transformers.BertConfig, transformers.BertForPreTraining, 24, 0),
    "megatron-bert": (transformers.MegatronBertConfig, transformers.MegatronBertForPreTraining, 24, 0),
    "roberta-prelayernorm": (
        transformers.RobertaPreLayerNormConfig,
        transformers.RobertaPreLayerNormForMaskedLM,
        27,
        2,
    ),
}


@dataclasses.dataclass
class Both:
    """Hugging Face's model and ours with the same weights, and a batch."""

    theirs: torch.nn.Module
    tensors: dict
    config: bert.Config
    params: dict
    pad_id: int
    batch: dict


@pytest.fixture(scope="module", params=MODELS)
def both(request):
    config_class, model_class, positions, pad_id = MODELS[request.param]
    torch.manual_seed(0)
    their_config = config_class(
        **SIZES, max_position_embeddings=positions, pad_token_id=pad_id, attn_implementation="eager"
    )
    theirs = model_class(their_config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 and "weight" in name else 0.0, 0.1)
        if request.param == "roberta-prelayernorm":  # no token uses these positions
            theirs.roberta_prelayernorm.embeddings.position_embeddings.weight[: pad_id + 1] = 0
    found = {name: parameter.detach().numpy() for name, parameter in theirs.named_parameters()}
    config = layouts.config_from_hf(their_config.to_dict())
    assert layouts.layout_of(config) == request.param
    batch = random_batch(config, rows=3, length=20, slots=4)
    ids_BS = np.where(batch["segments"] != 0, np.maximum(batch["ids"], pad_id + 1), pad_id)
    batch["ids"] = ids_BS.astype(np.int32)
    return Both(theirs, found, config, tensors.from_hf(found, config, pad_id), pad_id, batch)


def our_loss(both, params):
    """The sum of all losses, and a tuple of the hidden states, the MLM logits and the NSP losses."""
    x_BSD = bert.encode(both.config, params, {}, both.batch, whole(both.config.depth), Route(), None)
    batch = both.batch if both.config.pooler else {k: v for k, v in both.batch.items() if k != "next"}
    losses = bert.losses(both.config, params, {}, x_BSD, batch)
    total = losses.mlm_BP.sum() + (0 if losses.next_B is None else losses.next_B.sum())
    return total, (x_BSD, bert.predict(both.config, params, {}, x_BSD, both.batch["slots"]), losses.next_B)


def their_loss(both):
    batch = {key: torch.tensor(value).long() for key, value in both.batch.items()}
    output = both.theirs(
        input_ids=batch["ids"],
        token_type_ids=batch["types"],
        attention_mask=(batch["segments"] != 0).long(),
        output_hidden_states=True,
    )
    logits = output.prediction_logits if both.config.pooler else output.logits
    logits = torch.take_along_dim(logits, batch["slots"][..., None], 1)
    cross_entropy = torch.nn.functional.cross_entropy
    total, next_B = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum"), None
    if both.config.pooler:
        next_B = cross_entropy(output.seq_relationship_logits, batch["next"], reduction="none")
        total = total + next_B.sum()
    return total, (output.hidden_states[-1], logits, next_B)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_logits_losses_and_hidden_states_are_equal(both):
    ours, (x_BSD, logits_BPV, next_B) = our_loss(both, both.params)
    with torch.no_grad():
        theirs, (their_x_BSD, their_logits_BPV, their_next_B) = their_loss(both)
    close(ours, theirs)
    real_BS = both.batch["segments"] != 0
    close(np.asarray(x_BSD)[real_BS], their_x_BSD.numpy()[real_BS])
    close(logits_BPV[..., : both.config.vocab_size], their_logits_BPV)
    assert (next_B is None) == (their_next_B is None) == (layouts.layout_of(both.config) == "roberta-prelayernorm")
    if next_B is not None:
        close(next_B, their_next_B)


def test_gradients_are_equal(both):
    grads = jax.jit(jax.grad(lambda params: our_loss(both, params)[0]))(jax.tree.map(jnp.asarray, both.params))
    both.theirs.zero_grad()
    their_loss(both)[0].backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in both.theirs.named_parameters()}
    ours = tensors.to_hf(grads, both.config, both.pad_id)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_round_trip_is_exact(both):
    back = tensors.to_hf(both.params, both.config, both.pad_id)
    assert back.keys() == both.tensors.keys()
    for name, tensor in both.tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    again = tensors.from_hf(back, both.config, both.pad_id)
    jax.tree.map(np.testing.assert_array_equal, again, both.params)
    jax.tree.map(lambda ours, like: np.testing.assert_equal(ours.shape, like.shape), again, fresh(both.config))


def fresh(config):
    return bert.shapes(config)


def test_files_with_copies_of_tied_tensors_are_read(both):
    state = {name: tensor.numpy() for name, tensor in both.theirs.state_dict().items()}
    assert len(state) == len(both.tensors) + 2
    jax.tree.map(np.testing.assert_array_equal, tensors.from_hf(state, both.config, both.pad_id), both.params)
    copy = next(name for name in state if name.endswith("decoder.bias"))
    with pytest.raises(BadInput, match=f"{copy} differs"):
        tensors.from_hf(state | {copy: state[copy] + 1}, both.config, both.pad_id)


def test_files_with_tensorflow_names_are_read(both):
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in both.tensors.items()
    }
    jax.tree.map(np.testing.assert_array_equal, tensors.from_hf(old, both.config, both.pad_id), both.params)


def test_tensors_that_do_not_fit_are_named(both):
    name = next(name for name in both.tensors if "layer.1.attention.self.query.weight" in name)
    without = {key: tensor for key, tensor in both.tensors.items() if key != name}
    with pytest.raises(BadInput, match=f"missing.*{name}"):
        tensors.from_hf(without, both.config, both.pad_id)
    with pytest.raises(BadInput, match=r"unknown.*classifier\.weight"):
        tensors.from_hf(both.tensors | {"classifier.weight": np.zeros(2)}, both.config, both.pad_id)
    with pytest.raises(BadInput, match=rf"{name} has shape \(2, 64\), expected \(64, 64\)"):
        tensors.from_hf(both.tensors | {name: both.tensors[name][:2]}, both.config, both.pad_id)


def test_unsupported_models_are_refused():
    config = bert.Config(vocab_size=10, depth=2, embed_norm=False)
    with pytest.raises(BadInput, match="no Hugging Face layout"):
        layouts.layout_of(config)
    slim = dataclasses.replace(config, embed_norm=True, heads=(1, 2))
    with pytest.raises(BadInput, match="differ in width"):
        tensors.to_hf({}, slim, 0)
    theirs = transformers.BertConfig().to_dict()
    for wrong in ({"model_type": "gpt2"}, {"hidden_act": "relu"}, {"is_decoder": True}):
        with pytest.raises(BadInput, match="supported"):
            layouts.config_from_hf(theirs | wrong)


def test_untied_output_table_is_refused():
    config = bert.Config(60, depth=1, width=8, heads=1, head_size=8, mlp_dim=8, max_len=8, tied=False)
    with pytest.raises(BadInput, match="separate output table"):
        layouts.check(config)
