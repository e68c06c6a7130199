"""A run's position and its counts: in total, and since the last log row. Saved with each checkpoint."""

import dataclasses
import math
import time
from collections.abc import Mapping

from bert_fast import BadInput
from bert_fast.train.guard import Guard, limit
from bert_fast.train.step import LARGEST

GUARDED = ("skipped_steps", "rollbacks", "wasted_steps")  # what the guard has done
TIMES = ("seconds", "compile_seconds", "eval_seconds", "save_seconds", "restore_seconds", "wasted_seconds")
TIMES = (*TIMES, "idle_seconds", "input_seconds")
# The keys of a log row whose values depend on the clock. All other values are the same after an interruption.
CLOCKS = (*TIMES, "utilisation", "utilisation_padded", "utilisation_dense")
COUNTS = ("examples", "tokens_real", "tokens_padded", "flops", "flops_dense", *GUARDED)


def total(times: Mapping[str, float]) -> float:
    """The sum of the times that do not overlap."""
    return math.fsum(seconds for name, seconds in times.items() if name != "input_seconds")


@dataclasses.dataclass
class Counters:
    """Position and counts of a run.

    ends: the step at which each earlier stage ended. end_seconds: `times["seconds"]` at those steps.
    over: whether a method has ended the current stage.
    training_began: the step at which the training began (0, or the step of the last restart).
    data: index of the next example in each example order. since: sums since the last log row.
    times: in seconds; "seconds" covers train steps and waiting for input, and "input_seconds" only that waiting.
        "wasted_seconds": steps that were lost because a run was killed or went back to a checkpoint. "idle_seconds":
        start-up, and the time between two processes of the same run. All but "input_seconds" sum to the wall time.
    norms: norms of the stage's most recent gradients that were kept. limits: the largest norms that the next two steps
    accept. streak: number of steps skipped since the last step that was kept.
    avoided: parts of the data that the run skips, each as (order, first index, index after the last).

    saved_at: when the state was copied for the checkpoint that holds these counters, in seconds since 1970.
    waited: whether the run waited until that checkpoint was written, and took no step meanwhile.

    All fields but `mark` are saved as JSON, which keeps floats exactly. So a resumed run writes the
    same rows as a run that was never stopped.
    """

    ends: list[int] = dataclasses.field(default_factory=list)
    end_seconds: list[float] = dataclasses.field(default_factory=list)
    over: bool = False
    training_began: int = 0
    data: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    times: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(TIMES, 0.0))
    since: dict[str, float] = dataclasses.field(default_factory=dict)
    norms: list[float] = dataclasses.field(default_factory=list)
    limits: list[float] = dataclasses.field(default_factory=lambda: [LARGEST] * 2)
    streak: int = 0
    avoided: list[list] = dataclasses.field(default_factory=list)
    saved_at: float = 0.0
    waited: bool = True
    mark: float = dataclasses.field(default_factory=time.monotonic, repr=False, compare=False)

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return len(self.ends)

    @property
    def stage_began(self) -> int:
        """The step at which the current stage began."""
        return self.ends[-1] if self.ends else 0

    @classmethod
    def from_json(cls, found: dict) -> "Counters":
        """The inverse of `to_json`. Raises BadInput if another version kept different counts."""
        if found.keys() != cls().to_json().keys():
            strange = ", ".join(sorted(found.keys() ^ cls().to_json().keys()))
            raise BadInput(
                f"the checkpoint was written by another version of bert_fast, which kept different counts ({strange}): "
                "continue with that version, or export the checkpoint there and import it here"
            )
        return cls(**found)

    def to_json(self) -> dict:
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "mark"}

    def start_clock(self):
        """Starts the first lap."""
        self.mark = time.monotonic()

    def lap(self, name: str) -> float:
        """Adds the time since the last lap to `times[name]`, and returns this time in seconds."""
        now = time.monotonic()
        spent, self.mark = now - self.mark, now
        self.times[name] += spent
        return spent

    def add(self, sums: dict[str, float], norm: float):
        """Adds the sums of a step that was kept, and the norm of its gradient."""
        for key, value in sums.items():
            self.since[key] = self.since.get(key, 0.0) + value
        self.since["steps"] = self.since.get("steps", 0) + 1
        self.norms.append(norm)
        self.streak = 0

    def count(self, **counted: int):
        for key, value in counted.items():
            self.counts[key] += value

    def set_limit(self, guard: Guard):
        """Sets the limit of the step after the next. The next step may be in progress, and already has its limit."""
        del self.norms[: -guard.recent]
        self.limits = [self.limits[1], limit(guard, self.norms)]

    def end_stage(self, step: int, restart: bool):
        """Records that the stage ended at `step`. A restart also resets the position in data and training."""
        self.ends.append(step)
        self.end_seconds.append(self.times["seconds"])
        self.over = False
        self.norms, self.limits = [], [LARGEST] * 2  # another model or length has gradients of a different size
        if restart:
            self.data, self.training_began = {}, step

    def take_sums(self) -> dict[str, float]:
        """Returns the sums since the last call, including the number of "steps", and resets them."""
        since, self.since = self.since, {}
        return since
