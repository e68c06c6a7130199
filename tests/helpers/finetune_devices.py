"""Fine-tunes on one and on eight emulated devices; prints the curves of both runs as JSON.

test_finetune.py runs this in a separate process, because the number of emulated devices is fixed when JAX starts.
"""

import json
import os
import pathlib
import tempfile

from helpers import xla_flags

os.environ["XLA_FLAGS"] = xla_flags.devices(8)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from bert_fast.tasks import data, finetune
from bert_fast.tasks.trainer import Trainer
from bert_fast.train.sharding import make_mesh
from bert_fast.train.signals import StopSignal
from helpers.made_tasks import make_encoder, make_settings, write_glue

jax.config.update("jax_disable_most_optimizations", True)

with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    made, _ = make_settings(write_glue(folder, ("mrpc",)), epochs=1.0, widths=1)
    start = make_encoder(folder)
    task, found = data.make("mrpc", data.read("mrpc", made), start.vocab, made), []
    for sizes in ((1, 1, 1), (4, 2, 1)):
        trainer = Trainer(task, start, made)
        trainer.mesh = make_mesh(*sizes, devices=jax.devices()[: sizes[0] * sizes[1]])
        run = finetune.train_and_score(trainer, 3e-3, 0, folder / f"{sizes}", StopSignal(), lambda step, numbers: None)
        found.append(run.result["curve"])
    print(json.dumps(found))
