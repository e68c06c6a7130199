"""A small BERT trained on the documentation found on this machine, for `make quickstart`: a few minutes on two cores.

    python -m bert_fast.quickstart

Arguments of --config=quickstart:ARGUMENTS: size=tiny|mini|small|medium|base|large, seq=LENGTH,
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, debug (shrinks everything to seconds).
"""

from bert_fast.configs import common


def get_config(text=None):
    own = {"size": "tiny", "objective": "mlm", "norm": "pre"}
    args = common.parse(text, **common.ARGUMENTS | own)
    config = common.from_arguments(args)
    config.steps = 2_000
    config.batch_size = 32
    if not args["seq"]:
        # Short rows come first. They teach most of what longer rows need, and with them the model sooner leaves the
        # plateau at which it knows only how frequent each word is. Muon, a high learning rate and large initial weights
        # help too (experiments/plateau.md).
        config.phases = "8@256:0.4,64@32:0.6"
        config.eval.seq_len = 64
    config.log_every = 50
    config.model.update(dropout=0.0, attention_dropout=0.0, init_std=0.05)
    config.optimizer.bias_correction = True
    config.optimizer.name = "muon"
    config.learning_rate.update(peak=6e-3, warmup_steps=200)
    config.eval.update(every=500, examples=500)
    config.checkpoint.every = 500
    if args["debug"]:
        common.debug(config)
    return config
