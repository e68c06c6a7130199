"""MSLT, multi-stage layerwise training (Yang et al. 2020, arXiv 2011.13635): 3, 6, 9 and 12 layers, then all together.

    python -m bert_fast pretrain --config=configs/mslt.py --workdir=runs/mslt --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, embedding=A|B|C (what becomes of the tied table while layers are
frozen: it learns through the head; it does not learn; the head has one of its own), debug (shrinks everything to
seconds).

Only the paper's abstract could be read: layers are added on top, only they train, and a training is more than 110 %
faster. Unverified, and so defaults of the method: four stages of equal steps and a fifth joint one, copies of the
topmost layers, the frozen table, dropout in frozen layers, fresh moments and a short climb of the rate after each
growth.
The recipe beside it is BERT's own (configs/bert.py); its 512 tokens fall into the joint stage. The layers cost half of
BERT's, the whole training with its heads 0.51 at base size and 128 tokens.
"""

from configs import bert, common


def get_config(text=None):
    defaults = {"size": "base", "seq": 0, "objective": "mlm+nsp", "norm": "post"}
    args = common.parse(text, **defaults, embedding="B", debug=False)
    config = bert.get_config(",".join(f"{name}={args[name]}" for name in defaults))
    config.methods = "stacking"
    config.stacking.variant = "mslt"
    config.stacking.embedding = args["embedding"]
    if args["debug"]:
        common.debug(config)
    return config
