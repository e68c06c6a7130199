"""The methods, one file each. A file with a `make(**arguments) -> Method` is found by its name."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bert_fast import BadInput
from bert_fast.method import Method, chain


def known() -> dict[str, Callable[..., Method]]:
    """The `make` of every method, by the name of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").make for name in names}


def defaults() -> dict[str, dict[str, Any]]:
    """The arguments of every method with the defaults of its `make`, where a method's defaults are kept."""
    return {
        name: {key: parameter.default for key, parameter in inspect.signature(make).parameters.items()}
        for name, make in known().items()
    }


def renamed() -> dict[str, str]:
    """Arguments that had another name in earlier versions, as "method.old": "method.new" (a method's `RENAMED`)."""
    found = {}
    for name in known():
        module = importlib.import_module(f"{__name__}.{name}")
        for old, new in getattr(module, "RENAMED", {}).items():
            found[f"{name}.{old}"] = f"{name}.{new}"
    return found


def make(methods: Iterable[tuple[str, Mapping[str, Any]]]) -> Method:
    """The chain of the named methods, each made with its arguments.

    Raises BadInput for an argument that a method does not have, and where its value is impossible.
    """
    made, makes, has = [], known(), defaults()
    for name, arguments in methods:
        for argument in arguments:
            if argument not in has[name]:
                near = difflib.get_close_matches(argument, has[name], 1) or list(has[name])
                raise BadInput(f"--config.{name}.{argument} is unknown: did you mean {' or '.join(near)}?")
        made.append(makes[name](**arguments))
    return chain(*made)
