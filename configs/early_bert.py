"""EarlyBERT (Chen et al. 2021): BERT's recipe after a search of 5 % of its steps, without a third of the heads and
40 % of the neurons.

    bert-fast pretrain --config=early_bert:size=base --workdir=runs/eb --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, recipe=bert|lamb, debug (shrinks everything to seconds). The control is
--config.early_bert.ticket=random.
A layer of the ticket takes 37 to 38 % fewer FLOPs. The run of base, with its search, takes 32 % fewer than BERT's. The
paper reports 35 to 45 % less training time (abstract). The half of its code that pre-trains was never released:
machine, hours and settings are unknown, so recipe=bert is BERT's own.

recipe=lamb: NVIDIA's large-batch recipe, which the paper is said to follow (unverified, as is its search of about 400
steps: 5 % are 391). From DeepLearningExamples, PyTorch/LanguageModeling/BERT, with two differences: one schedule covers
both phases, while NVIDIA's second phase has a schedule of its own (peak 4e-3, warm-up over 12.8 % of it); and the
second phase also has batches of 65,536, so its 1,563 batches of 32,768 are 782 here.
"""

from bert_fast import BadInput
from bert_fast.configs import common


def get_config(text=None):
    args = common.parse(text, **common.ARGUMENTS, recipe="bert")
    if args["recipe"] not in ("bert", "lamb"):
        raise BadInput(f"config argument recipe={args['recipe']!r}: expected recipe=bert or recipe=lamb")
    config = common.from_arguments(args)
    config.methods = "early_bert"
    if args["recipe"] == "lamb":  # unverified
        config.optimizer.update(name="lamb", bias_correction=True)
        config.batch_size = 65_536
        config.micro_batches = 64
        config.steps = 7_820  # nine tenths are phase 1's 7,038
        config.learning_rate.update(peak=6e-3, warmup_steps=2_000)
        config.learning_rate.update(decay="polynomial", power=0.5)  # `PolyWarmUpScheduler` of schedulers.py
        config.log_every = 10
        config.eval.every = config.checkpoint.every = 500
    if args["debug"]:
        common.debug(config)
        config.micro_batches = 1
    return config
