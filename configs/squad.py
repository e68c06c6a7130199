"""Fine-tuning on SQuAD (Rajpurkar et al. 2016, 2018), as in BERT's paper: batches of 32, learning rate 5e-5.

    bert-fast finetune --config=squad:version=1.1 --checkpoint=runs/base --workdir=runs/squad --config.data.dir=SQUAD

Arguments: version=1.1|2.0, recipe=bert|early_bert, seq=LENGTH (384), debug (shrinks everything to seconds). size,
objective and norm are fixed by the checkpoint. SQUAD is a folder with train-v1.1.json and dev-v1.1.json (or .json.gz),
or tfds:squad. Windows start 128 tokens apart.
v1.1: 3 epochs; BERT-base reaches F1 88.5. v2.0: 2 epochs, batches of 48 (Devlin et al. 2019, sections 4.2 and 4.3).

recipe=early_bert: the recipe of launch_earlybert_squad.sh in VITA-Group/EarlyBERT. The ticket (the heads and neurons
that remain) is drawn after 0.2 of an epoch.
"""

from bert_fast import BadInput
from bert_fast.configs import common, common_finetune


def get_config(text=None):
    args = common.parse(text, common_finetune.FIXED, version="1.1", recipe="bert", seq=384, debug=False)
    if args["version"] not in ("1.1", "2.0"):
        raise BadInput(f"config argument version={args['version']!r}: expected version=1.1 or version=2.0")
    if args["recipe"] not in ("bert", "early_bert"):
        raise BadInput(f"config argument recipe={args['recipe']!r}: expected recipe=bert or recipe=early_bert")
    config = common_finetune.finetune(f"squad{args['version']}")
    common_finetune.apply_recipe(config, args["recipe"])
    config.data.seq_len = args["seq"]  # 384: `max_seq_length` in google-research/bert's README
    config.seeds = "0"
    if args["recipe"] == "early_bert":
        config.epochs = 3.0
        config.early_bert.update(search=0.2 / 3, draw_before_update=False)  # 0.2 of an epoch
        config.batch_size = 48  # 12 on each of four GPUs
        config.learning_rates = "3e-5"
        config.search.update(learning_rate=3e-5, epochs=2.0)
    else:
        config.learning_rates = "5e-5"
        if args["version"] == "2.0":
            config.epochs, config.batch_size = 2.0, 48
    if args["debug"]:
        common_finetune.debug(config)
    return config
