"""Worker processes that end with their parent, however it ends."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

from bert_fast import BadInput


@contextlib.contextmanager
def pool(processes: int, setup: Callable | None = None, *args) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Processes that each called `setup(*args)`. What waits is dropped when the block is left by an error.

    They are spawned: a fork would copy locks that threads of the parent hold. Raises BadInput where
    one dies, which is mostly for want of memory.
    """
    executor = concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(setup, *args)
    )
    try:
        yield executor
    except BrokenProcessPool as error:
        raise BadInput(
            "a worker process died, perhaps for want of memory: what is finished is kept; "
            f"run the same command again with fewer than --processes={processes}"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start(setup: Callable | None, *args) -> None:
    belong()
    if setup:
        setup(*args)


def belong(*_) -> None:
    """Makes this process one that its parent ends, and that ends with it: what a worker calls first."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # a signal to stop reaches all processes of a terminal or a job
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A worker of a killed parent would wait for work for ever: the queue has no end that it could see."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
