"""From an encoder to scores: fine-tuning on GLUE and SQuAD.

    glue.py      the nine tasks: their files, metrics and submissions
    squad.py     SQuAD 1.1 and 2.0: files, metrics and submissions; spans.py windows and answers
    data.py      a task as the loop sees it: rows of tokens, a head, a score, a way to write predictions
    batches.py   rows of similar length together, in a few widths
    encoder.py   what is fine-tuned: a checkpoint, a Hugging Face folder, or fresh weights
    model.py     the encoder with a head, its loss (an `Objective` for train/step.py), prediction
    settings.py  a call's settings, checked at the door
    trainer.py   what the runs of a task share: widths, stages, compiled programs
    finetune.py  one run: a task, a learning rate, a seed
    sweep.py     all of them: what is finished is kept, and summed up in results.json
    inputs.py    the texts of a file that is to be predicted
    predict.py   what a fine-tuned model says of them: the command `predict`

No layer and no token is left out here; a method that changes widths (a ticket) is welcome.
"""
