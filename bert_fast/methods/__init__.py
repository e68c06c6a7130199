"""The methods, one file each. A file with a `make(**arguments) -> Method` is found by its name."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

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


def make(methods: Iterable[tuple[str, Mapping[str, Any]]]) -> Method:
    """The chain of the named methods, each made with its arguments."""
    makes = known()
    return chain(*(makes[name](**arguments) for name, arguments in methods))
