"""Fine-tuning on GLUE (Wang et al. 2019), as in BERT's paper: 3 epochs of batches of 32, four learning rates.

    bert-fast finetune --config=glue:task=mrpc --checkpoint=runs/base --workdir=runs/mrpc --config.data.dir=GLUE

Arguments: task=cola|sst2|mrpc|stsb|qqp|mnli|qnli|rte|wnli|all (all: the tasks that the folder holds), recipe=bert|
layer_drop|early_bert, seq=LENGTH (128), debug (shrinks everything to seconds). size, objective and norm are fixed by
the checkpoint. GLUE is a folder with MRPC/train.tsv and so on, or tfds:glue. With three seeds at each of four learning
rates, a task takes twelve runs; --config.learning_rates=3e-5 --config.seeds=0 is one run. BERT-base scores 79.6 on the
test server, the mean of eight tasks (Devlin et al. 2019, table 1).

recipe=layer_drop: progressive layer dropping's recipe, with one learning rate per task (see common_finetune.py).
recipe=early_bert: EarlyBERT's recipe. It searches for 0.2 of an epoch, prunes a third of the heads and 40 % of the
neurons, and trains the rest.
"""

from bert_fast.configs import common, common_finetune


def get_config(text=None):
    args = common.parse(text, common_finetune.FIXED, task="all", recipe="bert", seq=128, debug=False)
    config = common_finetune.finetune(args["task"])
    common_finetune.apply_recipe(config, args["recipe"])
    config.data.seq_len = args["seq"]  # `max_seq_length` in google-research/bert's README: GLUE at 128 tokens
    if args["debug"]:
        common_finetune.debug(config)
        config.data.seq_len = min(args["seq"], 64)  # a debug model has 64 positions
    return config
