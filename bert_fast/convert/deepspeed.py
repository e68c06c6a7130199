"""DeepSpeed's config: batches, optimizer, schedule, precision, progressive layer dropping and random-LTD.

Defaults come from microsoft/DeepSpeed 0.9: deepspeed/runtime/constants.py, config.py and lr_schedules.py, and the
arguments of `FusedAdam` and `FusedLamb`.
"""

import numpy as np

from bert_fast import BadInput
from bert_fast.convert.conversion import Conversion
from bert_fast.convert.section import ConfigSection

MARKS = ("train_batch_size", "train_micro_batch_size_per_gpu", "optimizer", "zero_optimization", "data_efficiency")

SUMS = "how gradients are summed over GPUs; here, XLA does that"
MEASURES = "what is measured or printed; here, every row of metrics.jsonl has times, tokens and FLOPs"
MEMORY = "saves memory on GPUs; here, --config.mesh.fsdp=N divides parameters and moments over N devices"
LOSS_SCALE = "loss scaling is for float16; bfloat16 has the range of float32"
NOT_HERE = "has no equivalent here"
REASONS = {
    **dict.fromkeys(("prescale_gradients", "gradient_predivide_factor", "fp32_allreduce", "sparse_gradients"), SUMS),
    **dict.fromkeys(("communication_data_type", "disable_allgather"), SUMS),
    **dict.fromkeys(("wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler"), MEASURES),
    **dict.fromkeys(("comms_logger", "csv_monitor"), MEASURES),
    **dict.fromkeys(
        ("sparse_attention", "compression_training", "elasticity", "autotuning", "amp", "nebula"), NOT_HERE
    ),
    **dict.fromkeys(("aio", "pipeline", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), MEMORY),
    "activation_checkpointing": "recomputes activations to save memory; here, --config.model.recompute does that",
    "curriculum_learning": "here, lengths that grow are written as --config.phases, such as 64:0.5,128:0.5",
    "vocabulary_size": "the vocabulary comes from the shards",
    "dataloader_drop_last": "here, a batch at the end of an epoch continues with the next epoch",
    "checkpoint": "how files are written; here, --config.checkpoint",
}
ADAMS = ("adam", "adamw", "fusedadam", "cpuadam", "onebitadam", "zerooneadam")
LAMBS = ("lamb", "fusedlamb", "onebitlamb")
TRUST = "here, the trust ratio is unbounded, and is not applied to biases and LayerNorms"
OPTIMIZER_REASONS = {
    "adam_w_mode": "here, weight decay is always decoupled (AdamW)",
    "torch_adam": "chooses between two equivalent implementations",
    "amsgrad": "AMSGrad is not supported",
    "max_coeff": TRUST,
    "min_coeff": TRUST,
    "max_grad_norm": "superseded by gradient_clipping, which is --config.optimizer.clip_norm",
    **dict.fromkeys(("freeze_step", "cuda_aware", "comm_backend_name", "var_freeze_step", "var_update_scaler"), SUMS),
    **dict.fromkeys(("local_step_scaler", "local_step_clipper", "coeff_beta", "factor_max", "factor_min"), SUMS),
    "factor_threshold": SUMS,
}


def convert(file: ConfigSection, result: Conversion, devices: int):
    """Reads the whole file into the result. devices: number of GPUs, which is not in the file; 0: unknown."""
    batches(file, result, devices)
    optimizer(file.part("optimizer"), result)
    file.set("gradient_clipping", "optimizer.clip_norm", default=0.0)
    if "scheduler" in file:
        scheduler(file.part("scheduler"), result)
    precision(file, result)
    sinks(file, result)
    file.set("steps_per_print", "log_every")
    zero = file.part("zero_optimization")
    if zero.take("stage", 0):
        result.leave(zero.name("stage"), "above 0", MEMORY)
    zero.leave(dict.fromkeys(tuple(zero.values), MEMORY))
    layer_drop(file, result)
    token_drop(file, result)
    file.leave(REASONS)
    file.end()


