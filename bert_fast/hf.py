"""Hugging Face's tensor names and ours: one table, read in both directions.

Three of their layouts hold what we train, and give the same logits and gradients:

    layout                LayerNorm   embedding LayerNorm   next-sentence head   their class
    bert                  post        yes                   yes                  BertForPreTraining
    megatron-bert         pre         no                    yes                  MegatronBertForPreTraining
    roberta-prelayernorm  pre         yes                   no                   RobertaPreLayerNormForMaskedLM

Axes: as in bert.py.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from bert_fast import BadInput, bert
from bert_fast.bert import Config, Params

# A row is (their name, our path, how the array changes). A name with {layer} stands for one tensor a layer;
# ours are then stacked. Changes: see `ours_from` and `theirs_from`.
Row = tuple[str, str, str]


def linear(theirs: str, ours: str, kernel: str = "matrix", bias: str = "same") -> tuple[Row, ...]:
    return (f"{theirs}.weight", f"{ours}/kernel", kernel), (f"{theirs}.bias", f"{ours}/bias", bias)


def norm(theirs: str, ours: str) -> tuple[Row, ...]:
    return (f"{theirs}.weight", f"{ours}/scale", "same"), (f"{theirs}.bias", f"{ours}/bias", "same")


def common(root: str, positions: str, head: str, head_norm: str) -> tuple[Row, ...]:
    """What all layouts have, below their name of the encoder and of the MLM head."""
    layer = f"{root}.encoder.layer.{{layer}}"
    return (
        (f"{root}.embeddings.word_embeddings.weight", "embed/word", "vocabulary"),
        (f"{root}.embeddings.position_embeddings.weight", "embed/position", positions),
        (f"{root}.embeddings.token_type_embeddings.weight", "embed/type", "same"),
        *linear(f"{layer}.attention.self.query", "layers/query", "to_heads", "heads"),
        *linear(f"{layer}.attention.self.key", "layers/key", "to_heads", "heads"),
        *linear(f"{layer}.attention.self.value", "layers/value", "to_heads", "heads"),
        *linear(f"{layer}.attention.output.dense", "layers/attention_output", "from_heads"),
        *linear(f"{layer}.intermediate.dense", "layers/mlp_hidden"),
        *linear(f"{layer}.output.dense", "layers/mlp_output"),
        *linear(f"{head}.dense", "mlm/dense"),
        *norm(f"{head}.{head_norm}", "mlm/norm"),
    )


NEXT = (*linear("bert.pooler.dense", "next/pooler"), *linear("cls.seq_relationship", "next/next"))

LAYOUTS: dict[str, tuple[Row, ...]] = {
    "bert": (
        *common("bert", "same", "cls.predictions.transform", "LayerNorm"),
        *norm("bert.embeddings.LayerNorm", "embed/norm"),
        *norm("bert.encoder.layer.{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *norm("bert.encoder.layer.{layer}.output.LayerNorm", "layers/mlp_norm"),
        ("cls.predictions.bias", "mlm/bias", "vocabulary"),
    ),
    "megatron-bert": (
        *common("bert", "same", "cls.predictions.transform", "LayerNorm"),
        *norm("bert.encoder.layer.{layer}.attention.ln", "layers/attention_norm"),
        *norm("bert.encoder.layer.{layer}.ln", "layers/mlp_norm"),
        *norm("bert.encoder.ln", "final_norm"),
        ("cls.predictions.bias", "mlm/bias", "vocabulary"),
    ),
    "roberta-prelayernorm": (
        *common("roberta_prelayernorm", "positions", "lm_head", "layer_norm"),
        *norm("roberta_prelayernorm.embeddings.LayerNorm", "embed/norm"),
        *norm("roberta_prelayernorm.encoder.layer.{layer}.attention.LayerNorm", "layers/attention_norm"),
        *norm("roberta_prelayernorm.encoder.layer.{layer}.intermediate.LayerNorm", "layers/mlp_norm"),
        *norm("roberta_prelayernorm.LayerNorm", "final_norm"),
        ("lm_head.bias", "mlm/bias", "vocabulary"),
    ),
}

# By (norm, embed_norm).
ARRANGEMENTS = {("post", True): "bert", ("pre", False): "megatron-bert", ("pre", True): "roberta-prelayernorm"}

# Copies that some files carry beside what they are tied to, and a constant that older ones carry.
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.decoder.weight": "roberta_prelayernorm.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
CONSTANT = ("bert.embeddings.position_ids", "roberta_prelayernorm.embeddings.position_ids")


def layout_of(config: Config) -> str:
    """The layout that holds a model. Raises BadInput for post-LN without an embedding LayerNorm: none does."""
    if (config.norm, config.embed_norm) not in ARRANGEMENTS:
        raise BadInput(
            f"no Hugging Face layout has norm={config.norm!r} with embed_norm={config.embed_norm}: "
            "it must be post-LN with an embedding LayerNorm, or pre-LN"
        )
    return ARRANGEMENTS[config.norm, config.embed_norm]


def config_from_hf(theirs: Mapping[str, Any], names: Iterable[str]) -> Config:
    """The model of their `config.json`; `names` are those of its tensors: they say whether there is a
    next-sentence head.

    Raises BadInput for what our trunk does not compute.
    """
    kind, activation = theirs["model_type"], theirs["hidden_act"]
    norms = {layout: arrangement for arrangement, layout in ARRANGEMENTS.items()}
    activations = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    if kind not in norms:
        raise BadInput(f"model_type {kind!r} is not supported: it must be one of {', '.join(norms)}")
    if activation not in activations:
        raise BadInput(f"hidden_act {activation!r} is not supported: it must be one of {', '.join(activations)}")
    # Absent from newer files, where it has only this value.
    if theirs.get("position_embedding_type", "absolute") != "absolute" or theirs.get("is_decoder", False):
        raise BadInput("only encoders with absolute position embeddings are supported")
    arrangement, embed_norm = norms[kind]
    shift = theirs["pad_token_id"] + 1 if kind == "roberta-prelayernorm" else 0
    return Config(
        vocab_size=theirs["vocab_size"],
        depth=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        head_size=theirs["hidden_size"] // theirs["num_attention_heads"],
        hidden=theirs["intermediate_size"],
        max_len=theirs["max_position_embeddings"] - shift,
        type_count=theirs["type_vocab_size"],
        norm=arrangement,
        embed_norm=embed_norm,
        activation=activations[activation],
        pooler="cls.seq_relationship.weight" in names,
        dropout=theirs["hidden_dropout_prob"],
        attention_dropout=theirs["attention_probs_dropout_prob"],
        init_std=theirs["initializer_range"],
        residual_init_std=theirs["initializer_range"],
        norm_eps=theirs["layer_norm_eps"],
    )


def rows_of(config: Config) -> tuple[Row, ...]:
    """The rows of the table that a model has; a next-sentence head is left out where the layout has none."""
    layout = layout_of(config)
    return LAYOUTS[layout] + (NEXT if config.pooler and layout != "roberta-prelayernorm" else ())


def names_of(name: str, path: str, config: Config) -> list[str]:
    """Their names of one of our leaves, one a layer where it is stacked."""
    return [name.format(layer=i) for i in range(config.depth)] if path.startswith("layers/") else [name]


def leaf_at(tree, path: str):
    """The leaf of a tree at a path such as `mlm/dense/kernel`."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def ours_from(change: str, array: np.ndarray, config: Config, pad_id: int) -> np.ndarray:
    """One of their tensors as we hold it (of one layer)."""
    split = (max(config.heads_L), config.head_size)
    match change:
        case "matrix":  # theirs is [out, in]
            return array.T
        case "to_heads":
            return array.T.reshape(-1, *split)
        case "from_heads":
            return array.T.reshape(*split, -1)
        case "heads":
            return array.reshape(split)
        case "vocabulary":
            return np.pad(array, [(0, config.table_rows - len(array))] + [(0, 0)] * (array.ndim - 1))
        case "positions":  # RoBERTa counts from pad_id + 1
            return array[pad_id + 1 :]
        case _:
            return array


