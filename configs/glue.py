"""Fine-tuning on GLUE (Wang et al. 2019), as BERT's paper does it: 3 epochs of batches of 32, four learning rates.

    python -m bert_fast finetune --config=configs/glue.py:task=mrpc --checkpoint=runs/base --workdir=runs/mrpc \
        --config.data.dir=GLUE

Arguments: task=cola|sst2|mrpc|stsb|qqp|mnli|qnli|rte|wnli|all (all: those that the folder holds), recipe=bert|
layer_drop|early_bert, debug (shrinks everything to seconds). GLUE is a folder with MRPC/train.tsv and so on, or
tfds:glue. Three seeds at each learning rate are twelve runs a task: --config.learning_rates=3e-5 --config.seeds=0 is
one. BERT-base scores 79.6 on the test server, the mean of eight tasks (Devlin et al. 2019, table 1).

recipe=layer_drop: that of progressive layer dropping's paper, a rate for each task. recipe=early_bert: EarlyBERT's,
which searches for 0.2 of an epoch, cuts a third of the heads and 40 % of the neurons out, and trains what is left.
"""

from configs import common, common_finetune


def get_config(text=None):
    args = common.parse(text, task="all", recipe="bert", debug=False)
    config = common_finetune.finetune(args["task"])
    common_finetune.apply_recipe(config, args["recipe"])
    if args["debug"]:
        common_finetune.debug(config)
    return config