def batches(file: ConfigSection, result: Conversion, devices: int):
    """DeepSpeed's batch is its micro-batch x accumulation steps x GPUs."""
    total, micro = file.take("train_batch_size"), file.take("train_micro_batch_size_per_gpu")
    accumulated = file.take("gradient_accumulation_steps")
    if not total and micro and devices:
        total = micro * devices * (accumulated or 1)
    if total:
        result.set("batch_size", total, "train_batch_size")
    if total and micro and devices and not accumulated:
        if total % (micro * devices):
            raise BadInput(f"train_batch_size={total} is not a multiple of {micro} examples on {devices} devices")
        result.set("micro_batches", total // (micro * devices), "train_micro_batch_size_per_gpu and --devices")
    elif accumulated:
        result.set("micro_batches", accumulated, "gradient_accumulation_steps")
    elif micro:
        result.leave(
            "train_micro_batch_size_per_gpu",
            micro,
            "the number of micro-batches also depends on the number of devices: give --devices",
        )


def optimizer(section: ConfigSection, result: Conversion):
    if not section.values:
        return
    name, params = str(section.take("type", "")), section.part("params")
    if name.lower() in ADAMS or name.lower() in LAMBS:
        result.set("optimizer.name", "lamb" if name.lower() in LAMBS else "adamw", section.name("type"))
        if name.lower().startswith(("onebit", "zeroone")):
            result.leave(section.name("type"), name, "its update is supported, but not its compressed communication")
    else:
        result.leave(section.name("type"), name, "not supported: use adamw, lamb or muon (--config.optimizer.name)")
    betas = params.take("betas", (0.9, 0.999))
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise BadInput(f"{params.name('betas')}={betas}: expected two numbers")
    for key, value in zip(("b1", "b2"), betas, strict=True):
        result.set(f"optimizer.{key}", value, params.name("betas"))
    params.set("lr", "learning_rate.peak") if "learning_rate.peak" not in result.changes else params.leave(
        {"lr": "the model file of DeepSpeedExamples' bing_bert sets the rate, in every step"}
    )
    params.set("eps", "optimizer.eps", default=1e-8)
    params.set("weight_decay", "optimizer.weight_decay", default=0.0)
    params.set("bias_correction", "optimizer.bias_correction", default=True)
    params.leave(OPTIMIZER_REASONS)
    section.leave({"legacy_fusion": "chooses between two equivalent implementations"})
    params.end()
    section.end()


def scheduler(section: ConfigSection, result: Conversion):
    name, params = section.take("type", ""), section.part("params")
    if name in ("WarmupLR", "WarmupDecayLR"):
        params.set("warmup_min_lr", "learning_rate.start", default=0.0)
        params.set("warmup_max_lr", "learning_rate.peak", default=0.001)
        params.set("warmup_num_steps", "learning_rate.warmup_steps", default=1000)
        decay = "linear" if name == "WarmupDecayLR" else "constant"
        result.set("learning_rate.decay", decay, section.name("type"))
        if name == "WarmupDecayLR":
            result.set("learning_rate.decay_from", "warmup", section.name("type"))
            result.set("learning_rate.end", 0.0, section.name("type"))
            params.set("total_num_steps", "steps")
        kind = params.take("warmup_type", "log")
        if kind != "linear":
            result.leave(params.name("warmup_type"), kind, "here, the rate climbs linearly")
        params.leave({"last_batch_iteration": "a run continues from its checkpoint"})
    else:
        result.leave(section.name("type"), name, "no such schedule here: see --config.learning_rate.decay")
        params.leave(dict.fromkeys(tuple(params.values), f"belongs to {name}"))
    params.end()
    section.end()


def precision(file: ConfigSection, result: Conversion):
    for key, reason in (("fp16", LOSS_SCALE), ("bf16", NOT_HERE), ("bfloat16", NOT_HERE)):
        section = file.part(key)
        if section.take("enabled", False):
            result.set("model.dtype", "bfloat16", section.name("enabled"))
            if key == "fp16":
                result.leave(section.name("enabled"), True, "float16 is not supported; bfloat16 takes its place")
        section.leave(dict.fromkeys(tuple(section.values), reason))
    data_types = file.part("data_types")
    data_types.leave({"grad_accum_dtype": "gradients are summed in float32"})
    data_types.end()


def sinks(file: ConfigSection, result: Conversion):
    """DeepSpeed's monitors. metrics.jsonl is always written."""
    chosen = []
    for name in ("tensorboard", "wandb"):
        section = file.part(name)
        if section.take("enabled", False):
            chosen.append(name)
        section.leave({"output_path": "the run folder, --workdir", "job_name": "the run folder's name"})
        section.leave(dict.fromkeys(("group", "team", "project"), "set WANDB_RUN_GROUP, WANDB_ENTITY, WANDB_PROJECT"))
        section.end()
    if chosen:
        result.set("sinks", ",".join(chosen), f"{' and '.join(chosen)}.enabled")


def layer_drop(file: ConfigSection, result: Conversion):
    """Progressive layer dropping as in DeepSpeed's released code. Its probabilities are shifted by one layer and by one
    step, compared with the paper (see `keep_and_scale` and `theta_at` in methods/layer_drop.py).
    """
    section = file.part("progressive_layer_drop")
    if section.take("enabled", False):
        result.base = "layer_drop"
        result.add_method("layer_drop", section.name("enabled"))
        result.set("layer_drop.variant", "deepspeed", section.name("enabled"))
        section.set("theta", "layer_drop.theta", default=1.0)
        section.set("gamma", "layer_drop.gamma", default=0.001)
        if depth := result.changes.get("model.depth"):  # as in configs/layer_drop.py, but for this depth
            std = 0.02 / (2 * depth.value) ** 0.5
            result.set("model.residual_init_std", std, "init_bert_weights of modelingpreln_layerdrop.py")
        section.end()
    section.leave(dict.fromkeys(tuple(section.values), "layer dropping is not enabled in the file"))


def token_drop(file: ConfigSection, result: Conversion):
    """Random-LTD: the section data_efficiency.data_routing, or dynamic_train in older files."""
    outer = file.part("data_efficiency")
    enabled = outer.take("enabled", "dynamic_train" in file)
    outer.leave({"seed": "the seed of data_sampling, which is not converted"})
    sampling = outer.part("data_sampling")
    sampling.leave(dict.fromkeys(tuple(sampling.values), "here, examples come in one random order; for sequences "
        "that get longer, write --config.phases, such as 64:0.5,128:0.5"))  # fmt: skip
    routing, older = outer.part("data_routing"), file.part("dynamic_train")
    enabled = bool(enabled and routing.take("enabled", bool(older.values)))
    for section in (routing.part("random_ltd"), older.part("random_ltd")):
        if section.take("enabled", False) and enabled:
            random_ltd(section, result)
        section.leave(dict.fromkeys(tuple(section.values), "random-LTD is not enabled in the file"))
    for section in (outer, routing, older):
        section.end()


INPUTS = "how the wrapped PyTorch layer takes its inputs"


def random_ltd(section: ConfigSection, result: Conversion):
    """Converts random-LTD to a close equivalent: token dropping with random scores. The share of kept tokens depends
    on the run's number of steps, so `kept` computes this share later."""
    if (kind := section.take("model_type", "encoder")) != "encoder":
        raise BadInput(f"{section.name('model_type')}={kind}: only encoders can be converted; this project trains BERT")
    total = section.take("total_layer_num")
    section.take("random_ltd_layer_num", section.take("randomltd_layer_num"))  # not needed: the number of layers below
    layers = section.take("random_ltd_layer_id", section.take("randomltd_layer_id", []))
    if not total or not layers:
        raise BadInput(f"{section.path}: total_layer_num and random_ltd_layer_id are needed to place the dropping")
    result.add_method("token_drop", section.name("enabled"))
    result.set("token_drop.scores", "random", section.name("enabled"))
    result.set("model.depth", total, section.name("total_layer_num"))
    first = min(min(layers), total - 2)
    result.set("token_drop.boundary", first, section.name("random_ltd_layer_id"))
    if sorted(layers) != list(range(first, total - 1)):
        result.leave(
            section.name("random_ltd_layer_id"),
            layers,
            f"here, layers {first} to {total - 2} drop tokens, without gaps",
        )
    result.leave(
        section.path,
        "random_ltd",
        "in DeepSpeed, each layer draws its own tokens to keep. Here, one draw serves all of these layers, "
        f"[MASK] and special tokens are always kept, and layer {first} attends to all tokens",
    )
    key = "random_ltd_schedule" if "random_ltd_schedule" in section else "randomltd_schedule"
    schedule(section.part(key), result)
    section.leave(dict.fromkeys(("model_mask_name", "hidden_state_order", "micro_batch_size"), INPUTS))
    rates = section.part("layer_token_lr_schedule")
    rates.leave(dict.fromkeys(tuple(rates.values), "not implemented in DeepSpeed either"))
    section.end()


def schedule(section: ConfigSection, result: Conversion):
    """Records how the number of kept tokens grows, for `kept`."""
    config, least, most = section.part("schedule_config"), section.number("min_value"), section.number("max_value")
    growing, by = config.number("require_steps"), config.number("seq_per_step", 1)
    kind = section.take("schedule_type", "fixed_linear")
    if not least or not most or not growing or kind != "fixed_linear":
        raise BadInput(f"{section.path}: expected min_value, max_value, require_steps and schedule_type=fixed_linear")
    result.set("phases", f"{int(most)}:1", section.name("max_value"))
    result.set("eval.seq_len", min(128, int(most)), section.name("max_value"))
    result.growth = (int(least), int(most), int(growing), int(by))
    config.leave({"saving_layer_tokens": "DeepSpeed computes it from the schedule"})
    config.end()
    section.end()


def kept(growth: tuple[int, int, int, int], steps: int) -> tuple[float, float]:
    """(keep, tail) for a run of this many steps. keep: the share of tokens that is kept in a step that drops tokens.
    tail: the share of steps, at the end of the run, that drop none.

    `RandomLTDScheduler.get_value` increases the number of kept tokens linearly, by `by` tokens at a time. Here the
    number is fixed at its mean, so that over the whole run, the layers update as many tokens as with the schedule.
    """
    least, most, growing, by = growth
    dropping = min(steps, growing)
    tokens = np.floor(np.arange(dropping) / growing * (most - least) + least)
    tokens = np.minimum(tokens - tokens % by, most)
    return round(float(tokens.mean()) / most, 4), round(1 - dropping / steps, 6)
