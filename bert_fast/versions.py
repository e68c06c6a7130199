"""Versions of the packages that bert_fast needs."""

import importlib.metadata
import re


def libtpu_of_jax() -> str:
    """The version of libtpu that the installed jax is made for, such as "0.0.42", from jax's own requirements."""
    for requirement in importlib.metadata.requires("jax") or ():
        if found := re.match(r"libtpu\s*==\s*([0-9.]*[0-9])(\.\*)?\s*;", requirement):
            return found[1]
    raise LookupError("the installed jax does not state which libtpu it needs")
