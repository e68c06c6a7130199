"""Progressive layer dropping (Zhang & He 2020): pre-LN BERT, ten times BERT's learning rate, 9 of 12 layers a step.

    python -m bert_fast pretrain --config=configs/layer_drop.py:size=base --workdir=runs/ld --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH, control=post|pre, debug (shrinks everything to seconds).
Pre-LN and the learning rate are part of the paper's headline, so it takes two controls: control=post is its baseline
(post-LN at 1e-4, nothing dropped), control=pre what is left of the method without dropping (pre-LN at 1e-3).
The paper's run: batches of 4,096 for 200,000 steps (186 epochs) on 64 V100 in float16; dropping takes 24 % of the time
off a step. Numbers without another source: DeepSpeedExamples, bing_bert/bert_base_large_lr.json and
bing_bert/deepspeed_bsz4k_progressive_layer_drop_config_seq128.json.
Not as there: matrices and tables begin from a normal distribution cut at two deviations, as in Google's BERT, which
leaves a deviation of 0.88 times what is set. `init_bert_weights` of bing_bert/nvidia/modelingpreln_layerdrop.py draws
from a plain one, and passes over `LinearActivation` (the first matrix of each feed-forward network, the pooler and the
head's dense layer), which begins from PyTorch's uniform distribution, biases too.
"""

import math

from bert_fast import BadInput
from configs import common


def get_config(text=None):
    args = common.parse(text, size="base", seq=128, control="", debug=False)
    if args["control"] not in ("", "post", "pre"):
        raise BadInput(
            f"config argument control={args['control']!r}: expected control=post (post-LN, 1e-4), control=pre (pre-LN, "
            "1e-3, nothing dropped), or none (the method)"
        )
    post = args["control"] == "post"
    config = common.base(args["size"])
    config.methods = "" if args["control"] else "layer_drop"
    config.steps = 200_000
    config.batch_size = 4096
    config.micro_batches = 4  # of 16 examples on each of 64 devices
    config.phases = f"{args['seq']}:1"
    if not post:
        config.model.norm = "pre"
        # The two outputs of each layer: `init_bert_weights` of bing_bert/nvidia/modelingpreln_layerdrop.py.
        config.model.residual_init_std = 0.02 / math.sqrt(2 * config.model.depth)
    config.optimizer.eps = 1e-8  # default of DeepSpeed's `FusedAdam`
    # Schedule "LE" of bing_bert. That the post-LN control decays so too is unverified.
    config.learning_rate.update(peak=1e-4 if post else 1e-3, warmup_steps=4_000)
    config.learning_rate.update(decay="exponential", rate=0.99, interval=1000)
    if args["debug"]:
        common.debug(config)
        config.phases = "32:1"  # each number of layers that run is a program to compile, at each length
        config.micro_batches = 1  # 8 examples, on however many devices there are
    return config
