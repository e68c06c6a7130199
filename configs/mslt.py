"""MSLT, multi-stage layerwise training (Yang et al. 2020, arXiv 2011.13635): 3, 6, 9 and 12 layers, then all together.

    bert-fast pretrain --config=mslt --workdir=runs/mslt --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, debug (shrinks everything to seconds), and embedding=A|B|C: while
layers are frozen, the tied embedding table A learns through the head, B does not learn, or C leaves the head a table
of its own.

Only the paper's abstract could be read: layers are added on top, only they train, and training is more than 110 %
faster. The rest is unverified, and therefore a default of the method: four stages of equal steps and a fifth joint
one, copies of the topmost layers, the frozen table, dropout in frozen layers, fresh moments and a short climb of the
rate after each growth.
The rest of the recipe is BERT's own (bert.py); its 512 tokens are in the joint stage. The layers cost half of BERT's,
the whole training with its heads 0.51 at base size and 128 tokens.
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
