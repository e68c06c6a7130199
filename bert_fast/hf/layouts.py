"""Finds the Hugging Face layout that fits a model, and converts `config.json` in both directions.

Three layouts fit the models that we train, with the same logits and gradients:

    layout                LayerNorm   embedding LayerNorm   next-sentence head   transformers class
    bert                  post        yes                   yes                  BertForPreTraining
    megatron-bert         pre         no                    yes                  MegatronBertForPreTraining
    roberta-prelayernorm  pre         yes                   no                   RobertaPreLayerNormForMaskedLM

A fine-tuned model becomes a ...ForSequenceClassification, a ...ForTokenClassification or a ...ForQuestionAnswering. In
all three layouts, these heads compute the same as ours.
"""

from collections.abc import Mapping
from typing import Any

from bert_fast import BadInput
from bert_fast.bert import Config
from bert_fast.train.description import TaskHead

# Keyed by (norm, embed_norm).
ARRANGEMENTS = {("post", True): "bert", ("pre", False): "megatron-bert", ("pre", True): "roberta-prelayernorm"}
WITH_NEXT = ("bert", "megatron-bert")
CLASSES = {"bert": "Bert", "megatron-bert": "MegatronBert", "roberta-prelayernorm": "RobertaPreLayerNorm"}
# How the name of a transformers class with a task's head ends, by the kind of the head.
TASK_HEADS = {
    "classes": "ForSequenceClassification",
    "score": "ForSequenceClassification",
    "tags": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

SIZES = (
    "vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
    "max_position_embeddings",
)  # fmt: skip
# The values that transformers uses for missing keys. Google's small BERTs list only sizes.
ABSENT = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}
PAD_IDS = {"bert": 0, "megatron-bert": 0, "roberta-prelayernorm": 1}
# A file with any other value describes a model that is not supported. Newer files may omit all of these keys.
PLAIN = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "is_encoder_decoder": False,
}


def layout_of(config: Config) -> str:
    """The layout that fits a model. Raises BadInput for post-LN without an embedding LayerNorm: no layout has that."""
    if (config.norm, config.embed_norm) not in ARRANGEMENTS:
        raise BadInput(
            f"no Hugging Face layout has norm={config.norm!r} with embed_norm={config.embed_norm}: "
            "the model must be post-LN with an embedding LayerNorm, or pre-LN"
        )
    return ARRANGEMENTS[config.norm, config.embed_norm]


def check(config: Config, task: TaskHead | None = None):
    """Raises BadInput if no layout fits the model. task: the task whose head replaces the MLM head, if any."""
    layout_of(config)
    if not config.tied and task is None:
        raise BadInput(
            "the MLM head of this model has a separate output table: export a checkpoint of the last stage, "
            "whose head uses the embedding table"
        )
    if config.width % config.head_size or max(config.heads_L) * config.head_size > config.width:
        raise BadInput(
            f"no Hugging Face layout has {max(config.heads_L)} heads of size {config.head_size} at a width of "
            f"{config.width}: the width must be a multiple of head_size, and at least the heads' total width"
        )


def pad_id_of(theirs: Mapping[str, Any]) -> int:
    """The id of the padding token. RoBERTa's positions start at this id plus 1."""
    stated = theirs.get("pad_token_id")
    return PAD_IDS[theirs.get("model_type", ABSENT["model_type"])] if stated is None else stated


