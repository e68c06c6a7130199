"""Hugging Face's tensor names and ours: one table, read in both directions.

Axes: as in bert.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bert_fast import BadInput, bert, qkv
from bert_fast.bert import Config, Params
from bert_fast.hf.layouts import WITH_NEXT, layout_of, position_shift

# A row is (Hugging Face's name, our path, how the array changes). A name with {layer} stands for one tensor per layer;
# our leaf stacks them. `ours_from` and `theirs_from` make the changes.
Row = tuple[str, str, str]


def linear(theirs: str, ours: str, kernel: str = "matrix", bias: str = "same") -> tuple[Row, ...]:
    return (f"{theirs}.weight", f"{ours}/kernel", kernel), (f"{theirs}.bias", f"{ours}/bias", bias)


def norm(theirs: str, ours: str) -> tuple[Row, ...]:
    return (f"{theirs}.weight", f"{ours}/scale", "same"), (f"{theirs}.bias", f"{ours}/bias", "same")


def common(root: str, positions: str, head: str, head_norm: str) -> tuple[Row, ...]:
    """The rows that all layouts share, given a layout's own names for the encoder and the MLM head."""
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

# The head of a fine-tuned model, in place of the pre-training heads. Such a head can be written, but not read.
POOLED = (*linear("bert.pooler.dense", "task/pooler"), *linear("classifier", "task/output"))
SENTENCE_HEADS: dict[str, tuple[Row, ...]] = {
    "bert": POOLED,
    "megatron-bert": POOLED,
    "roberta-prelayernorm": (*linear("classifier.dense", "task/pooler"), *linear("classifier.out_proj", "task/output")),
}
TOKEN_HEADS = {"tags": linear("classifier", "task/output"), "span": linear("qa_outputs", "task/output")}

ROOTS = {"bert": "bert", "megatron-bert": "bert", "roberta-prelayernorm": "roberta_prelayernorm"}
BELOW = ("embeddings.", "encoder.", "pooler.", "LayerNorm.")  # prefixes of tensor names in a file without heads

# Some files hold copies of tied tensors. Each entry maps the name of a copy to the name of the original.
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.decoder.weight": "roberta_prelayernorm.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}


def today(name: str) -> str:
    """A tensor's current name. The first released files use TensorFlow's gamma and beta for LayerNorm."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def full_name(name: str, layout: str) -> str:
    """A tensor's name in the table. In a file without heads, names lack the prefix of the encoder."""
    name = today(name)
    return f"{ROOTS[layout]}.{name}" if name.startswith(BELOW) else name


def constants(config: Config, pad_id: int) -> dict[str, np.ndarray]:
    """Tensors that older files store, although they follow from the config."""
    layout = layout_of(config)
    positions = np.arange(config.max_len + position_shift(layout, pad_id), dtype=np.int64)[None]
    embeddings = f"{ROOTS[layout]}.embeddings"
    return {f"{embeddings}.position_ids": positions, f"{embeddings}.token_type_ids": np.zeros_like(positions)}


def rows_of(config: Config, task: str | None = None) -> tuple[Row, ...]:
    """The rows of the table for a model. The next-sentence head is left out if the model or the layout has none.

    task: the kind of a fine-tuned model's head, as in `TaskHead`; it replaces the pre-training heads.
    """
    layout = layout_of(config)
    if task is not None:
        trunk = tuple(row for row in LAYOUTS[layout] if not row[1].startswith("mlm/"))
        return trunk + (TOKEN_HEADS[task] if task in TOKEN_HEADS else SENTENCE_HEADS[layout])
    return LAYOUTS[layout] + (NEXT if config.pooler and layout in WITH_NEXT else ())


def names_of(name: str, path: str, config: Config) -> list[str]:
    """Hugging Face's names for one of our leaves: one per layer if it is stacked."""
    return [name.format(layer=i) for i in range(config.depth)] if path.startswith("layers/") else [name]


def names_at(prefix: str, config: Config) -> set[str]:
    """Hugging Face's names for all of our leaves whose path starts with `prefix`."""
    rows = rows_of(config)
    return {name for theirs, path, _ in rows if path.startswith(prefix) for name in names_of(theirs, path, config)}


