"""The tiers of tests: quick (`make test`), slow (`make slow`, also in CI) and long (`make long`)."""

from collections.abc import Collection, Iterable

import pytest


def tiers(cases: Iterable, slow: Collection, quick: Collection = ()) -> list:
    """The cases of a parametrized test with their marks. A case that is neither in `slow` nor in `quick` is long."""
    return [
        pytest.param(case, marks=[] if case in quick else pytest.mark.slow if case in slow else pytest.mark.long)
        for case in cases
    ]
