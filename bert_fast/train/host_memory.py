"""Keeps freed memory in the process, so that steps on a CPU do not wait for page faults.

XLA allocates new memory for temporaries at every step. By default, glibc returns large blocks to the system when they
are freed, and the system clears their pages again when they are next used. On one core, that took 14 to 27 % of a small
model's step (experiments/LOG.md).
"""

import ctypes
import os

# The parameters of mallopt(3), from <malloc.h>.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Tells glibc to keep freed memory for later allocations. Returns whether glibc will do so.

    Call this before another thread allocates memory: such a thread would get an arena of its own, which cannot hold
    large blocks. Nothing is changed without glibc, or if an environment variable already sets how glibc allocates, even
    to the default (such as MALLOC_TRIM_THRESHOLD_=131072).
    """
    libc = ctypes.CDLL(None)
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not hasattr(libc, "gnu_get_libc_version"):
        return False
    return all([libc.mallopt(MMAP_MAX, 0), libc.mallopt(TRIM_THRESHOLD, -1), libc.mallopt(ARENA_MAX, 1)])
