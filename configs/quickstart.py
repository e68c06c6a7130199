"""A small BERT trained on the documentation found on this machine, for `make quickstart`: two minutes on two cores.

    python -m bert_fast.quickstart

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH, objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, debug
(shrinks everything to seconds).
"""

from bert_fast.configs import common


def get_config(text=None):
    own = {"size": "tiny", "seq": 64, "objective": "mlm", "norm": "pre"}
    args = common.parse(text, **common.ARGUMENTS | own)
    config = common.from_arguments(args)
    config.steps = 2_000
    config.batch_size = 32
    config.log_every = 50
    config.model.update(dropout=0.0, attention_dropout=0.0)
    config.optimizer.bias_correction = True
    config.learning_rate.update(peak=3e-3, warmup_steps=200)
    config.eval.update(every=500, examples=500)
    config.checkpoint.every = 500
    if args["debug"]:
        common.debug(config)
    return config
