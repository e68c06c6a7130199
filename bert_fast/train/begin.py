"""The beginning of a pre-training: what is checked before it, its rows, and its first parameters."""

import dataclasses
import functools
import json
import pathlib
import types
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from bert_fast import BadInput, bert, methods
from bert_fast.bert import Params
from bert_fast.data import batches, masking, shards
from bert_fast.method import Stage
from bert_fast.train import checkpoint
from bert_fast.train.description import Description
from bert_fast.train.evaluate import row_settings
from bert_fast.train.optim import Optimizer
from bert_fast.train.settings import Settings
from bert_fast.train.sharding import shard, tensor_crosses


def train_rows(settings: Settings, stage: Stage) -> batches.Rows:
    """The training rows of a stage's length. Raises BadInput where the shards do not fill one batch."""
    data, seq_len = settings.data, stage.program.seq_len
    split, vocab = shards.Split(data.dir, "train"), masking.read_vocab(data.dir)
    rows = batches.make_rows(split, vocab, row_settings(data, seq_len), settings.seed)
    batches.check_batch(rows, stage.program.batch_size)
    return rows


def order_of(stage: Stage) -> str:
    """Name of the order of rows that a stage reads; stages of one length and objective share theirs."""
    return f"{stage.program.objective}/{stage.program.seq_len}"


def check_devices(batch_size: int, micro_batches: int, eval_size: int, expected: Sequence[Stage], mesh: Mesh):
    """Raises BadInput where a micro-batch, an evaluation batch or a stage's parameter does not divide over the devices
    that share it, or where the tensor axis reaches over processes: each of them reads only its own examples.
    """
    if tensor_crosses(mesh):
        raise BadInput(
            f"--config.mesh.tensor={mesh.shape['tensor']} reaches over several of {jax.process_count()} processes: "
            "make it a divisor of the number of devices that each of them has"
        )
    sharing = mesh.shape["data"] * mesh.shape["fsdp"]
    micro = batch_size // micro_batches
    for name, size in (("batch_size / micro_batches", micro), ("eval.batch_size", eval_size)):
        if size % sharing:
            raise BadInput(
                f"--config.{name} is {size}, which does not divide over the {sharing} devices of the mesh's data and "
                f"fsdp axes: make it a multiple of {sharing}"
            )
    for stage in expected:
        try:
            shard(jax.eval_shape(functools.partial(bert.init, stage.program.model), jax.random.key(0)), mesh)
        except BadInput as error:
            raise BadInput(f"stage {stage.name}: {error}") from None


def refuse_other(workdir: pathlib.Path, config: dict, newer: Mapping = types.MappingProxyType({})):
    """Raises BadInput that shows the difference where the folder holds a run of another config.

    newer: keys that older versions did not have, with what those versions did.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return

    def filled(tree: dict) -> dict:
        """With the defaults of keys that have one in the code: a key that is newer than that run was at it there."""
        optimizer = {field.name: field.default for field in dataclasses.fields(Optimizer)}
        optimizer = {name: default for name, default in optimizer.items() if default is not dataclasses.MISSING}
        defaults = methods.defaults() | {"optimizer": optimizer}
        return {**newer, **tree} | {name: known | tree.get(name, {}) for name, known in defaults.items()}

    before, now = (_flat(filled(tree)) for tree in (json.loads(path.read_text()), json.loads(json.dumps(config))))
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if keys:
        lines = "\n".join(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in keys)
        raise BadInput(
            f"{workdir} holds a run of another config:\n{lines}\n"
            "Give another --workdir, or the config that was used there to continue it"
        )


def check_shards(settings: Settings, about: Description, evaluation: str):
    """Raises BadInput where the run that is to be continued was made with other shards."""
    sha256 = shards.read_manifest(settings.data.dir)["vocab"]["sha256"]
    if about.vocab.fingerprint != sha256 or about.fingerprint != evaluation:
        raise BadInput(
            f"{settings.data.dir} no longer holds the shards of this run (fingerprint {evaluation}, the "
            f"run has {about.fingerprint}): put them back, or begin a new run in another --workdir"
        )


def _flat(tree, prefix="") -> dict:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}


def fresh_params(model: bert.Config, seed: int, mesh: Mesh) -> Params:
    """Initial parameters, made where they live."""
    make = lambda seed: bert.init(model, jax.random.key(seed))  # noqa: E731
    number = np.uint32(seed)  # traced, so that every seed has the same program
    return jax.jit(make, out_shardings=shard(jax.eval_shape(make, number), mesh))(number)


def warm_params(settings: Settings, model: bert.Config, manifest: dict, mesh: Mesh) -> Params:
    """The parameters of another run (`--config.init`), its next-sentence head left out or made fresh as needed.

    Raises BadInput where its model or its vocabulary is another.
    """
    folder = checkpoint.find(settings.init)
    about = checkpoint.about(folder)
    if about.vocab.fingerprint != manifest["vocab"]["sha256"]:
        raise BadInput(
            f"--config.init={settings.init} was trained with another vocabulary than {settings.data.dir} was prepared "
            "with: prepare with the one that it was trained with (--vocab=FILE)"
        )
    if about.task is not None:
        raise BadInput(
            f"--config.init={settings.init} was fine-tuned and has no head for masked words: give the run that it "
            "began from"
        )
    theirs = about.model
    shape = ("depth", "width", "heads_L", "head_size", "hidden_L", "max_len", "type_count", "norm", "embed_norm")
    shape += ("activation", "norm_eps", "tied")
    differing = [name for name in shape if getattr(theirs, name) != getattr(model, name)]
    if differing:
        lines = "; ".join(f"{name} is {getattr(theirs, name)} there, {getattr(model, name)} here" for name in differing)
        remedy = "set --config.model to match it"
        if len(set(theirs.widths_L)) > 1 or not theirs.tied:
            remedy = "its layers differ in width, or its head has a table of its own: a new run cannot begin with that"
        raise BadInput(f"--config.init={settings.init} holds another model ({lines}): {remedy}")
    # What a method added to the parameters is applied, so that this run begins with a plain model.
    params, _ = methods.make(about.methods).weights(checkpoint.restore_params(folder))
    params = {name: leaf for name, leaf in params.items() if name != "next" or model.pooler}
    # A table that came from elsewhere may have rows beyond its vocabulary, or fewer beyond it than ours has.
    params["embed"] = {**params["embed"], "word": with_rows(params["embed"]["word"], model.table_rows)}
    params["mlm"] = {**params["mlm"], "bias": with_rows(params["mlm"]["bias"], model.table_rows)}
    params = jax.tree.map(jax.device_put, params, shard(params, mesh))
    if model.pooler and "next" not in params:
        params["next"] = fresh_params(model, settings.seed, mesh)["next"]
    return params


def with_rows(table, rows: int):
    """A table cut, or filled with zeros, to so many rows."""
    table = np.asarray(table)[:rows]
    return np.pad(table, [(0, rows - len(table))] + [(0, 0)] * (table.ndim - 1))
