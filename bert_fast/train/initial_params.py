"""The initial parameters of a run: random, or taken from another run."""

import functools
import pathlib

import jax
import numpy as np
from jax.sharding import Mesh

from bert_fast import BadInput, bert, methods
from bert_fast.bert import Params
from bert_fast.train import checkpoint
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.sharding import shard


def first(settings: PretrainSettings, model: bert.Config, manifest: dict, mesh: Mesh) -> Params:
    """The parameters at step 0: those of the run that `settings.init` names, or random ones if it is empty."""
    return warm(settings, model, manifest, mesh) if settings.init else fresh(model, settings.seed, mesh)


def fresh(model: bert.Config, seed: int, mesh: Mesh) -> Params:
    """Random parameters, created on their devices."""
    return _maker(model, mesh)(np.uint32(seed))  # traced, so that all seeds share one compiled program


@functools.lru_cache(4)
def _maker(model: bert.Config, mesh: Mesh):
    return jax.jit(lambda seed: bert.init(model, jax.random.key(seed)), out_shardings=shard(bert.shapes(model), mesh))


def warm(settings: PretrainSettings, model: bert.Config, manifest: dict, mesh: Mesh) -> Params:
    """The parameters of another run (`--config.init`). Drops its next-sentence head, or adds a fresh one, as needed.

    Raises BadInput if its model or its vocabulary differs.
    """
    return checkpoint.read(settings.init, functools.partial(_warm, settings, model, manifest, mesh))


def _warm(settings: PretrainSettings, model: bert.Config, manifest: dict, mesh: Mesh, folder: pathlib.Path) -> Params:
    about = checkpoint.about(folder)
    if about.vocab.fingerprint != manifest["vocab"]["sha256"]:
        raise BadInput(
            f"--config.init={settings.init} has a different vocabulary from the shards in {settings.data.dir}: "
            "prepare the shards with that run's vocabulary (--vocab=FILE)"
        )
    if about.task is not None:
        raise BadInput(
            f"--config.init={settings.init} was fine-tuned, and has no head for masked words: give the "
            "pre-training run that it started from"
        )
    theirs = about.model
    shape = ("depth", "width", "heads_L", "head_size", "mlp_dim_L", "max_len", "type_count", "norm", "embed_norm")
    shape += ("activation", "norm_eps", "tied")
    differing = [name for name in shape if getattr(theirs, name) != getattr(model, name)]
    if differing:
        lines = "; ".join(f"{name} is {getattr(theirs, name)} there, {getattr(model, name)} here" for name in differing)
        remedy = "set --config.model to match it"
        if len(set(theirs.widths_L)) > 1 or not theirs.tied:
            remedy = "its layers differ in width, or its head has its own word table: a new run cannot start from it"
        raise BadInput(f"--config.init={settings.init} holds a different model ({lines}): {remedy}")
    # Methods may have added parameters. These are folded into the others, so this run starts from a plain model.
    params, _ = methods.make(about.methods).weights(checkpoint.restore_params(folder))
    params = {name: leaf for name, leaf in params.items() if name != "next" or model.pooler}
    # The other run's word table may have more or fewer rows of padding than this model's.
    params["embed"] = {**params["embed"], "word": with_rows(params["embed"]["word"], model.table_rows)}
    params["mlm"] = {**params["mlm"], "bias": with_rows(params["mlm"]["bias"], model.table_rows)}
    params = jax.tree.map(jax.device_put, params, shard(params, mesh))
    if model.pooler and "next" not in params:
        params["next"] = fresh(model, settings.seed, mesh)["next"]
    return params


def with_rows(table, rows: int):
    """The table with exactly `rows` rows: the rest is cut off, or rows of zeros are added."""
    table = np.asarray(table)[:rows]
    return np.pad(table, [(0, rows - len(table))] + [(0, 0)] * (table.ndim - 1))
