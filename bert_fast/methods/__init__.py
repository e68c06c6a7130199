"""The training methods, one file each. A file's `make(**arguments) -> Method` makes the method named after the file.

Another package can add a method. Its pyproject.toml names the module:

    [project.entry-points."bert_fast.methods"]
    my_method = "my_package.my_method"
"""

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bert_fast import BadInput
from bert_fast.method import Method, chain

GROUP = "bert_fast.methods"  # of entry points


@functools.cache
def modules() -> Mapping[str, types.ModuleType]:
    """The modules of all methods by name: the files of this package, and the entry points of other packages.

    Raises BadInput if an entry point cannot be imported, has no `make`, or has the name of another method.
    """
    found = {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    for entry in importlib.metadata.entry_points(group=GROUP):
        where = f"the method {entry.name!r} of {entry.dist.name if entry.dist else 'an installed package'}"
        if entry.name in found:
            raise BadInput(f"{where} has the name of another method: uninstall that package, or rename its entry point")
        try:
            found[entry.name] = entry.load()
        except Exception as error:
            raise BadInput(f"{where} cannot be imported from {entry.value} ({error}): fix or uninstall it") from error
        if not callable(getattr(found[entry.name], "make", None)):
            raise BadInput(f"{where}: {entry.value} has no function `make`: add one that returns the method")
    return dict(sorted(found.items()))


def known() -> dict[str, Callable[..., Method]]:
    """The `make` of every method, by name."""
    return {name: module.make for name, module in modules().items()}


def defaults() -> dict[str, dict[str, Any]]:
    """The arguments of each method's `make` with their defaults, by method name."""
    return {
        name: {key: parameter.default for key, parameter in inspect.signature(make).parameters.items()}
        for name, make in known().items()
    }


def renamed() -> dict[str, str]:
    """Arguments renamed since an earlier version, as {"method.old": "method.new"} (from each method's `RENAMED`)."""
    found = {}
    for name, module in modules().items():
        for old, new in getattr(module, "RENAMED", {}).items():
            found[f"{name}.{old}"] = f"{name}.{new}"
    return found


def keys() -> dict[str, Mapping[str, str]]:
    """What each method's keys in the log mean, by method name (from its module's `KEYS`)."""
    return {name: getattr(module, "KEYS", {}) for name, module in modules().items()}


def make(methods: Iterable[tuple[str, Mapping[str, Any]]]) -> Method:
    """The chain of the named methods, each made with its arguments.

    Raises BadInput for a method that is not installed, an unknown argument or an invalid value.
    """
    made, makes, has = [], known(), defaults()
    for name, arguments in methods:
        if name not in makes:
            raise BadInput(f"the method {name!r} is not installed: install the package that provides it")
        for argument in arguments:
            if argument not in has[name]:
                near = difflib.get_close_matches(argument, has[name], 1) or list(has[name])
                raise BadInput(f"--config.{name}.{argument} is unknown: did you mean {' or '.join(near)}?")
        made.append(makes[name](**arguments))
    return chain(*made)
