"""Flags of XLA for tests: less work for the compiler, and losses that are reproducible."""

import importlib.metadata

# Splitting a program among threads costs time if tests already use all cores.
QUICK_TO_COMPILE = "--xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions do not have this flag
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"

# One thread and one instruction set: see test_golden.py.
REPRODUCIBLE = "--xla_cpu_multi_thread_eigen=false --xla_cpu_max_isa=AVX2"


def devices(count: int) -> str:
    """The flags of a process with `count` emulated devices."""
    return f"--xla_force_host_platform_device_count={count} {QUICK_TO_COMPILE}"
