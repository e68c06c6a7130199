"""Freed memory stays in a process that calls `keep_freed`. Nothing undoes the call, so each case has a new process."""

import os
import subprocess
import sys

import pytest

from bert_fast.train import host_memory

BLOCKS = """
import ctypes, resource, threading
from bert_fast.train import host_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
kept = host_memory.keep_freed()
def use_and_free():
    for _ in range(20):
        block = libc.malloc(64 << 20)
        libc.memset(block, 1, 64 << 20)
        libc.free(block)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=use_and_free)
thread.start()
thread.join()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
COMMAND = """
import resource, sys
from bert_fast import __main__
from bert_fast.train.engine import Engine
train_step, faults = Engine.train_step, []
def counted(self):
    train_step(self)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
Engine.train_step = counted
assert __main__.main(sys.argv[1:]) == 0
print((faults[-1] - faults[-11]) // 10)
"""
PAGES = (64 << 20) // 4096  # pages of a block


def printed(code: str, *arguments: str, **variables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-2:]


needs_glibc = pytest.mark.skipif(sys.platform != "linux", reason="glibc is on Linux only")


@needs_glibc
def test_freed_blocks_of_a_thread_are_used_again():
    kept, faults = printed(BLOCKS)
    assert kept == "True"
    assert int(faults) < 2 * PAGES


@needs_glibc
@pytest.mark.parametrize(
    "variables", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_settings_in_the_environment_are_left_as_they_are(variables):
    kept, faults = printed(BLOCKS, **variables)
    assert kept == "False"
    assert int(faults) > 15 * PAGES


def test_nothing_is_changed_without_glibc(monkeypatch):
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _: object())
    assert not host_memory.keep_freed()


@needs_glibc
@pytest.mark.slow
def test_steps_of_a_run_cause_hardly_any_page_faults(small_shards, tmp_path):
    flags = [
        "pretrain",
        "--config=bert:size=tiny,seq=64",
        f"--config.data.dir={small_shards}",
        "--config.steps=20",
        "--config.batch_size=64",
    ]
    (faults,) = printed(COMMAND, *flags, f"--workdir={tmp_path / 'kept'}")[-1:]
    (without,) = printed(COMMAND, *flags, f"--workdir={tmp_path / 'freed'}", MALLOC_TRIM_THRESHOLD_="131072")[-1:]
    assert int(faults) < 50
    assert int(without) > 1000
