"""Progressive stacking (Gong et al., ICML 2019): 3 layers, doubled to 6 after 50,000 steps and to 12 after 120,000.

    python -m bert_fast pretrain --config=configs/stacking.py --workdir=runs/stacking --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH, debug (shrinks everything to seconds).
The recipe of `reproduce_bert.sh` in gonglinyuan/StackingBERT: 400,000 updates on 4 GPUs (P40); the layers cost 0.819 of
what 12 would in every step. Their vocabulary: `prepare --vocab_size=32768` (theirs is BPE).

Not as there: batches of about 102,000, 115,000 and 123,000 tokens, stage by stage, of examples of many lengths; here
they are 312 rows of 384, 119,808 positions, near the mean over all updates. Positions are learned, there they are
sinusoids; LayerNorms have gains and biases; word embeddings are not multiplied by the square root of the width; all
matrices begin with BERT's deviation; the next-sentence head has a pooler. There every parameter decays (fairseq's Adam
has one group, with --weight-decay 0.01); here biases and LayerNorms do not: its encoder's LayerNorms have nothing that
could decay (`no_normalize_affine` of transformer_bert_base), ours have gains that it would pull to 0.
"""

from configs import common


def get_config(text=None):
    args = common.parse(text, size="base", seq=384, debug=False)
    config = common.base(args["size"])
    config.methods = "stacking"
    config.steps = 400_000
    config.batch_size = 312
    config.phases = f"{args['seq']}:1"
    config.model.norm = "pre"  # `encoder_normalize_before` of transformer_bert_base
    config.model.embed_norm = False
    config.model.norm_eps = 1e-5  # torch.nn.LayerNorm's default, which fairseq/models/transformer.py keeps
    config.optimizer.update(bias_correction=True, eps_before_correction=True)  # fairseq/optim/adam.py
    config.optimizer.clip_norm = 0.0
    config.learning_rate.update(peak=8e-4, warmup_steps=10_000, start=1e-7, decay_from="warmup")
    if args["debug"]:
        common.debug(config)
    return config
