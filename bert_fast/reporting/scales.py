"""Axes of charts: units, ticks, and places between 0 and 1."""

import dataclasses
import math
from collections.abc import Iterable

from bert_fast.reporting.markup import Html, tag

LOG_FROM = 50.0  # an axis whose largest value is this many times its smallest is logarithmic
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclasses.dataclass(frozen=True)
class AxisUnit:
    """The unit of an axis. Values are divided by `size` to be shown."""

    label: str
    size: float = 1.0


def tokens(largest: float) -> AxisUnit:
    for size, word in ((1e9, "billion "), (1e6, "million "), (1e3, "thousand ")):
        if largest >= 2 * size:
            return AxisUnit(f"{word}tokens", size)
    return AxisUnit("tokens")


def flops(largest: float) -> AxisUnit:
    power = 3 * math.floor(math.log10(largest) / 3) if largest >= 1 else 0
    return AxisUnit(f"10{str(power).translate(SUPERSCRIPTS)} FLOPs" if power else "FLOPs", 10.0**power)


def seconds(largest: float) -> AxisUnit:
    if largest >= 3 * 3600:
        return AxisUnit("hours", 3600)
    return AxisUnit("minutes", 60) if largest >= 300 else AxisUnit("seconds")


@dataclasses.dataclass(frozen=True)
class Scale:
    """A linear or logarithmic scale from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """At most `most` round values on the scale, in order."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                found = [digit * 10.0**power for power in powers for digit in digits]
                found = [value for value in found if self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)]
                if len(found) <= most:
                    return found
            return found[:: math.ceil(len(found) / most)]
        least = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(least))
        step = next(step for factor in (1, 2, 5, 10) if (step := factor * power) >= least * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def scale_of(values: Iterable[float], log: bool | None = None, zero: bool = False, room: float = 0.0) -> Scale:
    """A scale that holds all finite values.

    log: whether the scale is logarithmic; it is linear if a value is not positive. If None, LOG_FROM decides.
    zero: whether a linear scale includes 0. room: share of the range that is added at each end of a linear scale.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if log is None:
        log = low > 0 and high / low >= LOG_FROM
    if log and low > 0:
        return Scale(low, high if high > low else 10 * low, True)
    low = min(low, 0.0) if zero else low
    if high <= low:
        margin = abs(low) / 10 or 0.5
        low, high = (low if zero and low == 0 else low - margin), high + margin
    extra = room * (high - low)
    return Scale(low if zero and low == 0 else low - extra, high + extra)


def shown(value: float) -> str:
    """A tick's value, as short as possible without loss."""
    text = f"{value:.6g}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 and value == round(value) else text.replace("-", "\u2212")


def power(value: float) -> str:
    """A large number in three digits: 1.04e12."""
    return f"{value:.3g}".replace("e+", "e")


def tick_labels(scale: Scale, ticks: Iterable[float]) -> list[Html]:
    """The values of a horizontal axis at their places. Narrow screens show only every other value."""
    return [
        tag(
            "span",
            shown(value),
            style=f"left:{100 * scale.place(value):.5g}%",
            class_="every" if number % 2 else None,
        )
        for number, value in enumerate(ticks)
    ]
