"""Progressive stacking and token dropping together: few layers first, and half of the tokens in the middle layers.

    python -m bert_fast pretrain --config=configs/combined.py:size=base --workdir=runs/combined --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, debug (shrinks everything to seconds).
No paper trains so. Of the time of dense training it takes 0.65 (experiments/speed.md); what it does to the held-out
loss has not been measured yet. The recipe is BERT's, pre-LN, with the learning rate that falls in stacking's
segments; another combination is one flag away, as --config.methods=stacking,early_bert,token_drop,layer_drop.
"""

from configs import bert, common


def get_config(text=None):
    defaults = {"size": "base", "seq": 0, "objective": "mlm"}
    args = common.parse(text, **defaults, debug=False)
    config = bert.get_config(",".join(f"{name}={args[name]}" for name in defaults) + ",norm=pre")
    config.methods = "stacking,token_drop"
    if args["debug"]:
        common.debug(config)
    return config
