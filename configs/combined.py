"""Late growth with token dropping or, as `combined:all`, all four methods together.

Training starts with one layer. After 70 % of the steps the model gets all of its layers, and from then on half of the
tokens skip the middle ones. The finished model has every layer and parameter of a dense one.

    bert-fast pretrain --config=combined:size=base --workdir=runs/combined --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, all (all four methods), debug (shrinks everything to seconds). norm is fixed:
stacking's and layer dropping's own recipes are pre-LN.
No paper trains this way. In the project's study, late growth with token dropping had the lowest held-out loss at equal
time (experiments/combined.md). That was a model of six layers, far below the size that this config is for.
All four methods together (stacking by its own three stages, EarlyBERT, token dropping, layer dropping) were not part of
the study: with 12 layers of width 128, one seed and 4 M tokens, their loss was 0.030 nats above dense training's in
0.34 of its time. On words hidden by [MASK], both were only 0.1 nats below a unigram model (experiments/LOG.md, "Losses
of the small-scale test"). The model also stays pruned, to an EarlyBERT ticket.
The recipe is BERT's, pre-LN. As in the study, late growth follows the run's single schedule. With `all`, each stage has
its own linear fall, as in stacking's released recipe.
"""

from bert_fast.configs import common, late_growth

FIXED = {"norm": "stacking's and layer dropping's own recipes are pre-LN"}


def get_config(text=None):
    args = common.parse(text, FIXED, **common.ARGUMENTS | {"objective": "mlm", "norm": "pre", "all": False})
    config = common.from_arguments(args)
    if args["all"]:
        config.methods = "stacking,early_bert,token_drop,layer_drop"
    else:
        late_growth.grow_late(config)
        config.methods = "stacking,token_drop"
    if args["debug"]:
        common.debug(config)
    return config
