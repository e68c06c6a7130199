"""Late growth (one-layer progressive training; Bu 2025, arXiv 2511.04981): one layer for 70 % of the steps, then all.

    bert-fast pretrain --config=late_growth:size=base --workdir=runs/late --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, share=SHARE of the steps before the model grows, debug (shrinks
everything to seconds).
In the project's study, with six layers, it had a lower held-out loss at equal time than any other method and than a
shallower model. At twice that budget, three seeds could not tell it from the shallower model or from stacking with
token dropping (combined.py), so its advantage may be one of short runs (experiments/budgets.md).
The method is stacking with two depths: all new layers start as copies of the first, and the moments are fresh. The rest
of the recipe is BERT's, pre-LN.

Only the paper's abstract and summaries were read. The paper trains GPT-2 and other decoders; here the model is an
encoder. The paper grows the model after about 80 % of the steps, and its learning rate is constant for most of the run.
Here the rate follows BERT's single schedule, so it falls from the end of the warm-up.
"""

from bert_fast import BadInput
from bert_fast.configs import common


def get_config(text=None):
    args = common.parse(text, **common.ARGUMENTS | {"objective": "mlm", "norm": "pre", "share": 0.7})
    if not 0 < args["share"] < 1:
        raise BadInput(f"config argument share={args['share']}: expected a share of the steps between 0 and 1")
    config = common.from_arguments(args)
    config.methods = "stacking"
    config.stacking.depths = "1"  # and then all
    config.stacking.shares = f"{args['share']},{round(1 - args['share'], 6)}"
    config.stacking.learning_rate = "run"
    if args["debug"]:
        common.debug(config)
    return config
