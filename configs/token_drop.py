"""BERT with token dropping (Hou et al. 2022, arXiv 2203.13240): half of the tokens skip the middle layers.

    bert-fast pretrain --config=token_drop:size=base --workdir=runs/token_drop --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH, objective=mlm|mlm_packed|mlm+nsp, norm=post|pre,
debug (shrinks everything to seconds). `--config.methods=` with no value gives the baseline of the same recipe.

The released recipe: wiki_books_pretrain_sequence_pack.yaml and bert_en_uncased_base_token_drop.yaml of
tensorflow/models, official/projects/token_dropping: windows of 512 tokens that cross documents, no next
sentences, batches of 512 for 1,000,000 steps "on TPUs" (number and time are not given). The same
recipe ran on a v3-32 pod for model-garden-lms/bert-base-token-dropping-finewebs-1m (its model card).

Differences: here the warm-up climbs to the peak, and the rate then drops by 1 % when the decay, which counts from step
0, takes over; `PolynomialWarmUp` of official/modeling/optimization/lr_schedule.py climbs to the decayed rate, 0.99e-4,
and gives step 0 the rate of step 1. With next sentences, wiki_books_pretrain.yaml has dropout of 0.1 before their
logits (`dropout_rate` of cls_heads); here there is none. There, each replica has a table of scores that learns from its
own examples (see token_drop.py); here, one table learns from the whole batch.

A step costs 24.5 % fewer FLOPs than one without dropping (base; 23.6 % with seq=128).
"""

from bert_fast.configs import common


def get_config(text=None):
    args = common.parse(text, **common.ARGUMENTS | {"seq": 512, "objective": "mlm"})
    config = common.from_arguments(args)
    config.methods = "token_drop"
    config.batch_size = 512
    config.model.activation = "gelu_tanh"  # `_approx_gelu` in encoder.py
    # `AdamWeightDecayConfig` of tensorflow/models, official/modeling/optimization/configs/optimizer_config.py.
    config.optimizer.eps = 1e-7
    config.optimizer.update(bias_correction=True, eps_before_correction=True)  # Adam of Keras
    if args["debug"]:
        common.debug(config)
    return config
