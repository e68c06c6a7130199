"""All four methods together: few layers first, then a ticket of their heads and neurons, with half of the tokens in the
middle layers, and layers that are dropped more often the higher they are.

    bert-fast pretrain --config=combined:size=base --workdir=runs/combined --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, debug (shrinks everything to seconds). norm is fixed: dropping layers needs pre-LN.
No paper trains this way. At 12 layers of width 128 and 4 M tokens it took 0.34 of the time of dense training, with a
held-out loss 0.030 nats higher, where seeds differ by 0.019: the least time near dense training of all that was
measured (experiments/small_truth.md). That was one seed, far from the size that this config is for. A more careful
choice is --config.methods=stacking,token_drop: 0.61 of the time there, 0.65 at BERT-base widths
(experiments/speed.md), and dense training's loss. The resulting model is slim. The recipe is BERT's, pre-LN, with the
learning rate that falls in stacking's segments.
"""

from bert_fast.configs import common

FIXED = {"norm": "layers that are dropped need pre-LN"}


def get_config(text=None):
    args = common.parse(text, FIXED, **common.ARGUMENTS | {"objective": "mlm", "norm": "pre"})
    config = common.from_arguments(args)
    config.methods = "stacking,early_bert,token_drop,layer_drop"
    if args["debug"]:
        common.debug(config)
        config.phases = "32:1"  # each number of layers that run is a program to compile, at each length
    return config