def leaf_at(tree: Any, path: str) -> Any:
    """The leaf of a tree at a path such as `mlm/dense/kernel`."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def ours_from(change: str, array: np.ndarray, config: Config, pad_id: int) -> np.ndarray:
    """A Hugging Face tensor in our form; for a stacked leaf, the part of one layer."""
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
    """Hugging Face's tensors as our parameters, with their types unchanged. Table rows past the vocabulary are zero.

    pad_id: the id of the padding token; RoBERTa's positions start at the next number.

    Raises BadInput if a tensor is missing, unknown or of the wrong shape, or if a tied copy or a constant differs.
    """
    layout, rows = layout_of(config), rows_of(config)
    tensors = {full_name(name, layout): array for name, array in tensors.items()}
    needed = {name for theirs, path, _ in rows for name in names_of(theirs, path, config)}
    tied = {copy: of for copy, of in TIED.items() if copy in tensors and of in needed}
    for copy, of in tied.items():
        tensors.setdefault(of, tensors[copy])
    fixed = constants(config, pad_id)
    missing, extra = needed - tensors.keys(), tensors.keys() - needed - tied.keys() - fixed.keys()
    if missing or extra:
        raise BadInput(
            f"tensors do not fit the layout {layout} with {config.depth} layers: missing {listed(missing)}; unknown "
            f"{listed(extra)}: does config.json belong to this file? Task heads are not read: save the encoder, or the "
            "model with BERT's pre-training heads"
        )
    for copy, of in tied.items():
        if not np.array_equal(tensors[copy], tensors[of]):
            raise BadInput(f"{copy} differs from {of}: only a tied output table is supported")
    for name in fixed.keys() & tensors.keys():
        if not np.array_equal(tensors[name], fixed[name]):
            raise BadInput(
                f"{name} is not the constant of shape {fixed[name].shape} that every model has (its shape is "
                f"{tensors[name].shape}): leave it out"
            )
    params: dict[str, Any] = {}
    shapes = jax.eval_shape(lambda: qkv.in_layers(qkv.separate, bert.init(config, jax.random.key(0))))
    for theirs, path, change in rows:
        names = names_of(theirs, path, config)
        ours = leaf_at(shapes, path).shape[1 if path.startswith("layers/") else 0 :]
        shape = theirs_from(change, np.broadcast_to(np.float32(0), ours), config, pad_id).shape
        for name in names:
            if tensors[name].shape != shape:
                raise BadInput(f"{name} has shape {tensors[name].shape}, expected {shape} from config.json")
        leaves = [ours_from(change, tensors[name], config, pad_id) for name in names]
        *parents, last = path.split("/")
        tree = params
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[last] = np.stack(leaves) if path.startswith("layers/") else leaves[0]
    return qkv.in_layers(qkv.join, params)


def listed(names) -> str:
    """The first eight names in order, and how many more there are; "none" if there are none."""
    first = sorted(names)[:8]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more if first else "none"


def widen(params: Params, config: Config) -> tuple[Params, Config]:
    """An equivalent model whose layers all have the same width. Added entries are zero. Returns NumPy arrays.

    Each layer gets as many heads as fill the model's width, and as many neurons as the widest layer has.
    """
    heads, mlp_dim = config.width // config.head_size, max(config.mlp_dim_L)
    layers = qkv.separate(params["layers"])

    def only(name: str, leaf: str, axis: int, counts_L, size: int):
        """Resizes a stacked leaf to `size` entries along an axis: each layer's own entries, then zeros."""
        array = np.asarray(layers[name][leaf])
        result = np.zeros((*array.shape[:axis], size, *array.shape[axis + 1 :]), array.dtype)
        for layer, count in enumerate(counts_L):
            kept = (layer, *[slice(None)] * (axis - 1), slice(count))
            result[kept] = array[kept]
        layers[name] = {**layers[name], leaf: result}

    for name in qkv.NAMES:
        only(name, "kernel", 2, config.heads_L, heads)
        only(name, "bias", 1, config.heads_L, heads)
    only("attention_output", "kernel", 1, config.heads_L, heads)
    only("mlp_hidden", "kernel", 2, config.mlp_dim_L, mlp_dim)
    only("mlp_hidden", "bias", 1, config.mlp_dim_L, mlp_dim)
    only("mlp_output", "kernel", 1, config.mlp_dim_L, mlp_dim)
    return {**params, "layers": qkv.join(layers)}, dataclasses.replace(config, heads=heads, mlp_dim=mlp_dim)


def to_hf(params: Params, config: Config, pad_id: int, task: str | None = None) -> dict[str, np.ndarray]:
    """Our parameters as Hugging Face's tensors, without tied copies. Inverse of `from_hf`, except for a `task` head.

    The next-sentence head is left out if the layout has none. Raises BadInput if layers differ in width, or if their
    heads do not fill the model's width. No layout has such layers; `widen` makes them equal.
    """
    if len({config.width // config.head_size, *config.heads_L}) > 1 or len(set(config.mlp_dim_L)) > 1:
        raise BadInput(f"layers differ in width (heads {config.heads_L}, mlp_dim {config.mlp_dim_L}): widen them first")
    tensors, params = {}, qkv.in_layers(qkv.separate, params)
    for theirs, path, change in rows_of(config, task):
        leaf = np.asarray(leaf_at(params, path))
        names = names_of(theirs, path, config)
        for name, array in zip(names, leaf if path.startswith("layers/") else [leaf], strict=True):
            tensors[name] = np.ascontiguousarray(theirs_from(change, array, config, pad_id))
    return tensors
