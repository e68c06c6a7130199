"""What a run has counted: where it is, totals since its beginning, sums since its last row. Saved with a checkpoint."""

import dataclasses
import time

from bert_fast import BadInput

TIMES = ("seconds", "compile_seconds", "eval_seconds", "save_seconds")
COUNTS = ("examples", "tokens_real", "tokens_padded", "flops", "flops_dense")


@dataclasses.dataclass
class Book:
    """Where the run is (the steps at which earlier stages ended, next example of each order of rows) and what it has
    counted; `training_began` is the step at which the training did: 0, or that of a restart.

    All of it is JSON, and floats survive JSON exactly: a resumed run writes the same rows as one
    that was never stopped. `times` are seconds; "seconds" is train steps and waiting for input.
    """

    ends: list[int] = dataclasses.field(default_factory=list)
    training_began: int = 0
    data: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    times: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(TIMES, 0.0))
    since: dict[str, float] = dataclasses.field(default_factory=dict)
    mark: float = dataclasses.field(default_factory=time.monotonic, repr=False)

    @property
    def stage(self) -> int:
        """The number of the stage."""
        return len(self.ends)

    @property
    def stage_began(self) -> int:
        """The step at which it did."""
        return self.ends[-1] if self.ends else 0

    @classmethod
    def from_json(cls, found: dict) -> "Book":
        """What `to_json` gave. Raises BadInput for that of a version which kept something else."""
        if found.keys() != cls().to_json().keys():
            strange = ", ".join(sorted(found.keys() ^ cls().to_json().keys()))
            raise BadInput(
                f"the checkpoint is of another version of bert_fast, which kept other counts ({strange}): "
                "go on with that version, or begin a run from its weights with --config.init"
            )
        return cls(**found)

    def to_json(self) -> dict:
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "mark"}

    def start_clock(self):
        """Time counts from here."""
        self.mark = time.monotonic()

    def lap(self, name: str) -> float:
        """Counts the time since the last lap as `name`, in seconds."""
        now = time.monotonic()
        spent, self.mark = now - self.mark, now
        self.times[name] += spent
        return spent

    def add(self, sums: dict[str, float], **counted: int):
        """One step's sums and counts."""
        for key, value in sums.items():
            self.since[key] = self.since.get(key, 0.0) + value
        self.since["steps"] = self.since.get("steps", 0) + 1
        for key, value in counted.items():
            self.counts[key] += value

    def take_means(self) -> dict[str, float]:
        """Means since the last call: of the loss and of the layers that ran over steps, of each part of the loss over
        its predictions (nats); the methods' penalty where there is one.
        """
        since, self.since = self.since, {}
        of_steps = ["loss", "layers_run", *(["penalty"] if since["penalty"] else [])]
        return {**{key: since[key] / since["steps"] for key in of_steps}, **means(since)}


def means(sums: dict[str, float]) -> dict[str, float]:
    """Losses in nats and accuracies from the sums of `step.sums`; `mask_loss` is that of the words behind [MASK]."""
    predictions = max(sums["predictions"], 1)
    row = {
        "mlm_loss": sums["mlm_sum"] / predictions,
        "mask_loss": sums["mask_sum"] / max(sums["masks"], 1),
        "mlm_accuracy": sums["mlm_correct"] / predictions,
    }
    if "next_sum" in sums:
        rows = max(sums["rows"], 1)
        row |= {"nsp_loss": sums["next_sum"] / rows, "nsp_accuracy": sums["next_correct"] / rows}
    return row
