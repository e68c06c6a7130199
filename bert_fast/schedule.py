"""Learning rates: warm-up, then decay. The host computes the rate; the compiled step takes it as an argument.

`Stage.learning_rate` (method.py) chooses the step at which a schedule is evaluated, and may add another warm-up.
"""

import dataclasses
import math

DECAYS = ("linear", "polynomial", "exponential", "constant")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate at a step: linear warm-up from `start` to `peak`, then decay towards `end` at `steps`.

    `warmup_steps` below 1 is a share of `steps`, so that the warm-up is shorter in a shorter run.

    `linear` and `polynomial` decay from `peak`, starting at step 0 (`decay_from="start"`) or at the end of the
    warm-up ("warmup"). With "start", the rate drops slightly below the peak just after the warm-up, as in
    `optimization.py` of google-research/bert. The warm-up climbs to the peak in both cases. (In Model Garden it climbs
    to the decayed rate, without a jump: `PolynomialWarmUp` of official/modeling/optimization/lr_schedule.py.)
    `exponential` multiplies the rate by `rate` every `interval` steps after the warm-up (schedule "LE" of bing_bert in
    DeepSpeedExamples).
    """

    peak: float
    steps: int
    warmup_steps: float = 0
    decay: str = "linear"
    decay_from: str = "start"
    start: float = 0.0
    end: float = 0.0
    power: float = 1.0
    rate: float = 0.99
    interval: int = 1000

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        return round(self.warmup_steps * self.steps if self.warmup_steps < 1 else self.warmup_steps)

    def __call__(self, step: int) -> float:
        """The rate at `step`, counted from 0."""
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        if self.decay == "constant":
            return self.peak
        if self.decay == "exponential":
            return self.peak * self.rate ** ((step - self.warmup) / self.interval)
        begin = self.warmup if self.decay_from == "warmup" else 0
        left = 1 - min(step - begin, self.steps - begin) / max(self.steps - begin, 1)
        power = self.power if self.decay == "polynomial" else 1.0
        return self.end + (self.peak - self.end) * math.pow(left, power)
