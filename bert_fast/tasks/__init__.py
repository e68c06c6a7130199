"""Fine-tuning on GLUE, SQuAD and your own files: from a pre-trained encoder to held-out scores.

A call is one use of the command `finetune`. It makes one run for each task, learning rate and seed.

    glue.py      the nine GLUE tasks: files, metrics and submissions
    squad.py     SQuAD 1.1 and 2.0: files, metrics and submissions
    spans.py     windows over long contexts, and the answers in them
    own.py       your own labelled files: classes, scores or tags
    own_task.py  the task of such files: held-out examples, scores and predictions
    tables.py    reads CSV, TSV and JSON Lines
    conll.py     reads sentences with tags, and converts tags to IOB2
    tags.py      a tag for each token: examples, tags from logits, and scores
    task.py      a task as the training loop sees it: examples, a head, scores, and a way to write predictions
    data.py      reads and makes the tasks by name
    batches.py   batches of examples of similar length, in a few widths
    encoder.py   the encoder to fine-tune: a checkpoint, a Hugging Face folder, or fresh weights
    model.py     the encoder with a head: its loss (an `Objective` for train/step.py) and its predictions
    settings.py  the settings of a call, checked when they are made
    trainer.py   what all runs of a task share: widths, stages, compiled programs
    finetune.py  one run: one task, one learning rate, one seed
    sweep.py     all runs of a call: keeps the finished ones and summarises them in results.json
    inputs.py    reads the input texts of the command `predict` from a file
    predict.py   a fine-tuned model's predictions for these texts: the command `predict`

Fine-tuning never drops layers or tokens. Methods that prune heads and neurons (early_bert's tickets) are allowed.
"""
