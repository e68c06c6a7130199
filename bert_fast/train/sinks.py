"""Where a run's numbers go in addition to `metrics.jsonl`: TensorBoard, Weights & Biases, trackio.

Each sink runs in its own thread, so that a slow network does not slow the run. A sink ends at its first error, with a
warning. The run and the other sinks continue. `metrics.jsonl` always has every row.
"""

import importlib.util
import os
import pathlib
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bert_fast import BadInput
from bert_fast.data.files import atomic_write

PATIENCE = 30.0  # seconds for wandb to start, and for all sinks to send the remaining rows at the end of the run
ID = "tracking_id"  # file in the run folder
PROJECT = "bert_fast"


class Tracked(NamedTuple):
    """What a sink knows about the run. after_step: the run begins or continues after this step."""

    workdir: pathlib.Path
    config: dict[str, Any]
    after_step: int

    def id(self) -> str:
        """The run's name at remote services. The run folder keeps it, so that a resumed run has the same name."""
        path = self.workdir / ID
        if not path.is_file():
            name = re.sub(r"[^\w.-]", "-", self.workdir.absolute().name, flags=re.ASCII)
            atomic_write(path, f"{name}-{uuid.uuid4().hex[:8]}".encode())
        return path.read_text()


# The next three functions each start a sink. They return two functions: send(numbers by name, step=...) and close().


def tensorboard(run: Tracked) -> tuple[Callable, Callable]:
    import tensorboardX  # also imports torch, if that is installed

    board = tensorboardX.SummaryWriter(str(run.workdir / "tensorboard"), purge_step=run.after_step + 1)
    return lambda numbers, step: [board.add_scalar(key, value, step) for key, value in numbers.items()], board.close


def wandb(run: Tracked) -> tuple[Callable, Callable]:
    import wandb

    limits = wandb.Settings(init_timeout=PATIENCE, finish_timeout=PATIENCE, login_timeout=1)
    where = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "dir": run.workdir, "id": run.id()}
    remote = wandb.init(**where, resume="allow", config=run.config, settings=limits)
    return remote.log, remote.finish


def trackio(run: Tracked) -> tuple[Callable, Callable]:
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    remote = trackio.init(project, run.id(), resume="allow", config=run.config, embed=False)
    return remote.log, remote.finish


SINKS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}
MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


def check(names: Sequence[str]):
    """Raises BadInput if the package of a sink is not installed."""
    for name in names:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise BadInput(
                f"--config.sinks={','.join(names)}: {name} is not installed: pip install 'bert_fast[{name}]', or leave "
                "it out"
            )


class Sink:
    """A sink at work. Its thread begins with the first row."""

    def __init__(self, name: str, run: Tracked, say: Callable[[str], None]):
        self.name, self.run, self.say = name, run, say
        self.rows: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, name=name, daemon=True)

    def begun(self) -> bool:
        return self.thread.ident is not None

    def write(self, row: Mapping[str, Any]):
        """Passes a row to the sink. Returns immediately."""
        if not self.begun():
            self.thread.start()
        if self.thread.is_alive():
            self.rows.put(row)

    def work(self):
        try:
            send, close = SINKS[self.name](self.run)
            while (row := self.rows.get()) is not None:
                send(numbers_of(row), step=row["step"])
            close()
        except Exception as error:
            self.say(
                f"warning: {self.name} gets no more rows ({str(error) or type(error).__name__}): see metrics.jsonl"
            )


def begin(names: Sequence[str], run: Tracked, say: Callable[[str], None]) -> list[Sink]:
    """The sinks of these names."""
    return [Sink(name, run, say) for name in names]


def close(sinks: Iterable[Sink]):
    """Waits until the sinks have sent everything, up to a limit for all together."""
    begun = [sink for sink in sinks if sink.begun()]
    for sink in begun:
        sink.rows.put(None)
    deadline = (
        time.monotonic() + 1.2 * PATIENCE
    )  # longer than the sinks' own limits, because their error messages are more specific
    for sink in begun:
        sink.thread.join(max(0.0, deadline - time.monotonic()))
        if sink.thread.is_alive():
            sink.say(f"warning: {sink.name} did not accept all rows within {PATIENCE:.0f} s: see metrics.jsonl")


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a row, by `split/key`."""
    found = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
    return {f"{row['split']}/{key}": value for key, value in found.items()}
