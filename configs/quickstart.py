"""A small BERT on the documentation of this machine, for `make quickstart`: two minutes on two cores.

python -m bert_fast.quickstart
"""

from configs import common


def get_config(text=None):
    args = common.parse(text, size="tiny", debug=False)
    config = common.base(args["size"])
    config.steps = 2_000
    config.batch_size = 32
    config.phases = "64:1"
    config.log_every = 50
    config.data.objective = "mlm"
    config.model.update(pooler=False, norm="pre", dropout=0.0)
    config.model.attention_dropout = 0.0
    config.optimizer.bias_correction = True
    config.learning_rate.update(peak=3e-3, warmup_steps=200)
    config.eval.update(every=500, examples=500, seq_len=64)
    config.checkpoint.every = 500
    if args["debug"]:
        common.debug(config)
    return config
