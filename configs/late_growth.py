"""Late growth (one-layer progressive training; Bu 2025, arXiv 2511.04981): one layer for 70 % of the steps, then all.

    bert-fast pretrain --config=late_growth:size=base --workdir=runs/late --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, share=SHARE of the steps before the model grows, debug (shrinks
everything to seconds).
In the project's study, its held-out loss at equal time was lower than that of the four methods and of a shallower model
(experiments/stacking.md). That was a model of six layers, far below the size that this config is for. With token
dropping (combined.py), the loss was lower still.
The method is stacking with two depths: all new layers start as copies of the first, and the moments are fresh. The rest
of the recipe is BERT's, pre-LN.

Differences from the paper, of which only the abstract and summaries were read: it trains GPT-2 and other decoders; here
the model is an encoder. The paper grows the model after about 80 % of the steps, and its learning rate is constant for
most of the run. Here the rate follows BERT's single schedule, so it falls from the end of the warm-up.
"""

from bert_fast import BadInput
from bert_fast.configs import common

SHARE = 0.7  # of the steps, before the model grows


def grow_late(config, share: float = SHARE):
    """Makes a config start with one layer and, after this share of the steps, grow to all of its layers at once."""
    config.methods = "stacking"
    config.stacking.depths = "1"  # and then all
    config.stacking.shares = f"{share},{round(1 - share, 6)}"
    config.stacking.learning_rate = "run"


def get_config(text=None):
    args = common.parse(text, **common.ARGUMENTS | {"objective": "mlm", "norm": "pre", "share": SHARE})
    if not 0 < args["share"] < 1:
        raise BadInput(f"config argument share={args['share']}: expected a share of the steps between 0 and 1")
    config = common.from_arguments(args)
    grow_late(config, args["share"])
    if args["debug"]:
        common.debug(config)
    return config
