"""Progressive stacking (Gong et al., ICML 2019): 3 layers, doubled to 6 after 50,000 steps and to 12 after 120,000.

    bert-fast pretrain --config=stacking --workdir=runs/stacking --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH, objective=mlm|mlm_packed|mlm+nsp, debug (shrinks
everything to seconds). norm is fixed: StackingBERT is pre-LN, without a LayerNorm on the embeddings.
The recipe is `reproduce_bert.sh` of gonglinyuan/StackingBERT: 400,000 updates on 4 GPUs (P40). Over the whole run, the
layers take 0.819 of the FLOPs that 12 layers from the start would take. StackingBERT's vocabulary is BPE; for a
vocabulary of the same size, use `prepare --vocab_size=32768`.

Differences from StackingBERT:
- Its batches have about 102,000, 115,000 and 123,000 tokens in the three stages, in examples of many lengths. Here a
  batch has 312 examples of 384 tokens: 119,808 positions, close to the mean of StackingBERT's batches over all updates.
- Here position embeddings are learned; in StackingBERT they are sinusoids. Here word embeddings are not multiplied by
  the square root of the width, all matrices start with BERT's standard deviation, and the next-sentence head has a
  pooler.
- Here LayerNorms have gains and biases. The LayerNorms of StackingBERT's encoder have neither (`no_normalize_affine` of
  transformer_bert_base).
- StackingBERT applies weight decay to every parameter (fairseq's Adam has one group, with --weight-decay 0.01). Here
  biases and LayerNorms do not decay, because decay would pull the gains to 0.
"""

from bert_fast.configs import common

FIXED = {"norm": "StackingBERT is pre-LN, without a LayerNorm on the embeddings"}


def get_config(text=None):
    args = common.parse(text, FIXED, **common.ARGUMENTS | {"seq": 384, "norm": "pre"})
    config = common.from_arguments(args)
    config.methods = "stacking"
    config.steps = 400_000
    config.batch_size = 312
    config.model.embed_norm = False  # pre-LN: `encoder_normalize_before` of transformer_bert_base
    config.model.norm_eps = 1e-5  # the default of torch.nn.LayerNorm, used in fairseq/models/transformer.py
    config.optimizer.update(bias_correction=True, eps_before_correction=True)  # fairseq/optim/adam.py
    config.optimizer.clip_norm = 0.0
    config.learning_rate.update(peak=8e-4, warmup_steps=0.025, start=1e-7, decay_from="warmup")
    if args["debug"]:
        common.debug(config)
    return config
