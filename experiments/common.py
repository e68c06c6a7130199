"""Helpers for the scripts of this folder: command lines, statistics, pages. This file imports only the standard library
and NumPy, so that a script can set JAX's environment variables before JAX is imported."""

import argparse
import os
import pathlib
import statistics
import sys
from collections.abc import Iterable, Sequence

import numpy as np

HERE = pathlib.Path(__file__).parent


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser that prints the script's docstring in --help, with its line breaks."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def chosen(text: str, separator: str, known: Iterable[str], kind: str) -> list[str]:
    """The names in `text`, split at `separator`; exits with an error if one of them is not in `known`."""
    names = text.split(separator)
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"error: unknown {kind} {unknown[0]!r}: expected one of {f'{separator} '.join(known)}")
    return names


def data_root(contents: str) -> pathlib.Path:
    """The folder that $BERT_FAST_DATA names. Exits with an error if the variable is not set.

    contents: what the script expects in the folder, for the error message.
    """
    if "BERT_FAST_DATA" not in os.environ:
        sys.exit(f"error: set BERT_FAST_DATA to the folder that holds {contents}")
    return pathlib.Path(os.environ["BERT_FAST_DATA"])


def write_page(name: str, text: str) -> None:
    """Writes and prints experiments/NAME.md."""
    (HERE / f"{name}.md").write_text(text)
    print(text)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The ratio of each pair of measurements."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile."""
    low, high = np.quantile(values, (0.1, 0.9))
    return statistics.median(values), float(low), float(high)


def extremes(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, minimum and maximum."""
    return statistics.median(values), min(values), max(values)


def with_range(values: tuple[float, float, float], form: str, between: str = " to ") -> str:
    """Formats a middle value with its range, for example `0.83 (0.81 to 0.89)`."""
    middle, low, high = (format(value, form) for value in values)
    return f"{middle} ({low}{between}{high})"


def with_deviation(values: Sequence[float], form: str) -> str:
    """Formats mean ± sample standard deviation; the mean alone if there is only one value."""
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}"
