"""EarlyBERT (Chen et al. 2021): a search that takes 5 % of BERT's steps, then BERT's recipe with two thirds of the
heads and 60 % of the neurons.

    bert-fast pretrain --config=early_bert:size=base --workdir=runs/eb --config.data.dir=SHARDS

Arguments: size=tiny|mini|small|medium|base|large, seq=LENGTH (one phase at this length instead of two),
objective=mlm|mlm_packed|mlm+nsp, norm=post|pre, recipe=bert|lamb, debug (shrinks everything to seconds).
For a control run that prunes as many heads and neurons at random, add --config.early_bert.ticket=random.
A layer of the pruned model takes 37 to 38 % fewer FLOPs. A whole run at size base, search included, takes 32 % fewer
FLOPs than BERT's. The paper reports 35 to 45 % less training time (abstract). The authors did not release their code
for pre-training, so their machine, hours and settings are unknown. recipe=bert therefore uses BERT's own settings.

recipe=lamb: NVIDIA's large-batch recipe from DeepLearningExamples, PyTorch/LanguageModeling/BERT. The paper is said to
follow it, with a search of about 400 steps (both unverified; here 5 % are 391 steps). There are two differences. Here
one schedule covers both phases; NVIDIA's second phase has its own schedule (peak 4e-3, warm-up over 12.8 % of its
steps). And here the second phase also has batches of 65,536, so NVIDIA's 1,563 batches of 32,768 become 782.
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
        config.steps = 7_820  # nine tenths of them are the 7,038 steps of NVIDIA's phase 1
        config.learning_rate.update(peak=6e-3, warmup_steps=2_000)
        config.learning_rate.update(decay="polynomial", power=0.5)  # `PolyWarmUpScheduler` of schedulers.py
        config.log_every = 10
        config.eval.every = config.checkpoint.every = 500
    if args["debug"]:
        common.debug(config)
    return config
