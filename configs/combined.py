"""All four methods together: stacking, EarlyBERT, token dropping and layer dropping.

Training starts with a quarter of the layers, pruned to an EarlyBERT ticket, and adds the others in two stages. Half of
the tokens skip the middle layers. Higher layers are dropped more often than lower ones. The model stays pruned.

    bert-fast pretrain --config=combined:size=base --workdir=runs/combined --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, debug (shrinks everything to seconds). norm is fixed: dropping layers needs pre-LN.
No paper trains this way. With 12 layers of width 128 and 4 M tokens, it took 0.34 of dense training's time. Its
held-out loss was 0.030 nats higher; seeds of dense training differ by 0.019. Of the runs that came near dense
training's loss, it took the least time (experiments/small_truth.md). That was one seed, at a size far below the one
that this config is for. A more careful choice is --config.methods=stacking,token_drop. At the same small size, it
reached dense training's loss in 0.61 of the time. At BERT-base widths it takes 0.65 of the time (experiments/speed.md).
The recipe is BERT's, pre-LN, with stacking's learning rate: one linear fall per stage.
"""

from bert_fast.configs import common

FIXED = {"norm": "dropping layers needs pre-LN"}


def get_config(text=None):
    args = common.parse(text, FIXED, **common.ARGUMENTS | {"objective": "mlm", "norm": "pre"})
    config = common.from_arguments(args)
    config.methods = "stacking,early_bert,token_drop,layer_drop"
    if args["debug"]:
        common.debug(config)
    return config
