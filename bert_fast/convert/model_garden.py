"""Converts experiment files of TensorFlow Model Garden's token dropping, official/projects/token_dropping.

Defaults are from `token_drop_bert_pretraining` in the project's experiment_configs.py. configs/token_drop.py has the
same defaults.
"""

from bert_fast.convert.bing_bert import activation, widths
from bert_fast.convert.conversion import Conversion
from bert_fast.convert.section import ConfigSection
from bert_fast.data.masking import prediction_slots

RECORDS = "how TFRecords are read; here, `bert-fast prepare` makes shards"
READING = (
    *("input_path", "is_training", "drop_remainder", "use_v2_feature_names", "shuffle_buffer_size", "cycle_length"),
    *("block_length", "deterministic", "sharding", "cache", "file_type", "seed", "prefetch_buffer_size", "tfds_name"),
    *("tfds_split", "tfds_data_dir", "enable_tf_data_service", "tf_data_service_address", "tf_data_service_job_name"),
)
LOOP = "how Orbit's loop runs"
TRAINER = {
    **dict.fromkeys(("steps_per_loop", "train_tf_while_loop", "train_tf_function", "eval_tf_function"), LOOP),
    **dict.fromkeys(("allow_tpu_summary", "eval_tf_while_loop", "continuous_eval_timeout"), LOOP),
    **dict.fromkeys(
        ("loss_upper_bound", "recovery_begin_steps", "recovery_max_trials"),
        "here, the guard skips bad steps and goes back to a checkpoint (--config.guard)",
    ),
    **dict.fromkeys(
        ("best_checkpoint_export_subdir", "best_checkpoint_eval_metric", "best_checkpoint_metric_comp"),
        "here, the newest checkpoints are kept, not the best",
    ),
    "preemption_on_demand_checkpoint": "always on: SIGTERM saves the step",
    "validation_summary_subdir": LOOP,
}
ALLOWED, DENIED = [100, 101, 102, 103], [0]


def convert(file: ConfigSection, result: Conversion):
    """Reads the whole file into the result."""
    result.base = "token_drop"
    task = file.part("task")
    seq_len = train_data(task.part("train_data"), result)
    model = task.part("model")
    heads = model.take("cls_heads")
    if heads is not None:
        objective = "mlm+nsp" if any(head.get("name") == "next_sentence" for head in heads) else "mlm"
        result.set("data.objective", objective, model.name("cls_heads"))
        result.set("model.pooler", objective == "mlm+nsp", model.name("cls_heads"))
        if heads:
            result.leave(model.name("cls_heads"), heads, "here, the head has no dropout and is as wide as the model")
    encoder(model.part("encoder"), seq_len, result)
    validation = task.part("validation_data")
    steps_of_evaluation = trainer(file.part("trainer"), result)
    validation_data(validation, steps_of_evaluation, result)
    if start := task.take("init_checkpoint", ""):
        result.leave(task.name("init_checkpoint"), start, "import a Hugging Face folder, then --config.init=FOLDER")
    task.leave({"name": "the run folder's name, --workdir", "scale_loss": "the loss is the mean over the batch"})
    runtime = file.part("runtime")
    if runtime.take("mixed_precision_dtype") in ("bfloat16", "float16"):
        result.set("model.dtype", "bfloat16", runtime.name("mixed_precision_dtype"))
    runtime.leave(dict.fromkeys(tuple(runtime.values), "JAX finds the devices; see --config.mesh and --distributed"))
    for section in (model, task, file):
        section.end()


def train_data(section: ConfigSection, result: Conversion) -> int:
    """Returns the sequence length."""
    seq_len = int(section.number("seq_length", 512))
    result.set("phases", f"{seq_len}:1", section.name("seq_length"))
    section.set("global_batch_size", "batch_size")
    predictions = section.number("max_predictions_per_seq")
    if predictions is not None and abs(predictions - prediction_slots(seq_len)) > 1:
        share = round(predictions / seq_len, 4)
        result.set("data.masked_share", share, section.name("max_predictions_per_seq"))
    elif predictions is not None:
        reason = f"here, {prediction_slots(seq_len)} are predicted: 15 % of {seq_len} (--config.data.masked_share)"
        result.leave(section.name("max_predictions_per_seq"), predictions, reason)
    inputs(section, result)
    return seq_len


def inputs(section: ConfigSection, result: Conversion):
    """Reads the rest of a data section."""
    if section.take("use_position_id", False):
        result.leave(section.name("use_position_id"), True, "here, positions restart with each text of mlm_packed")
    section.leave({"use_next_sentence_label": "follows from task.model.cls_heads (--config.data.objective)"})
    section.leave(dict.fromkeys(READING, RECORDS))
    section.end()


def validation_data(section: ConfigSection, steps: int | None, result: Conversion):
    size = section.number("global_batch_size")
    if size:
        result.set("eval.batch_size", size, section.name("global_batch_size"))
    if size and steps and steps > 0:
        result.set("eval.examples", steps * size, "trainer.validation_steps x validation_data.global_batch_size")
    section.set("seq_length", "eval.seq_len")
    section.leave({"max_predictions_per_seq": "follows from --config.eval.masked_share"})
    inputs(section, result)


