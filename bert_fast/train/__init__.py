"""Training: one engine, and pre-training on it (fine-tuning is in tasks/).

    engine.py       stages, steps, surgery, compiled programs, counts; no files, no printing
    step.py         the train step, for any objective; what learns and what does not
    objective.py    pre-training's loss, its sums for the log, and the evaluation step
    timeline.py     a run's stages, its clock, and what a step draws
    state.py        the state of a run: fresh, resumed, or after the methods' surgery
    optim.py        AdamW and LAMB
    compile.py      compiled programs; cache.py keeps them on disk
    sharding.py     the mesh, and where each parameter lives on it

    loop.py         pre-training: rows, evaluations and checkpoints around the engine
    settings.py     a run's settings, checked at the door
    initial_params.py    the first parameters of a run
    inputs.py       which rows of the shards a run reads
    resume.py       what must be the same when a run continues
    evaluate.py     held-out loss
    checkpoint.py   arrays and checksums; description.py what about.json says
    counters.py         position and counts of a run
    log.py, report.py, signals.py   rows and progress, words for people, signals

The learning rate of a step: `Engine.learning_rate`, which asks `Stage.learning_rate` in method.py.
"""
