"""BERT with token dropping (Hou et al. 2022, arXiv 2203.13240): half of the tokens skip the middle layers.

    bert-fast pretrain --config=token_drop:size=base --workdir=runs/token_drop --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH, objective=mlm|mlm_packed|mlm+nsp, norm=post|pre,
debug (shrinks everything to seconds). `--config.methods=` with no value gives the baseline of the same recipe.

The recipe is the released one: wiki_books_pretrain_sequence_pack.yaml and bert_en_uncased_base_token_drop.yaml of
tensorflow/models, official/projects/token_dropping. It trains on windows of 512 tokens that cross documents, without
next-sentence prediction, in batches of 512 for 1,000,000 steps "on TPUs" (number and time are not given). The same
recipe ran on a v3-32 pod for model-garden-lms/bert-base-token-dropping-finewebs-1m (see its model card).

Differences from the released code:
- Here the warm-up climbs to the peak. The decay counts from step 0, so the rate drops by 1 % when the decay takes over.
  `PolynomialWarmUp` of official/modeling/optimization/lr_schedule.py climbs to the decayed rate, 0.99e-4, and gives
  step 0 the rate of step 1.
- Here there is no dropout before the next-sentence logits. wiki_books_pretrain.yaml has 0.1 there (`dropout_rate` of
  cls_heads).
- Here one table of scores learns from the whole batch. There, each replica has a table that learns from its own
  examples (see bert_fast/methods/token_drop.py).

A step takes 24.5 % fewer FLOPs than a step without dropping (size base; 23.6 % with seq=128).
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
    config.optimizer.update(bias_correction=True, eps_before_correction=True)  # as in Keras's Adam
    if args["debug"]:
        common.debug(config)
    return config
