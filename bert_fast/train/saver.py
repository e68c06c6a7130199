"""Saving without keeping the run waiting: the run copies its state to host memory and continues, and a thread writes
the copy.
"""

import copy
import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from bert_fast.train import checkpoint, rollback
from bert_fast.train.description import Description
from bert_fast.train.engine import Engine, Waits
from bert_fast.train.log import MetricWriter
from bert_fast.train.settings import Checkpoints
from bert_fast.train.step import TrainState


class Mirror:
    """Copies a run elsewhere after each save. This base class copies nothing."""

    def saved(self, step: int, keep: int):
        """Called in the thread of a save, once the checkpoint of this step is on the disk. keep: as in the settings."""

    def go_back(self, step: int):
        """Called when the run goes back to this step, before it deletes the later checkpoints."""

    def check(self):
        """Called after each step. Raises BadInput if the run must stop."""


ALONE = Mirror()


class Saver:
    """Writes a run's checkpoints, one at a time, inside a `with` block.

    Several processes write one checkpoint together and synchronize while they write. A thread must not do this while
    steps run, so with several processes the run waits for each save.
    """

    def __init__(self, root: pathlib.Path, settings: Checkpoints, initial: bool, waits: Waits, say: Callable):
        """initial: whether checkpoint 0 is kept. waits: opens a `with` block that the watchdog limits."""
        self.root, self.settings, self.initial, self.waits, self.say = root, settings, initial, waits, say
        self.mirror = ALONE
        self.alone = jax.process_count() == 1
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.saved: int | None = None  # the step of this process's newest save
        self.buffers: list[np.ndarray] = []
        self.began = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Waits for the save in flight, unless the user wants to stop immediately. If the block itself raised an error,
        an error of the save is only printed.
        """
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            return
        try:
            self.wait()
        except Exception as other:
            if error is None:
                raise
            self.say(str(other))

    def due(self) -> bool:
        """Whether `checkpoint.minutes` have passed since the last save, or since the start."""
        minutes = self.settings.minutes
        return minutes > 0 and time.monotonic() - self.began >= 60 * minutes

    def check(self):
        """Raises the mirror's error, or the error of a save that has ended."""
        self.mirror.check()
        if self.thread is not None and not self.thread.is_alive():
            self.wait()

    def wait(self):
        """Waits for the save in flight, if any, and raises the save's error."""
        if self.thread is not None:
            self.thread.join()
        self.thread, error, self.error = None, self.error, None
        if error is not None:
            self.saved = None
            raise error

    def forget(self):
        """Waits as `wait` does. The next save is written even if it has the same step as the last one."""
        self.wait()
        self.saved = None

    def go_back(self, step: int):
        """Deletes the checkpoints after this step, here and in the mirror."""
        self.mirror.go_back(step)
        rollback.discard_later(self.root, step)

    def save(self, engine: Engine, describe: Callable[[], Description], rows: MetricWriter | None, wait: bool):
        """Begins to write a checkpoint of the engine's step, after the previous save has ended.

        A step that has just been saved is not written again. wait: whether to return only once the checkpoint is
        written. rows: the log; its rows up to this step are on the disk before the checkpoint is complete. Counts the
        time that the run waits.

        Raises the error of the previous save. If it waits for this save too, it also raises the error of this save.
        The error is BadInput if a checkpoint cannot be written.
        """
        counters = engine.counters
        self.wait()
        if self.saved != engine.step:
            self.began = time.monotonic()
            state = self.copied(engine.state)
            counters.lap("save_seconds")
            counters.saved_at, counters.waited = time.time(), wait or not self.alone
            self.begin(state, describe(), rows)
        if wait:
            self.wait()
        counters.lap("save_seconds")

    def copied(self, state: TrainState) -> TrainState:
        """A copy of a state in host memory, which no later step changes. With several processes, the state itself."""
        if not self.alone:
            return state
        leaves, structure = jax.tree.flatten(state)
        self.buffers = on_host(leaves, self.buffers)
        return jax.tree.unflatten(structure, self.buffers)

    def begin(self, state: TrainState, about: Description, rows: MetricWriter | None):
        """Starts the thread. With several processes, returns once the checkpoint is written."""
        older = [step for step in checkpoint.steps(self.root) if step < about.step]
        keep = {*older[::-1][: self.settings.keep - 1], *([0] if self.initial else [])}
        about = dataclasses.replace(about, counters=copy.deepcopy(about.counters))  # the run continues to count
        self.saved = about.step

        def write():
            try:
                with self.waits("save"):
                    if rows is not None:
                        rows.to_disk()
                    checkpoint.save(self.root, state, about, keep, self.say)
                self.mirror.saved(about.step, self.settings.keep)
            except BaseException as error:
                self.error = error

        if self.alone:
            self.thread = threading.Thread(target=write, name=f"save {about.step}", daemon=True)
            self.thread.start()
        else:
            write()
            self.wait()


def on_host(leaves: Sequence[jax.Array], buffers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Copies of these arrays in host memory. On a CPU, `buffers` are reused, because fresh memory costs more than the
    copy.

    On a CPU, a NumPy view would not be a copy: it shares the array's memory, and the next step may write its results
    there.
    """
    if all(device.platform != "cpu" for leaf in leaves for device in leaf.devices()):
        for leaf in leaves:
            leaf.copy_to_host_async()
        return [np.asarray(leaf) for leaf in leaves]
    if [(x.shape, x.dtype) for x in buffers] != [(x.shape, x.dtype) for x in leaves]:
        buffers = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves]
    for buffer, leaf in zip(buffers, leaves, strict=True):
        np.copyto(buffer, leaf)
    return list(buffers)
