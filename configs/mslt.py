"""MSLT, multi-stage layerwise training (Yang et al. 2020, arXiv 2011.13635): 3, 6, 9, 12 layers, then a joint stage.

    bert-fast pretrain --config=mslt --workdir=runs/mslt --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, debug (shrinks everything to seconds), embedding=A|B|C.
embedding says how the tied embedding table is treated while layers are frozen. A: it learns through the head. B: it is
frozen. C: it is frozen, and the head trains a separate copy.

Only the paper's abstract was available. It says that layers are added on top, that only the added layers train, and
that training is more than 110 % faster. All other choices are unverified defaults of the method: four stages and a
joint stage, with equal numbers of steps; new layers are copies of the topmost ones; the table is frozen; frozen layers
have dropout; after each growth the moments are fresh and the learning rate climbs again for a short time.
The rest of the recipe is BERT's own (bert.py). Its phase at 512 tokens falls into the joint stage. At base size and 128
tokens, the layers take half of the FLOPs of BERT's layers. The whole training, heads included, takes 0.51 of BERT's.
"""

from bert_fast.configs import common


def get_config(text=None):
    args = common.parse(text, **common.ARGUMENTS, embedding="B")
    config = common.from_arguments(args)
    config.methods = "stacking"
    config.stacking.variant = "mslt"
    config.stacking.embedding = args["embedding"]
    if args["debug"]:
        common.debug(config)
    return config
