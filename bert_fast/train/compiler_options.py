"""The compiler options for train steps, by platform, both for real runs and for plans.

The planner counts a step's cycles in two ways (planner/tpu.py). An option is listed here if it saves at least 1% of the
cycles by both counts. experiments/compiler_flags.py compares options. For experiments, set the environment variables
LIBTPU_INIT_ARGS and XLA_FLAGS: the planner's cache has separate entries for each of their values.
"""

from collections.abc import Mapping

Options = Mapping[str, bool | int | str]
OPTIONS: dict[str, Options] = {"tpu": {}}


def options_for(platform: str) -> Options:
    """The options for a platform as JAX names it: tpu, gpu or cpu."""
    return OPTIONS.get(platform, {})
