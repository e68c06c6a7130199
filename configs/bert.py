"""BERT (Devlin et al. 2019), post-LN, masked words and next sentences, 90 % of the steps at 128 tokens and 10 % at 512.

    python -m bert_fast pretrain --config=configs/bert.py:size=base --workdir=runs/base --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, debug (shrinks everything to seconds).
The paper's run: batches of 256 for 1,000,000 steps, 4 days on 16 TPU chips (base; section A.2).
"""

from configs import common


def get_config(text=None):
    args = common.parse(text, size="base", seq=0, objective="mlm+nsp", norm="post", debug=False)
    config = common.base(args["size"])
    config.data.objective = args["objective"]
    config.model.pooler = args["objective"] == "mlm+nsp"
    config.model.norm = args["norm"]
    if args["seq"]:
        config.phases = f"{args['seq']}:1"
        config.eval.seq_len = min(config.eval.seq_len, args["seq"])  # longer rows have positions that nobody trained
    if args["debug"]:
        common.debug(config)
    return config
