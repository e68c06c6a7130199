"""The compiler options for train steps, by platform, both for real runs and for plans.

An option is listed here if it saves 1% of a step by both instruments of the planner: experiments/compiler_flags.md.
LIBTPU_INIT_ARGS and XLA_FLAGS in the environment are for experiments. The plan's cache keeps their results apart.
"""

from collections.abc import Mapping

Options = Mapping[str, bool | int | str]
OPTIONS: dict[str, Options] = {"tpu": {}}


def options_for(platform: str) -> Options:
    """The options for a platform as JAX names it: tpu, gpu or cpu."""
    return OPTIONS.get(platform, {})
