"""The training engine, and pre-training built on it. Fine-tuning, in tasks/, uses the same engine.

    engine.py       stages, steps, surgery, compiled programs, counts; writes no files, prints nothing
    step.py         the train step for any objective; splits parameters into trained and frozen
    objective.py    the pre-training loss, its sums for the log, and the evaluation step
    timeline.py     a run's stages, its clock, and the programs that its steps run
    state.py        the state of a run: fresh, resumed, or after the methods' surgery
    optim.py        AdamW, LAMB and Muon
    compile.py      compiled programs; cache.py keeps them on disk
    sharding.py     the mesh, and where each parameter lives on it

    loop.py         pre-training: log rows, evaluations and checkpoints around the engine
    settings.py     a run's settings, validated before anything starts
    initial_params.py    the initial parameters of a run
    inputs.py       which examples a run reads
    resume.py       what must stay the same when a run continues
    evaluate.py     held-out loss
    checkpoint.py   arrays and checksums; description.py defines about.json, orbax_messages.py hides repeated errors
    counters.py     a run's position and counts
    guard.py        which steps are kept; rollback.py goes back to a checkpoint after too many bad ones
    waiting.py      what a run waits for; watchdog.py limits each wait, and signals.py handles stop requests
    agreement.py    several processes: what they must agree on, and how each learns that another failed
    replay.py       computes some steps twice, to find faulty hardware
    goodput.py      where the wall time went
    log.py, report.py   metrics and progress, messages for people

Surgery is what a method does to the parameters and moments between two stages: grow, prune or rewind them.
`Engine.learning_rate` gives the learning rate of a step. It calls `Stage.learning_rate` in method.py,
which calls `Schedule` in schedule.py.
"""
