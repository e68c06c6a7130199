"""Checks of the installed packages."""

import importlib.metadata
import platform
import re
import sys

from bert_fast import versions
from bert_fast.doctor import Result, failed, passed, skipped

PYTHON = ((3, 11), (3, 14))  # the first version that works, and the first that is untested
_BOUND = re.compile(r"([\w.-]+)>=([\d.]+)$")  # a requirement; those of extras end in a marker and do not match


def numbers(version: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version, such as (0, 10, 2) for 0.10.2.dev1."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version)[0])))


def installed(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def python() -> Result:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if PYTHON[0] <= sys.version_info[:2] < PYTHON[1]:
        return passed("python", found)
    return failed("python", found, "use Python 3.11 to 3.13")


def requirements() -> Result:
    """Whether every package that bert_fast requires is installed and new enough."""
    try:
        wanted = importlib.metadata.requires("bert_fast") or []
    except importlib.metadata.PackageNotFoundError:
        return skipped("requirements", "bert_fast is not installed as a package: pip install .")
    bounds = [match for line in wanted if (match := _BOUND.match(line.replace(" ", "")))]
    wrong = []
    for name, least in (bound.groups() for bound in bounds):
        version = installed(name)
        if version is None or numbers(version) < numbers(least):
            wrong.append(f"{name} {version or 'is missing'} (at least {least})")
    if wrong:
        return failed(
            "requirements", ", ".join(wrong), "pip install --upgrade bert_fast, or pip install -r requirements.txt"
        )
    shown = ", ".join(f"{name} {installed(name)}" for name in ("jax", "flax", "orbax-checkpoint", "grain"))
    return passed("requirements", f"{len(bounds)} packages, among them {shown}")


def accelerator() -> Result:
    """Whether jaxlib, libtpu and the CUDA plugins match the installed jax."""
    jax = installed("jax") or ""
    expected = {"jaxlib": jax, "jax-cuda12-plugin": jax, "jax-cuda13-plugin": jax, "libtpu": versions.libtpu_of_jax()}
    found = {name: version for name in expected if (version := installed(name))}
    wrong = [
        f"{name} {version} (expected {expected[name]})"
        for name, version in found.items()
        if numbers(version)[: len(numbers(expected[name]))] != numbers(expected[name])
    ]
    if wrong:
        extra = "tpu" if any("libtpu" in name for name in wrong) else "cuda13"
        remedy = f'install what matches jax {jax}: pip install "jax[{extra}]=={jax}"'
        return failed("accelerator", f"for jax {jax}: {', '.join(wrong)}", remedy)
    return passed("accelerator", ", ".join(f"{name} {version}" for name, version in found.items()))
