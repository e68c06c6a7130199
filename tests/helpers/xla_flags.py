"""XLA flags for the tests: they shorten compilation and make losses reproducible.

With DEFAULT_COMPILER=1 in the environment, the tests compile as a user's run does.
"""

import importlib.metadata
import os


def _quick_to_compile() -> str:
    if os.environ.get("DEFAULT_COMPILER") == "1":
        return ""
    # Splitting a program among threads costs time if tests already use all cores.
    flags = "--xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # JAX 0.12 does not have this flag
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


QUICK_TO_COMPILE = _quick_to_compile()

# One thread and one instruction set: see test_golden.py.
REPRODUCIBLE = "--xla_cpu_multi_thread_eigen=false --xla_cpu_max_isa=AVX2"


def devices(count: int) -> str:
    """The flags of a process with `count` emulated devices."""
    return f"--xla_force_host_platform_device_count={count} {QUICK_TO_COMPILE}"
