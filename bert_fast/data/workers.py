"""Worker processes that end whenever their parent ends. The death of a worker is reported at once."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from bert_fast import BadInput

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy locks held by the parent's threads


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection


class _Raised(NamedTuple):
    error: Exception


class Pool(concurrent.futures.Executor):
    """A pool of processes that each call `setup(*args)` once. The parent has one pipe and one thread for each process.

    `concurrent.futures.ProcessPoolExecutor` has one pipe for all results. If a worker is killed while it writes a
    result, that pipe stays locked, and the parent waits for the rest of the result forever.
    """

    def __init__(self, processes: int, setup: Callable | None = None, *args):
        self._threads = concurrent.futures.ThreadPoolExecutor(processes)
        self._workers: list[_Worker] = []
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        try:
            for _ in range(processes):
                self._workers.append(_start(setup, args))
                self._free.put(self._workers[-1])
        except BaseException:
            self.shutdown()
            raise

    def submit(self, fn: Callable, /, *args, **kwargs) -> concurrent.futures.Future:
        """A future for `fn(*args, **kwargs)` in a worker. Its `result()` raises BadInput if that worker died."""
        return self._threads.submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable, args: tuple, kwargs: dict) -> Any:
        worker = self._free.get()
        try:
            worker.pipe.send((fn, args, kwargs))
            result = worker.pipe.recv()
        except (EOFError, OSError) as error:
            raise BadInput(
                f"a worker process {_end_of(worker.process)}: finished work is kept. Run the same command again to "
                f"continue, with fewer processes if memory ran out (this run had --processes={len(self._workers)})"
            ) from error
        finally:
            self._free.put(worker)
        if isinstance(result, _Raised):
            raise result.error
        return result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Ends the workers immediately, and drops their unfinished work."""
        for worker in self._workers:
            worker.process.kill()
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()


def _start(setup: Callable | None, args: tuple) -> _Worker:
    ours, theirs = _SPAWN.Pipe()
    with theirs:  # the parent keeps no copy of this end, so the pipe closes when the worker ends
        process = _SPAWN.Process(target=_serve, args=(theirs, setup, args))
        process.start()
    return _Worker(process, ours)


def _end_of(process: BaseProcess) -> str:
    """How a process ended, as text."""
    process.join()
    code = process.exitcode or 0
    if code >= 0:
        return f"ended with exit code {code}"
    memory = ", perhaps by the system's out-of-memory killer" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


def _serve(pipe: Connection, setup: Callable | None, args: tuple) -> None:
    """Answers calls until the pipe closes."""
    belong()
    if setup:
        setup(*args)
    with contextlib.suppress(EOFError, OSError):  # the pipe is closed: the parent has ended
        while True:
            fn, args, kwargs = pipe.recv()
            try:
                result = fn(*args, **kwargs)
            except Exception as error:
                error.add_note(f"In the worker:\n{traceback.format_exc()}")
                result = _Raised(error)
            pipe.send(result)


def belong(*_) -> None:
    """Makes this process ignore stop signals, and end when its parent ends. A worker calls this first."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # a terminal or a job scheduler sends them to all processes
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def loaders() -> list[BaseProcess]:
    """Grain's worker processes that are alive."""
    return [child for child in multiprocessing.active_children() if child.name.startswith("grain-")]


def kill_loaders() -> None:
    """Kills Grain's workers, even stopped ones, which react to no other signal."""
    for child in loaders():
        child.kill()


def _follow_parent() -> None:
    """Exits when the parent exits. Grain's queues do not signal this, so a worker would otherwise wait forever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