def trainer(section: ConfigSection, result: Conversion) -> int | None:
    """Returns the number of batches in an evaluation."""
    if "steps" not in result.changes:
        section.set("train_steps", "steps")
    section.set("checkpoint_interval", "checkpoint.every")
    section.set("max_to_keep", "checkpoint.keep")
    section.set("validation_interval", "eval.every")
    section.set("summary_interval", "log_every")
    steps = section.number("validation_steps")
    optimization = section.part("optimizer_config")
    optimizer(optimization.part("optimizer"), result)
    learning_rate(optimization.part("learning_rate"), result)
    warmup = optimization.part("warmup")
    kind = warmup.take("type", "polynomial")
    climb = warmup.part(kind)
    climb.set("warmup_steps", "learning_rate.warmup_steps")
    climb.set("warmup_learning_rate", "learning_rate.start")
    if climb.number("power", 1) != 1:
        result.leave(climb.name("power"), "not 1", "here, the rate climbs linearly")
    if ema := optimization.take("ema"):
        result.leave(optimization.name("ema"), ema, "averaging weights is not supported")
    section.leave(TRAINER)
    for part in (climb, warmup, optimization, section):
        part.end()
    return steps


def optimizer(section: ConfigSection, result: Conversion):
    kind = section.take("type")
    names = {"adamw": "adamw", "adamw_experimental": "adamw", "lamb": "lamb"}
    if kind in names:
        result.set("optimizer.name", names[kind], section.name("type"))
    elif kind:
        result.leave(section.name("type"), kind, "not supported: use adamw, lamb or muon (--config.optimizer.name)")
    params = section.part(kind) if kind else ConfigSection({}, result)
    for theirs, ours in (("beta_1", "b1"), ("beta_2", "b2"), ("epsilon", "eps"), ("weight_decay_rate", "weight_decay")):
        params.set(theirs, f"optimizer.{ours}")
    params.set("gradient_clip_norm", "optimizer.clip_norm")
    params.set("global_clipnorm", "optimizer.clip_norm")
    excluded = "here, weight decay and the trust ratio are not applied to biases and LayerNorms"
    params.leave(dict.fromkeys(("exclude_from_weight_decay", "include_in_weight_decay"), excluded))
    params.leave({"exclude_from_layer_adaptation": excluded, "amsgrad": "AMSGrad is not supported", "name": "a label"})
    section.leave(dict.fromkeys(tuple(section.values), f"the optimizer is {kind}"))
    params.end()


def learning_rate(section: ConfigSection, result: Conversion):
    kind = section.take("type")
    params = section.part(kind) if kind else ConfigSection({}, result)
    if kind == "polynomial":
        params.set("initial_learning_rate", "learning_rate.peak")
        params.set("end_learning_rate", "learning_rate.end")
        power = params.number("power", 1.0)
        result.set("learning_rate.decay", "linear" if power == 1 else "polynomial", params.name("power"))
        result.set("learning_rate.power", power, params.name("power"))
        over, steps = params.number("decay_steps"), result.changes.get("steps")
        if over and steps and over != steps.value:
            result.leave(
                params.name("decay_steps"), over, f"here, the rate falls over all {steps.value} steps of a run"
            )
        if params.take("cycle", False):
            result.leave(params.name("cycle"), True, "here, the rate falls only once")
        params.leave({"offset": "here, the rate falls from step 0", "name": "a label"})
        params.end()
    elif kind:
        result.leave(section.name("type"), kind, "no such schedule here: see --config.learning_rate.decay")
        params.leave(dict.fromkeys(tuple(params.values), f"belongs to {kind}"))
    section.leave(dict.fromkeys(tuple(section.values), f"the schedule is {kind}"))


def encoder(section: ConfigSection, seq_len: int, result: Conversion):
    kind = section.take("type", "any")
    params = section.part(kind)
    for theirs, ours in (
        ("num_layers", "depth"),
        ("intermediate_size", "mlp_dim"),
        ("dropout_rate", "dropout"),
        ("attention_dropout_rate", "attention_dropout"),
        ("max_position_embeddings", "max_len"),
        ("type_vocab_size", "type_count"),
        ("initializer_range", "init_std"),
    ):
        params.set(theirs, f"model.{ours}")
    widths(params.number("hidden_size"), params.number("num_attention_heads"), params, result)
    activation(params, "hidden_activation", "gelu_tanh", result)  # `_approx_gelu` in encoder.py
    if (first := params.take("norm_first")) is not None:
        result.set("model.norm", "pre" if first else "post", params.name("norm_first"))
    if kind == "any":
        result.add_method("token_drop", section.name("type"))
        scores(params, seq_len, result)
    else:
        result.set("methods", "", section.name("type"))
    params.leave(
        {
            "vocab_size": "the vocabulary comes from the shards: prepare --vocab",
            "embedding_size": "embeddings are as wide as the model here",
            **dict.fromkeys(
                ("output_range", "return_all_encoder_outputs", "return_attention_scores"), "for fine-tuning"
            ),
        }
    )
    params.end()
    section.leave(dict.fromkeys(tuple(section.values), f"the encoder is {kind}"))


def scores(params: ConfigSection, seq_len: int, result: Conversion):
    """Token dropping itself: which tokens are kept, and how many."""
    kept = params.number("token_keep_k", 256)  # a number of tokens there, a share here
    result.set("token_drop.keep", round(kept / seq_len, 6), f"{params.name('token_keep_k')} / seq_length")
    params.set("token_loss_init_value", "token_drop.start")
    params.set("token_loss_beta", "token_drop.beta")
    for key, usual in (("token_allow_list", ALLOWED), ("token_deny_list", DENIED)):
        ids = list(params.take(key, usual))
        if sorted(ids) == usual:
            reason = "the same tokens are chosen here, by the vocabulary: special tokens are kept first, [PAD] last"
        else:
            reason = "here, only special tokens are always kept first, and only [PAD] last: other ids cannot be listed"
        result.leave(params.name(key), ids, reason)
    reason = (
        "if an id occurs repeatedly in a batch, Model Garden uses one of its losses; here, the mean of its losses is "
        "used, unless --config.token_drop.repeats=last_write is set"
    )
    result.leave("update_token_importance of routing.py", "last write", reason)
