"""The Python interface, for scripts and notebooks. The example in each docstring builds on the previous example.

A checkpoint is given as a run folder (for its newest undamaged checkpoint) or as one `checkpoints/STEP`. It may be in a
bucket, and so may the shards and the `workdir` of `pretrain`: give the URL as a string. Invalid values raise `BadInput`
with the remedy. Ctrl-C saves the work and raises `Interrupted`. To continue the work, make the same call again.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_fast import BadInput, encoder, inference, methods, reporting, storage
from bert_fast.commands import config_flag
from bert_fast.data import shards
from bert_fast.data.prepare import prepare as prepare_shards
from bert_fast.hf import write
from bert_fast.inference import Model
from bert_fast.tasks import settings as finetune_settings
from bert_fast.tasks import sweep
from bert_fast.train import cache, loop, remote, resume, settings

Path = str | pathlib.Path


def prepare(source: str, out: Path, **options) -> dict:
    """Turns text into shards and a vocabulary in `out`; returns the manifest.

    source: "docs" (the documentation installed on this machine), "files:GLOB", "hf:ORG/NAME:SPLIT" or
        "tfds:NAME/CONFIG:SPLIT".
    options: those of `bert_fast.data.prepare.prepare`, such as `vocab`, `vocab_size` and `cased`.

    In a script, call this under `if __name__ == "__main__":`, because the worker processes import the script.

    >>> manifest = bert_fast.prepare("files:corpus/*.txt", "shards", vocab_size=300, valid_fraction=0.1)
    >>> manifest["vocab"]["size"] <= 300
    True
    """
    storage.refuse(out, "out")
    with contextlib.redirect_stdout(sys.stderr):  # the other functions report their progress there
        return prepare_shards(source, out, **options)


def pretrain(
    config: Path | ConfigDict,
    workdir: Path,
    data: Path = "",
    changes: Mapping[str, Any] | None = None,
    extend: str = "",
) -> dict:
    """Trains a model, or continues the run in `workdir`; returns the run's summary.

    config: a ConfigDict, or a value of `--config`, such as "bert:size=mini" or "mine.py".
    data: the shards folder. changes: new config values by dotted key. extend: "stretch" or "constant" to add steps to a
    run, like the flag --extend.

    >>> summary = bert_fast.pretrain(
    ...     "token_drop:size=tiny,objective=mlm,debug", "run", data="shards", changes={"learning_rate.peak": 1e-3}
    ... )
    >>> summary["steps"]
    20
    """
    made = _config(config, data, changes)
    if not made["data"]["dir"]:
        raise BadInput("data is missing: give the folder that bert_fast.prepare made")
    cache.keep_programs()
    vocab = shards.read_manifest(made["data"]["dir"])["vocab"]
    with remote.run_folder(workdir) as (folder, mirror):
        resume.settle_activation(folder, made)
        chosen = dataclasses.replace(settings.make(made, vocab, tuple(methods.known())), extend=extend)
        return loop.pretrain(chosen, made, folder, mirror=mirror)


def load(checkpoint: Path) -> Model:
    """The model of a checkpoint: its parameters, and a function from texts to hidden states and logits.

    >>> model = bert_fast.load("run")
    >>> outputs = model(["the quick brown fox", "a lazy dog"])
    >>> outputs.hidden_BSD.shape[-1] == model.encoder.model.width
    True
    >>> outputs.logits_BSV.shape[:2] == outputs.real_BS.shape
    True
    """
    cache.keep_programs()
    return Model(encoder.load(checkpoint))


def evaluate(checkpoint: Model | Path, data: Path = "", unigram: bool = False, **changes) -> dict[str, Any]:
    """Held-out losses of a checkpoint, in nats, on the run's shards or on the shards in `data`.

    unigram: also report the loss of a model that only knows word frequencies.
    changes: new values of `examples`, `seq_len`, `batch_size` or `seed`.

    >>> result = bert_fast.evaluate("run", unigram=True, examples=8)
    >>> result["mlm_loss"] > 0 and result["unigram_loss"] > 0
    True
    """
    cache.keep_programs()
    return inference.evaluate(str(_folder(checkpoint)), str(data), unigram, **changes)


def fill_mask(model: Model | Path, texts: str | Sequence[str], top: int = 5) -> list[list[list[tuple[str, float]]]]:
    """The `top` most probable word pieces with their probabilities, for each [MASK] of each text.

    >>> [[words]] = bert_fast.fill_mask(model, "the quick [MASK] fox", top=3)
    >>> len(words)
    3
    """
    return inference.fill_mask(_encoder(model), [texts] if isinstance(texts, str) else texts, top)


def embed(model: Model | Path, texts: str | Sequence[str], pooling: str = "mean", batch_size: int = 32) -> np.ndarray:
    """One vector per text, from the last hidden states: [N, D] float32. `pooling` is "mean" or "cls".

    >>> vectors = bert_fast.embed(model, ["the quick brown fox", "a lazy dog", "seven wizards"])
    >>> vectors.shape == (3, model.encoder.model.width)
    True
    """
    return inference.embed(_encoder(model), [texts] if isinstance(texts, str) else texts, pooling, batch_size)


def finetune(
    config: Path | ConfigDict,
    workdir: Path,
    checkpoint: Path = "",
    hf: Path = "",
    data: Path = "",
    changes: Mapping[str, Any] | None = None,
) -> dict:
    """Fine-tunes a checkpoint or a Hugging Face model on GLUE, SQuAD or your own files. Returns what results.json has.

    config: as for `pretrain`, such as "glue:task=mrpc". hf: a Hugging Face folder, or the name of a model on the Hub.
    data: the folder with the task's files. Finished runs in `workdir` are not repeated.

    >>> results = bert_fast.finetune("glue:task=mrpc,seq=48,debug", "mrpc", checkpoint="run", data="glue")
    >>> sorted(results["tasks"]["mrpc"]["last"])
    ['accuracy', 'f1', 'score']
    """
    storage.refuse(workdir, "workdir")
    storage.refuse(data, "data")
    made = _config(config, data, changes)
    cache.keep_programs()
    return sweep.finetune(finetune_settings.make(made), made, pathlib.Path(workdir), str(checkpoint), str(hf))


def report(paths: Path | Sequence[Path], out: Path = "") -> list[pathlib.Path]:
    """Writes a page about runs, a comparison and fine-tuning; returns the files written.

    paths: run folders and finetune folders, or the folder of a comparison. out: a folder for report.html, report.md and
    (if matplotlib is installed) report.png, or one file that ends in .html, .md or .png. The default is the folder
    of the comparison or of the only run, else the current folder.

    >>> [path.name for path in bert_fast.report(["run", "mrpc"], out="report.html")]
    ['report.html']
    """
    storage.refuse(out, "out")
    return reporting.write([paths] if isinstance(paths, Path) else paths, out)


def export(checkpoint: Model | Path, out: Path, verify: bool = False, **options) -> write.Export:
    """Writes a checkpoint as a Hugging Face folder, with tokenizer and model card.

    verify: compare with transformers, and delete the export if a logit differs by more than 1e-4 (needs torch).

    >>> bert_fast.export("run", "exported").class_name
    'BertForMaskedLM'
    """
    storage.refuse(out, "out")
    return write.export(_folder(checkpoint), out, compare=verify, **options)


def _config(config: Path | ConfigDict, data: Path, changes: Mapping[str, Any] | None) -> dict:
    """The values of a config after `changes`, with `data` as its data folder."""
    changes = {**(changes or {}), **({"data.dir": str(data)} if data else {})}
    if isinstance(config, Path):
        return config_flag.load(str(config), changes).to_dict()
    return config_flag.changed(config, changes).to_dict()


def _encoder(model: Model | Path) -> encoder.Encoder:
    return model.encoder if isinstance(model, Model) else load(model).encoder


def _folder(model: Model | Path) -> Path:
    return model.encoder.folder if isinstance(model, Model) else model
