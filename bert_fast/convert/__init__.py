"""Configs of other projects, turned into configs of this one.

    deepspeed.py       DeepSpeed's engine: batches, optimizer, schedule, progressive layer dropping, random-LTD
    bing_bert.py       the second file of DeepSpeedExamples' bing_bert: model, steps, learning rate
    model_garden.py    experiments of TensorFlow Model Garden, with token dropping

Each key of a file is converted, or listed with the reason why it cannot be converted, or listed as unknown.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from bert_fast import BadInput
from bert_fast.convert import bing_bert, deepspeed, model_garden
from bert_fast.convert.conversion import Conversion
from bert_fast.convert.section import ConfigSection


class Loader(yaml.SafeLoader):
    """Reads Model Garden's files, which mark tuples with a Python tag."""


Loader.add_constructor("tag:yaml.org,2002:python/tuple", Loader.construct_sequence)


def convert(paths: Sequence[pathlib.Path], steps: int = 0, devices: int = 0) -> Conversion:
    """The conversion of files that together describe one run. A later file overrides an earlier one of the same kind.

    steps, devices: the run's numbers of steps and devices, if they are not in the files; 0: unknown. Raises BadInput
    for files that cannot be read, are of no known kind, or belong to different projects.
    """
    kinds: dict[str, dict] = {}
    for path in paths:
        values = read(path)
        kind = kind_of(path, values)
        kinds[kind] = merged(kinds.get(kind, {}), values)
    if len(kinds) > 1 and "model_garden" in kinds:
        raise BadInput(
            f"{', '.join(map(str, paths))} belong to different projects: convert each project's files separately"
        )
    result = Conversion([str(path) for path in paths])
    if steps:
        result.set("steps", steps, "--steps")
    if "model_garden" in kinds:
        model_garden.convert(ConfigSection(kinds["model_garden"], result), result)
        return result
    engine = ConfigSection(kinds.get("deepspeed", {}), result)
    if "bing_bert" in kinds:
        bing_bert.convert(ConfigSection(kinds["bing_bert"], result), result)
    if "deepspeed" in kinds:
        deepspeed.convert(engine, result, devices)
    return result


def finished(found: Conversion, base: Mapping[str, Any]) -> Conversion:
    """Adds the settings that also depend on values of the base config. Returns the conversion."""
    if found.growth:
        keep, tail = deepspeed.kept(found.growth, int(found.get("steps", base)))
        found.set("token_drop.keep", keep, "mean of random_ltd_schedule over the steps that drop tokens")
        found.set("token_drop.full_tail", tail, "random_ltd_schedule: steps after require_steps")
        reason = (
            f"here, the number of kept tokens does not grow: {keep:.0%} are kept, so that over the whole run, the "
            "layers update as many tokens as with this schedule"
        )
        found.leave("random_ltd_schedule", found.growth, reason)
    return found


def read(path: pathlib.Path) -> dict:
    """The content of a JSON or YAML file. Raises BadInput."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(
            f"{path} is not {'JSON' if path.suffix == '.json' else 'YAML'}: {' '.join(str(error).split())}. If it is a "
            "template, fill in its values first"
        ) from None
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds a {type(values).__name__}: expected a config with named values")
    return values


def kind_of(path: pathlib.Path, values: dict) -> str:
    """Which project's file this is. Raises BadInput if it belongs to none of them."""
    for kind, marks in (
        ("bing_bert", ("bert_model_config", "mixed_seq_training")),
        ("model_garden", ("task", "trainer", "runtime")),
        ("deepspeed", deepspeed.MARKS),
    ):
        if any(mark in values for mark in marks):
            return kind
    raise BadInput(
        f"{path} is not a config that can be converted (its keys: {', '.join(map(str, values)) or 'none'}). Expected a "
        "DeepSpeed config, a model file of bing_bert, or an experiment of TensorFlow Model Garden"
    )


def merged(below: dict, above: dict) -> dict:
    """`below`, with values replaced by those in `above`."""
    groups = [key for key, value in above.items() if isinstance(value, dict) and isinstance(below.get(key), dict)]
    return {**below, **above, **{key: merged(below[key], above[key]) for key in groups}}
