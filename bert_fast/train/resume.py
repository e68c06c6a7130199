"""What must stay the same when a run continues: its config and its shards."""

import dataclasses
import json
import pathlib
import types
from collections.abc import Mapping, Sequence

from bert_fast import BadInput, methods
from bert_fast.data import shards
from bert_fast.train import step_costs
from bert_fast.train.description import Description
from bert_fast.train.optim import Optimizer
from bert_fast.train.settings import Data, PretrainSettings, current_keys
from bert_fast.train.step_costs import StepCosts


def refuse_other(workdir: pathlib.Path, config: dict, newer: Mapping = types.MappingProxyType({})):
    """Raises BadInput, with the differences, if the folder holds a run with another config.

    newer: keys that older versions did not have, with the values that reproduce what those versions did.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return

    def filled(tree: dict) -> dict:
        """The config with the code's defaults filled in. The default of a newer key is what older versions did."""
        defaults = methods.defaults() | {"optimizer": defaults_of(Optimizer), "data": defaults_of(Data)}
        free = ("costs", "sinks", "profile")  # for costs, see refuse_other_costs
        tree = {key: value for key, value in current_keys(tree).items() if key not in free}
        return {**newer, **tree} | {name: known | tree.get(name, {}) for name, known in defaults.items()}

    before, now = (_flat(filled(tree)) for tree in (json.loads(path.read_text()), json.loads(json.dumps(config))))
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if keys:
        lines = "\n".join(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in keys)
        raise BadInput(
            f"{workdir} holds a run with another config:\n{lines}\n"
            "Give another --workdir, or continue that run with the config that it was started with"
        )


def defaults_of(kind) -> dict:
    """The defaults of a dataclass's fields. The default of a newer field reproduces older runs."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: default for name, default in defaults.items() if default is not dataclasses.MISSING}


def refuse_other_costs(workdir: pathlib.Path, costs: StepCosts | None, keys: Sequence[str]):
    """Raises BadInput if the run in the folder was planned with other step costs. keys: of the run's stages."""
    path = workdir / "costs.json"
    if costs is None or not path.is_file():
        return
    before = step_costs.read(path)
    if [before.curves.get(key) for key in keys] != [costs.curves.get(key) for key in keys]:
        raise BadInput(
            f"{workdir} holds a run that was planned with other step costs: continue it with --config.costs={path}, "
            "or give another --workdir"
        )


def check_shards(settings: PretrainSettings, about: Description, evaluation: str):
    """Raises BadInput if the run to continue was made with other shards."""
    sha256 = shards.read_manifest(settings.data.dir)["vocab"]["sha256"]
    if about.vocab.fingerprint != sha256 or about.fingerprint != evaluation:
        raise BadInput(
            f"{settings.data.dir} no longer holds the shards of this run (the fingerprint is now {evaluation}; the "
            f"run started with {about.fingerprint}): restore the shards, or start a new run in another --workdir"
        )


def _flat(tree, prefix="") -> dict:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
