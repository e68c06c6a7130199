"""BERT (Devlin et al. 2019): post-LN, masked words and next sentences, 90 % of the steps at 128 tokens, 10 % at 512.

    bert-fast pretrain --config=bert:size=base --workdir=runs/base --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, debug (shrinks everything to seconds).
The paper's run: batches of 256 for 1,000,000 steps, 4 days on 16 TPU chips (base; section A.2).
"""

from bert_fast.configs import common


def get_config(text=None):
    args = common.parse(text, **common.ARGUMENTS)
    config = common.from_arguments(args)
    if args["debug"]:
        common.debug(config)
    return config
