"""All four methods together: few layers first, a ticket of their heads and neurons, half of the tokens in the middle
layers, and layers that are dropped the more the higher they are.

    python -m bert_fast pretrain --config=configs/combined.py:size=base --workdir=runs/combined --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, debug (shrinks everything to seconds).
No paper trains so. At 12 layers of width 128 and 4 M tokens it took 0.34 of the time of dense training, with a held-out
loss 0.030 nats above it, where seeds differ by 0.019: of what was measured the least time near dense training
(experiments/small_truth.md). One seed, far from the size that this is for: more careful is --config.methods=
stacking,token_drop, with 0.61 of the time there, 0.65 at BERT-base widths (experiments/speed.md), and dense
training's loss. The model that comes out is slim. The recipe is BERT's, pre-LN, with the learning rate that falls in
stacking's segments.
"""

from configs import bert, common


def get_config(text=None):
    defaults = {"size": "base", "seq": 0, "objective": "mlm"}
    args = common.parse(text, **defaults, debug=False)
    config = bert.get_config(",".join(f"{name}={args[name]}" for name in defaults) + ",norm=pre")
    config.methods = "stacking,early_bert,token_drop,layer_drop"
    if args["debug"]:
        common.debug(config)
        config.phases = "32:1"  # each number of layers that run is a program to compile, at each length
    return config
