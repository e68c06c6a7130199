"""What must stay the same when a run continues: its config and its shards."""

import dataclasses
import json
import pathlib
import types
from collections.abc import Mapping

from bert_fast import BadInput, methods
from bert_fast.data import shards
from bert_fast.train.description import Description
from bert_fast.train.optim import Optimizer
from bert_fast.train.settings import PretrainSettings, current_keys


def refuse_other(workdir: pathlib.Path, config: dict, newer: Mapping = types.MappingProxyType({})):
    """Raises BadInput, with the differences, if the folder holds a run with another config.

    newer: keys that older versions did not have, with the values that reproduce what those versions did.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return

    def filled(tree: dict) -> dict:
        """The config with the code's defaults filled in: a run older than a key behaved as the key's default does."""
        optimizer = {field.name: field.default for field in dataclasses.fields(Optimizer)}
        optimizer = {name: default for name, default in optimizer.items() if default is not dataclasses.MISSING}
        defaults = methods.defaults() | {"optimizer": optimizer}
        tree = current_keys(tree)
        return {**newer, **tree} | {name: known | tree.get(name, {}) for name, known in defaults.items()}

    before, now = (_flat(filled(tree)) for tree in (json.loads(path.read_text()), json.loads(json.dumps(config))))
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if keys:
        lines = "\n".join(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in keys)
        raise BadInput(
            f"{workdir} holds a run with another config:\n{lines}\n"
            "Give another --workdir, or continue that run with the config that it was started with"
        )


def check_shards(settings: PretrainSettings, about: Description, evaluation: str):
    """Raises BadInput if the run to continue was made with other shards."""
    sha256 = shards.read_manifest(settings.data.dir)["vocab"]["sha256"]
    if about.vocab.fingerprint != sha256 or about.fingerprint != evaluation:
        raise BadInput(
            f"{settings.data.dir} no longer holds the shards of this run (their fingerprint is {evaluation}, the "
            f"run's is {about.fingerprint}): put them back, or start a new run in another --workdir"
        )


def _flat(tree, prefix="") -> dict:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
