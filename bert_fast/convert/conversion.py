"""The result of a conversion, and its config file and report."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

# The settings that matter most. For those that are not in the source files, the report lists the base config's values.
MATTER = (
    *("steps", "batch_size", "phases", "data.objective", "model.norm", "model.depth", "model.width"),
    *("learning_rate.peak", "learning_rate.warmup_steps", "learning_rate.decay", "optimizer.name", "model.dtype"),
)


class Change(NamedTuple):
    value: Any
    source: str


@dataclasses.dataclass
class Conversion:
    """The settings to which the source files are converted.

    base: the shipped config to start from.
    changes: new values, by the key in our configs.
    left: source keys without an equivalent, with value and reason.
    unknown: source keys that the converter does not know.
    read: source keys whose values were used or have no effect here.
    growth: four numbers of random-LTD: tokens kept at first, tokens kept in the end, steps until then, and tokens per
        increase.
    """

    files: list[str]
    base: str = "bert"
    changes: dict[str, Change] = dataclasses.field(default_factory=dict)
    left: dict[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    unknown: dict[str, Any] = dataclasses.field(default_factory=dict)
    read: dict[str, Any] = dataclasses.field(default_factory=dict)
    growth: tuple[int, int, int, int] | None = None

    def set(self, key: str, value: Any, source: str):
        """Records that `source` becomes this value of `key`."""
        self.changes[key] = Change(value, source)

    def add_method(self, name: str, source: str):
        """Records that `source` turns a method on, whatever the base config is."""
        before = self.changes.get("methods")
        self.set("methods", f"{before.value},{name}" if before and before.value else name, source)

    def leave(self, name: str, value: Any, reason: str):
        """Records that the source key `name` has no equivalent."""
        self.left[name] = (value, reason)

    def get(self, key: str, base: Mapping[str, Any]) -> Any:
        """The converted value of one of our keys. If there is none, the base config's value."""
        return self.changes[key].value if key in self.changes else base[key]


def typed(found: Conversion, base: Mapping[str, Any]) -> Conversion:
    """The conversion, with each number as an int or a float, like the base config's number.

    A number with a fraction stays a float.
    """
    changes = {key: change._replace(value=like(change.value, base[key])) for key, change in found.changes.items()}
    return dataclasses.replace(found, changes=changes)


def like(value: Any, other: Any) -> Any:
    kind = type(other)
    if kind is float or (kind is int and isinstance(value, float) and value.is_integer()):
        return kind(value)
    return value


def differing(found: Conversion, base: Mapping[str, Any]) -> dict[str, Change]:
    """The changes whose value differs from the base config's."""
    return {key: change for key, change in found.changes.items() if change.value != base[key]}


def source_of(found: Conversion, base: Mapping[str, Any], base_spec: str, name: str) -> str:
    """The text of a config file, which applies the changes to the base config."""
    module, _, arguments = base_spec.partition(":")
    files = " and ".join(pathlib.Path(file).name for file in found.files)
    left = not_converted(found)
    about = [
        f"Converted from {files} by `bert-fast convert`.",
        "",
        f"    bert-fast pretrain --config={name} --workdir=runs/{pathlib.Path(name).stem} --config.data.dir=SHARDS",
        "",
        "Arguments: debug (shrinks the run to seconds).",
        *(["", "Not converted:", *(f"- {line}" for line in left)] if left else []),
    ]
    docstring = "\n".join(about).replace("\\", "/").replace('"', "'")
    changes = [  # `source` comes from a foreign file; a line break in it would begin a new line of code
        f"    config.{key} = {code(value)}  # {' '.join(source.split())}"
        for key, (value, source) in differing(found, base).items()
    ]
    lines = [
        f'"""{docstring}\n"""',
        "",
        f"from bert_fast.configs import {', '.join(sorted({'common', module}))}",
        "",
        "",
        "def get_config(text=None):",
        "    args = common.parse(text, debug=False)",
        f"    config = {module}.get_config({code(arguments)})" if arguments else f"    config = {module}.get_config()",
        *changes,
        '    if args["debug"]:',
        "        common.debug(config)",
        "    return config",
    ]
    return "\n".join(lines) + "\n"


def code(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def not_converted(found: Conversion) -> list[str]:
    """A line for each reason: the keys that are not converted for this reason, and the reason."""
    keys: dict[str, list[str]] = {}
    for key, (value, reason) in found.left.items():
        keys.setdefault(reason, []).append(f"{key}={shown(value)}")
    for key, value in found.unknown.items():
        keys.setdefault("unknown to the converter", []).append(f"{key}={shown(value)}")
    return [f"{', '.join(names)}: {reason}" for reason, names in keys.items()]


def shown(value: Any) -> str:
    """A value in one short line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def report(found: Conversion, base: Mapping[str, Any], base_spec: str) -> list[str]:
    """The report's lines: what was converted, what was not and why, and which settings the files do not have."""
    used = " ".join([*(change.source for change in found.changes.values()), *found.left])
    same = [f"{key}={shown(value)}" for key, value in found.read.items() if key not in used]
    parts = {
        "converted:": [f"{source} -> {key}={value}" for key, (value, source) in found.changes.items()],
        "not converted:": not_converted(found),
        "no effect here:": [", ".join(same)] if same else [],
        f"not in the files, so taken from {base_spec}:": [
            f"{key}={base[key]}" for key in MATTER if key not in found.changes
        ],
    }
    return [line for title, lines in parts.items() if lines for line in (title, *(f"  {line}" for line in lines))]


def flags_of(found: Conversion, base: Mapping[str, Any], base_spec: str) -> str:
    """The converted settings, as flags of `pretrain`."""
    changes = [f"--config.{key}={change.value}" for key, change in differing(found, base).items()]
    return " ".join([f"--config={base_spec}", *changes])
