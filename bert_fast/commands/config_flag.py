"""The flag `--config`: a shipped config by name or a config file, its arguments, and changes to single values.

--config=bert:size=mini,seq=128        a config that ships with the package
--config=path/to/mine.py:size=mini     your own file
--config.steps=1000                    changes one value
"""

import ast
import difflib
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from bert_fast import BadInput
from bert_fast.commands import REQUIRED

SHIPPED = pathlib.Path(__file__).parents[1] / "configs"
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def shipped() -> dict[str, pathlib.Path]:
    """The configs that ship with the package, by name."""
    paths = sorted(SHIPPED.glob("[!_]*.py"))
    return {path.stem: path for path in paths if not path.stem.startswith("common")}


def file_of(spec: str) -> str:
    """Turns `NAME:ARGUMENTS` or `FILE:ARGUMENTS` into `FILE:ARGUMENTS`. Raises BadInput if there is no such config."""
    name, colon, arguments = spec.partition(":")
    if "/" not in name and not name.endswith(".py"):
        if name not in shipped():
            near = difflib.get_close_matches(name, shipped(), 3, 0.4) or list(shipped())
            raise BadInput(
                f"unknown config {name!r}: did you mean {' or '.join(near)}? Give a shipped config by name, or the "
                "path of a file, such as configs/mine.py"
            )
        name = str(shipped()[name])
    elif not pathlib.Path(name).is_file():
        raise BadInput(f"no config file {name!r}. Shipped configs, which are given by name: {', '.join(shipped())}")
    else:
        check_source(pathlib.Path(name))
    return name + colon + arguments


def check_source(path: pathlib.Path):
    """Raises BadInput if the file is not Python, or does not define `get_config`."""
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError) as error:  # ValueError: not UTF-8, or a null byte
        raise BadInput(f"{path} is not a Python file: {error}. A config defines get_config(text=None)") from None
    names = {getattr(statement, "name", "") for statement in statements}
    names |= {getattr(target, "id", "") for s in statements if isinstance(s, ast.Assign) for target in s.targets}
    names |= {alias.asname or alias.name for s in statements if isinstance(s, ast.ImportFrom) for alias in s.names}
    if "get_config" not in names:
        raise BadInput(f"{path} does not define get_config(text=None), which returns the config")


def with_files(argv: list[str], names=("config", "compare")) -> list[str]:
    """The command line with shipped configs replaced by their files, because ml_collections reads only files."""
    found, after = [], False
    for arg in argv:
        flag, equals, spec = arg.partition("=")
        if flag.lstrip("-") in names and equals and spec:
            arg = f"{flag}={file_of(spec)}"
        elif after:
            arg = file_of(arg)
        after = arg.lstrip("-") in names and arg.startswith("-")
        found.append(arg)
    return found


def define(
    args, argv: list[str], name: str = "config", what: str = "", required: bool = True, example: str = "bert:size=mini"
):
    """Adds the flag. The names of the values to change are read from `argv`, the command line."""
    how = f"by name or as a file, with arguments: {example},seq=128. --{name}.KEY=VALUE changes one value."
    what = f"{what}, {how} {REQUIRED if required else ''}".strip()
    config_flags.DEFINE_config_file(name, None, what, sys_argv=argv, flag_values=args)


def explain(error: flags.Error, args) -> str:
    """The message for a flag parser's error about a config value; "" if the error is about another flag."""
    found = re.match(r"flag --(\w+)\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    if found is None or found[1] not in args or args[found[1]].value is None:
        return ""
    name, key, text = found.groups()
    value: Any = args[name].value
    for part in key.split("."):
        value = value[part]
    if isinstance(value, ConfigDict):
        near = difflib.get_close_matches(text, value, 1, 0.6) or ["name" if "name" in value else next(iter(value))]
        return (
            f"--{name}.{key}={text}: {key} is a group of settings ({', '.join(value)}): set one of them, such as "
            f"--{name}.{key}.{near[0]}={text}"
        )
    return f"--{name}.{key}={text}: expected {KINDS.get(type(value), type(value).__name__)}, such as {value!r}"


def load(spec: str, changes: Mapping[str, Any]) -> ConfigDict:
    """The config that `--config=SPEC` means, with values changed by dotted keys, such as {"data.dir": "shards"}.

    Raises BadInput for an unknown config, argument or key, and for a value of the wrong type.
    """
    path, _, arguments = file_of(spec).partition(":")
    described = importlib.util.spec_from_file_location("bert_fast_config", path)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return changed(module.get_config(arguments or None), changes)


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with values changed by dotted keys. Raises BadInput as `load` does."""
    config = config.copy_and_resolve_references().lock()
    for key, value in changes.items():
        try:
            config.update_from_flattened_dict({key: value})
        except (AttributeError, KeyError) as error:
            from bert_fast.train import settings

            if key in settings.renamed():
                raise BadInput(f"{key!r} was renamed to {settings.renamed()[key]!r}") from None
            raise BadInput(f"unknown config key {key!r}: {error.args[0]}") from None
        except TypeError as error:
            raise BadInput(f"{key}={value!r} has a different type from the config's value: {error}") from None
    return config
