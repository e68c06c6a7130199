"""Converts the model file of DeepSpeedExamples' bing_bert: the model, the steps and the learning rate.

`deepspeed_train.py` of bing_bert reads this file in addition to DeepSpeed's config. The schedule of the learning rate
is `warmup_linear_decay_exp` in bing_bert's pytorch_pretrained_bert/optimization.py.
"""

from bert_fast import BadInput
from bert_fast.convert.conversion import Conversion
from bert_fast.convert.section import ConfigSection

FILES = "where bing_bert finds its data; here, `bert-fast prepare` and --config.data.dir"
TRAINING = {
    "num_epochs": "the number of steps decides when a run ends",
    "async_worker": "how bing_bert reads its files",
    "lr_offset": "no constant is added to the rate here",
}


def convert(file: ConfigSection, result: Conversion):
    """Reads the whole file into the result.

    In bing_bert, each sequence length in the file is a separate run. Only the run of the first length is converted.
    """
    model(file.part("bert_model_config"), result)
    length, training = "", file.part("training")
    if "mixed_seq_training" in file:
        runs = file.part("mixed_seq_training")
        if not runs.values:
            raise BadInput("mixed_seq_training is empty: expected a group of settings for each length")
        length = next(iter(runs.values))
        training = runs.part(length)
        runs.leave(dict.fromkeys(tuple(runs.values), "a separate run: start it with --config.init=RUN and this length"))
    if length:
        result.set("phases", f"{int(length)}:1", "mixed_seq_training")
        result.set("eval.seq_len", min(128, int(length)), "mixed_seq_training")
    steps = int(training.number("total_training_steps", 0))
    if steps and "steps" not in result.changes:
        result.set("steps", steps, training.name("total_training_steps"))
    if (share := training.number("warmup_proportion")) is not None and steps:
        result.set("learning_rate.warmup_steps", round(share * steps), training.name("warmup_proportion"))
    training.set("learning_rate", "learning_rate.peak")
    if "decay_rate" in training:
        result.set("learning_rate.decay", "exponential", training.name("decay_rate"))
    training.set("decay_rate", "learning_rate.rate")
    training.set("decay_step", "learning_rate.interval")
    training.set("num_workers", "data.workers")
    training.leave(TRAINING)
    training.end()
    for key in ("data", "validation"):
        section = file.part(key)
        section.leave(dict.fromkeys(tuple(section.values), FILES))
    file.leave(
        dict.fromkeys(("bert_token_file", "bert_model_file"), "the vocabulary comes from the shards: prepare --vocab")
    )
    file.leave({"name": "the run folder's name, --workdir"})
    file.end()


def model(section: ConfigSection, result: Conversion):
    width, heads = section.number("hidden_size"), section.number("num_attention_heads")
    section.leave(
        {"vocab_size_or_config_json_file": "deepspeed_train.py replaces it; the vocabulary comes from the shards"}
    )
    section.set("num_hidden_layers", "model.depth")
    section.set("intermediate_size", "model.mlp_dim")
    section.set("hidden_dropout_prob", "model.dropout")
    section.set("attention_probs_dropout_prob", "model.attention_dropout")
    section.set("max_position_embeddings", "model.max_len")
    section.set("type_vocab_size", "model.type_count")
    section.set("initializer_range", "model.init_std")
    widths(width, heads, section, result)
    activation(section, "hidden_act", "gelu", result)
    section.end()


def widths(width, heads, section: ConfigSection, result: Conversion):
    if width:
        result.set("model.width", width, section.name("hidden_size"))
    if heads:
        result.set("model.heads", heads, section.name("num_attention_heads"))
    if width and heads:
        result.set("model.head_size", int(width) // int(heads), f"{section.path}: hidden_size / num_attention_heads")


def activation(section: ConfigSection, key: str, gelu: str, result: Conversion):
    """Sets the activation. gelu: the activation of this project that the source project calls "gelu"."""
    value = section.take(key)
    if value == "gelu":
        result.set("model.activation", gelu, section.name(key))
    elif value:
        result.leave(section.name(key), value, "not supported: use gelu or gelu_tanh (--config.model.activation)")