def theirs_from(change: str, array: np.ndarray, config: Config, pad_id: int) -> np.ndarray:
    """The inverse of `ours_from`."""
    match change:
        case "matrix":
            return array.T
        case "to_heads":
            return array.reshape(config.width, -1).T
        case "from_heads":
            return array.reshape(-1, config.width).T
        case "heads":
            return array.reshape(-1)
        case "vocabulary":
            return array[: config.vocab_size]
        case "positions":
            return np.pad(array, [(pad_id + 1, 0), (0, 0)])
        case _:
            return array


def from_hf(tensors: Mapping[str, np.ndarray], config: Config, pad_id: int) -> Params:
    """Their tensors as our parameters, in the type that they have; rows of padded ids are zero.

    pad_id: the id of the padding token, from which RoBERTa's positions count. Raises BadInput where
    tensors are missing, left over, or of another shape, and where a tied copy differs.
    """
    # As TensorFlow named LayerNorm's parameters, which the first released checkpoints keep.
    tensors = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): array
        for name, array in tensors.items()
    }
    rows = rows_of(config)
    needed = {name for theirs, path, _ in rows for name in names_of(theirs, path, config)}
    missing, extra = needed - tensors.keys(), tensors.keys() - needed - TIED.keys() - set(CONSTANT)
    if missing or extra:
        raise BadInput(
            f"tensors do not fit the layout {layout_of(config)} of {config.depth} layers: missing "
            f"{sorted(missing) or 'none'}, not known {sorted(extra) or 'none'}: is the configuration that of this file?"
        )
    for copy in TIED.keys() & tensors.keys():
        if not np.array_equal(tensors[copy], tensors[TIED[copy]]):
            raise BadInput(f"{copy} differs from {TIED[copy]}: only a tied output table is supported")
    params: dict[str, Any] = {}
    shapes = jax.eval_shape(lambda: bert.init(config, jax.random.key(0)))
    for theirs, path, change in rows:
        names = names_of(theirs, path, config)
        ours = leaf_at(shapes, path).shape[1 if path.startswith("layers/") else 0 :]
        shape = theirs_from(change, np.broadcast_to(np.float32(0), ours), config, pad_id).shape
        for name in names:
            if tensors[name].shape != shape:
                raise BadInput(f"{name} has shape {tensors[name].shape}, expected {shape} by the configuration")
        leaves = [ours_from(change, tensors[name], config, pad_id) for name in names]
        *parents, last = path.split("/")
        tree = params
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[last] = np.stack(leaves) if path.startswith("layers/") else leaves[0]
    return params


def to_hf(params: Params, config: Config, pad_id: int) -> dict[str, np.ndarray]:
    """Our parameters as their tensors, without tied copies. Inverse of `from_hf`.

    A next-sentence head is left out where the layout has none. Raises BadInput where layers differ
    in width, or where the MLM head has a table of its own: their layouts have no place for either.
    """
    if not config.tied:
        raise BadInput(
            "the MLM head of this model has a table of its own: export a step of the last stage, which has not"
        )
    if len(set(config.heads_L)) > 1 or len(set(config.hidden_L)) > 1:
        raise BadInput(f"layers differ in width (heads {config.heads_L}, hidden {config.hidden_L}): widen them first")
    tensors = {}
    for theirs, path, change in rows_of(config):
        leaf = np.asarray(leaf_at(params, path))
        names = names_of(theirs, path, config)
        for name, array in zip(names, leaf if path.startswith("layers/") else [leaf], strict=True):
            tensors[name] = np.ascontiguousarray(theirs_from(change, array, config, pad_id))
    return tensors
