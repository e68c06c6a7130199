"""Stacking with token dropping or, as `combined:all`, all four methods together.

Training starts with a quarter of the layers and adds the others in two stages. Half of the tokens skip the middle
layers. The finished model has every layer and parameter of a dense one.

    bert-fast pretrain --config=combined:size=base --workdir=runs/combined --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, all (EarlyBERT and layer dropping too), debug (shrinks everything to seconds). norm is
fixed: stacking's and layer dropping's own recipes are pre-LN.
No paper trains this way. In the project's study, stacking with token dropping ended below dense training at every
budget and with every text (experiments/combined.md). That was a model of six layers, far below the size that this
config is for. Late growth (late_growth.py) was better at one of two budgets. At BERT-base widths, this pair takes 0.65
of dense training's time for the same number of steps (experiments/speed.md). All four together were not part of the
study: with 12 layers of width 128, one seed and 4 M tokens, their loss was 0.030 nats above dense training's in 0.34 of
its time. On words hidden by [MASK], both were only 0.1 nats below a unigram model (experiments/LOG.md, "Losses of the
small-scale test"). The model also stays pruned, to an EarlyBERT ticket.
The recipe is BERT's, pre-LN. As in the study, all stages follow the run's single schedule. With `all`, they have
stacking's own: one linear fall per stage.
"""

from bert_fast.configs import common

FIXED = {"norm": "stacking's and layer dropping's own recipes are pre-LN"}


def get_config(text=None):
    args = common.parse(text, FIXED, **common.ARGUMENTS | {"objective": "mlm", "norm": "pre", "all": False})
    config = common.from_arguments(args)
    if args["all"]:
        config.methods = "stacking,early_bert,token_drop,layer_drop"
    else:
        config.methods = "stacking,token_drop"
        config.stacking.learning_rate = "run"
    if args["debug"]:
        common.debug(config)
    return config