def config_from_hf(theirs: Mapping[str, Any]) -> Config:
    """The model of a Hugging Face `config.json`, with a next-sentence head if the layout has one.

    Raises BadInput, with the key that is missing, wrong, or not supported by our encoder.
    """
    if missing := [name for name in SIZES if name not in theirs]:
        raise BadInput(f"config.json lacks {', '.join(missing)}: expected the config.json of a BERT model")
    stated = {**ABSENT, **theirs}
    kind, activation = stated["model_type"], stated["hidden_act"]
    norms = {layout: arrangement for arrangement, layout in ARRANGEMENTS.items()}
    if not isinstance(kind, str) or kind not in norms:
        raise BadInput(f"model_type {kind!r} is not supported: it must be one of {', '.join(norms)}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise BadInput(f"hidden_act {activation!r} is not supported: it must be one of {', '.join(ACTIVATIONS)}")
    if type(pad_id := pad_id_of(stated)) is not int or pad_id < 0:
        raise BadInput(f"config.json: pad_token_id={pad_id!r}: expected a whole number of at least 0")
    for name, plain in PLAIN.items():
        if (value := theirs.get(name, plain)) not in (plain, None):
            raise BadInput(
                f"{name}={value!r} is not supported: expected {name}={plain!r}, or no {name}. Only encoders with all "
                "their heads and absolute positions are supported"
            )
    for name in (*SIZES, "type_vocab_size"):
        if type(stated[name]) is not int or stated[name] < 1:
            raise BadInput(f"config.json: {name}={stated[name]!r}: expected a whole number of at least 1")
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"):
        if type(stated[name]) not in (int, float) or not 0 <= stated[name] < 1:
            raise BadInput(f"config.json: {name}={stated[name]!r}: expected a number of at least 0 and below 1")
    width, heads = stated["hidden_size"], stated["num_attention_heads"]
    if width % heads:
        raise BadInput(f"config.json: hidden_size={width} is not a multiple of num_attention_heads={heads}")
    positions = stated["max_position_embeddings"] - position_shift(kind, pad_id_of(stated))
    if positions < 1:
        raise BadInput(
            f"config.json: max_position_embeddings={stated['max_position_embeddings']} leaves no positions: they start "
            f"at pad_token_id + 1 = {pad_id_of(stated) + 1}"
        )
    arrangement, embed_norm = norms[kind]
    return Config(
        vocab_size=stated["vocab_size"],
        depth=stated["num_hidden_layers"],
        width=width,
        heads=heads,
        head_size=width // heads,
        mlp_dim=stated["intermediate_size"],
        max_len=positions,
        type_count=stated["type_vocab_size"],
        norm=arrangement,
        embed_norm=embed_norm,
        activation=ACTIVATIONS[activation],
        pooler=kind in WITH_NEXT,
        dropout=stated["hidden_dropout_prob"],
        attention_dropout=stated["attention_probs_dropout_prob"],
        init_std=stated["initializer_range"],
        residual_init_std=stated["initializer_range"],
        norm_eps=stated["layer_norm_eps"],
    )


def position_shift(layout: str, pad_id: int) -> int:
    """The number of rows in the Hugging Face position table before the first token's row."""
    return pad_id + 1 if layout == "roberta-prelayernorm" else 0


def architecture(layout: str, mlm: bool, next_: bool) -> str:
    """The transformers class with these heads."""
    heads = {
        (True, True): "ForPreTraining",
        (True, False): "ForMaskedLM",
        (False, True): "ForNextSentencePrediction",
        (False, False): "Model",
    }
    return CLASSES[layout] + heads[mlm, next_]


def task_architecture(layout: str, task: TaskHead) -> str:
    """The transformers class with the head of a task."""
    return CLASSES[layout] + TASK_HEADS[task.kind]


def task_to_hf(task: TaskHead) -> dict[str, Any]:
    """The entries of `config.json` for a task's head. transformers makes the head as large as the number of labels."""
    labels = task.labels or {"score": ("score",), "span": ("start", "end")}[task.kind]
    problem = {"classes": "single_label_classification", "score": "regression"}.get(task.kind)
    names = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    return names | ({"problem_type": problem} if problem else {})


def config_to_hf(config: Config, class_name: str, dtype: str) -> dict[str, Any]:
    """The Hugging Face `config.json` of a model whose layers all have the same width.

    The inverse of `config_from_hf`, except for fields that only matter in training.
    config: must have the special ids of the vocabulary. dtype: the type of the weights.
    """
    layout = layout_of(config)
    pad, _, cls, sep, _ = config.special_ids
    ends = {"bos_token_id": cls, "eos_token_id": sep} if layout == "roberta-prelayernorm" else {}
    activations = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "architectures": [class_name],
        "model_type": layout,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads_L[0],
        "intermediate_size": config.mlp_dim_L[0],
        "hidden_act": activations[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "max_position_embeddings": config.max_len + position_shift(layout, pad),
        "type_vocab_size": config.type_count,
        "initializer_range": config.init_std,
        "layer_norm_eps": config.norm_eps,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "classifier_dropout": None,
        "pad_token_id": pad,
        **ends,
        "dtype": dtype,
    }
