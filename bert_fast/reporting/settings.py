"""How the configs of the runs differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from bert_fast.reporting.blocks import Section, Table
from bert_fast.reporting.plans import chosen
from bert_fast.reporting.read import LoggedRun
from bert_fast.train.settings import flat

OF_ITSELF = ("costs", "budget", "seed")  # these keys differ between the runs of a study by design


def used(run: LoggedRun, defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A run's config, without the arguments of unused methods and without arguments at their defaults."""
    own = [name for name, _ in run.methods]
    found = {}
    for key, value in flat(run.config).items():
        name, _, argument = key.partition(".")
        if name not in defaults or (name in own and value != defaults[name].get(argument)):
            found[key] = value
    return found


def shown(value: Any) -> str:
    return "-" if value is None else repr(value) if value == "" else str(value)


def section(runs: Sequence[LoggedRun], defaults: Mapping[str, Mapping[str, Any]], is_study: bool) -> Section | None:
    """The report's section about configs; None if no run has a config. defaults: each method's default arguments."""
    compared = chosen(runs) if is_study else [run for run in runs if run.config]
    if not compared:
        return None
    configs = {run.arm: used(run, defaults) for run in compared}
    keys = sorted({key for config in configs.values() for key in config})
    if len(configs) == 1:
        (config,) = configs.values()
        table = Table("The run's config", ["key", "value"], [[key, shown(config[key])] for key in keys])
        return Section("config", "Config", [table])
    rows = [
        [key, *(shown(config.get(key)) for config in configs.values())]
        for key in keys
        if not (is_study and key in OF_ITSELF) and len({shown(config.get(key)) for config in configs.values()}) > 1
    ]
    if not rows:
        return Section("config", "Config differences", ["The runs have the same config."])
    table = Table(
        "Values that differ. A method's arguments are shown as - where they have their default",
        ["key", *configs],
        rows,
        words=1 + len(configs),
    )
    return Section("config", "Config differences", [table])
