"""Progressive layer dropping (Zhang & He 2020): pre-LN BERT, 10x BERT's learning rate, about 9 of 12 layers per step.

    bert-fast pretrain --config=layer_drop:size=base --workdir=runs/ld --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH, objective=mlm|mlm_packed|mlm+nsp, control=post|pre, debug
(shrinks everything to seconds). norm is fixed by the method and its controls. Part of the paper's headline result comes
from pre-LN and the higher learning rate, so a fair comparison needs two controls. control=post is the paper's baseline
(post-LN at 1e-4, nothing dropped). control=pre is the method without dropping (pre-LN at 1e-3).
The paper's run: batches of 4,096 for 200,000 steps (186 epochs) on 64 V100 GPUs in float16. Dropping shortens a step by
24 %. Numbers without another source are from DeepSpeedExamples, bing_bert/bert_base_large_lr.json and
bing_bert/deepspeed_bsz4k_progressive_layer_drop_config_seq128.json.

Differences from the released code: here, matrices and tables are drawn from a normal distribution truncated at two
standard deviations, as in Google's BERT. Truncation reduces the standard deviation to 0.88 times the setting. The
released code (`init_bert_weights` of bing_bert/nvidia/modelingpreln_layerdrop.py) draws from a normal distribution
without truncation. That function skips layers of the class `LinearActivation`: the first layer of each feed-forward
network, the pooler, and the head's dense layer. Their weights and biases keep PyTorch's uniform initialisation.
"""

import math

from bert_fast import BadInput
from bert_fast.configs import common

FIXED = {"norm": "the method needs pre-LN, and control=post is its post-LN baseline"}


def get_config(text=None):
    args = common.parse(text, FIXED, **common.ARGUMENTS | {"seq": 128, "norm": "pre"}, control="")
    if args["control"] not in ("", "post", "pre"):
        raise BadInput(
            f"config argument control={args['control']!r}: expected control=post (post-LN, 1e-4), control=pre (pre-LN, "
            "1e-3, nothing dropped), or no control (the method)"
        )
    post = args["control"] == "post"
    config = common.from_arguments(args | {"norm": "post" if post else "pre"})
    config.methods = "" if args["control"] else "layer_drop"
    config.steps = 200_000
    config.batch_size = 4096
    config.micro_batches = 4  # each has 16 examples on each of 64 devices
    if not post:
        # For the two output matrices of each layer, as in `init_bert_weights` (named above).
        config.model.residual_init_std = 0.02 / math.sqrt(2 * config.model.depth)
    config.optimizer.eps = 1e-8  # default of DeepSpeed's `FusedAdam`
    # Schedule "LE" of bing_bert. It is unverified that the paper's post-LN baseline decays in this way too.
    config.learning_rate.update(peak=1e-4 if post else 1e-3, warmup_steps=4_000)
    config.learning_rate.update(decay="exponential", rate=0.99, interval=1000)
    if args["debug"]:
        common.debug(config)
    return config
