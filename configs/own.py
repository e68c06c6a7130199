"""Fine-tuning on your own labelled file: classes, a number, or a tag for each token.

    bert-fast finetune --config=own:train=reviews.csv,text=review,label=stars --checkpoint=runs/base --workdir=runs/own
    bert-fast finetune --config=own:kind=tags,train=train.conll --checkpoint=runs/base --workdir=runs/names

Arguments: kind=classes|score|tags, train=FILE, valid=FILE (without it, a tenth of the training file is held out),
test=FILE (predictions are written), text=COLUMN, pair=COLUMN (a second text), label=COLUMN, recipe=bert|early_bert,
seq=LENGTH (128), debug (shrinks everything to seconds). size, objective and norm are fixed by the checkpoint.

kind=classes and kind=score read .csv, .tsv or .jsonl; the columns are "text" and "label" by default. kind=tags reads
CoNLL files, or .jsonl with "tokens" and "tags". In CoNLL files, the first column is the token and the last is the tag;
text=2 and label=4 choose other columns by number. The default is one run, at learning rate 5e-5 (with
recipe=early_bert: 4e-5). BERT's sweep is --config.learning_rates=2e-5,3e-5,4e-5,5e-5 --config.seeds=0,1,2.
For small models, higher rates are better: the README of google-research/bert lists 3e-4 and 1e-4 too.
"""

from bert_fast import BadInput
from bert_fast.configs import common, common_finetune

COLUMNS = {"classes": ("text", "label"), "score": ("text", "label"), "tags": ("tokens", "tags")}


def get_config(text=None):
    files = dict.fromkeys(("train", "valid", "test", "text", "pair", "label"), "")
    given = {"kind": "classes", "recipe": "bert", "seq": 128, "debug": False}
    args = common.parse(text, common_finetune.FIXED, **given, **files)
    if args["kind"] not in COLUMNS:
        raise BadInput(f"config argument kind={args['kind']!r}: expected kind=classes, kind=score or kind=tags")
    if args["recipe"] not in ("bert", "early_bert"):
        raise BadInput(f"config argument recipe={args['recipe']!r}: expected recipe=bert or recipe=early_bert")
    config = common_finetune.finetune("own")
    common_finetune.apply_recipe(config, args["recipe"])
    config.own.kind = args["kind"]
    config.own.text, config.own.label = COLUMNS[args["kind"]]
    config.own.update({name: args[name] for name in files if args[name]})
    config.data.seq_len = args["seq"]
    config.seeds = "0"
    if args["recipe"] == "bert":
        config.learning_rates = "5e-5"
    if args["debug"]:
        common_finetune.debug(config)
        config.data.seq_len = min(args["seq"], 64)  # a debug model has 64 positions
    return config
