"""From an encoder to scores: fine-tuning on GLUE and SQuAD.

    glue.py      the nine GLUE tasks: files, metrics and submissions
    squad.py     SQuAD 1.1 and 2.0: files, metrics and submissions
    spans.py     windows over long contexts, and the answers in them
    data.py      a task as the training loop sees it: examples, a head, a score, a way to write predictions
    batches.py   batches of examples of similar length, in a few widths
    encoder.py   what is fine-tuned: a checkpoint, a Hugging Face folder, or fresh weights
    model.py     the encoder with a head, its loss (an `Objective` for train/step.py), prediction
    settings.py  a call's settings, checked when they are made
    trainer.py   what the runs of a task share: widths, stages, compiled programs
    finetune.py  one run: a task, a learning rate, a seed
    sweep.py     all runs of a call: finished ones are kept and summarised in results.json
    inputs.py    the texts to predict, read from a file
    predict.py   a fine-tuned model's predictions for them: the command `predict`

Fine-tuning never drops layers or tokens. Methods that change widths (tickets) are allowed.
"""
