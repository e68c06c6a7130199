"""Reference time: what one step of each kind costs, measured or estimated once and kept in a file.

Runs that are compared by time must take their costs from the same table, because a run's own clock also counts other
work on the machine. The table has a curve for each stage of each run: seconds over executed FLOPs. A measured curve
goes through a few programs, which were timed in turns on one machine. A compiled curve has one point: the mean over the
stage's steps, as the TPU compiler estimates it.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bert_fast import BadInput
from bert_fast.data.files import atomic_json
from bert_fast.method import Stage

FORMAT = 1
EXTRAPOLATION = 1.25  # a step may execute at most this many times the FLOPs of a curve's largest program


class Point(NamedTuple):
    """A point of a curve: the FLOPs of a step, and the seconds that it takes."""

    flops: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """A curve for each stage, by the stage's key (`key_of`). The points of a curve ascend in FLOPs.

    instrument: "measured" or "compiled". machine: the machine, as text. chip: the TPU that the steps were compiled for.
    chips: how many chips share a step. Measured costs leave `chip` and `chips` at their defaults.
    """

    instrument: str
    machine: str
    curves: Mapping[str, tuple[Point, ...]]
    chip: str = ""
    chips: int = 0

    def seconds(self, key: str, flops: float) -> float:
        """Seconds of a step that executes `flops`, from the curve of a stage.

        Between two points the curve is linear. Below the first and above the last, time is proportional to FLOPs. The
        curve ends at EXTRAPOLATION times the FLOPs of the last point. A curve with one point has no end. Raises
        BadInput if the stage has no curve, or if `flops` is beyond its end.
        """
        if key not in self.curves:
            raise BadInput(
                f"the step costs have no entry for stage {key}: measure them for this config with `bert-fast costs`, "
                "and give the file as --config.costs"
            )
        points = self.curves[key]
        first, last = points[0], points[-1]
        if len(points) > 1 and flops > last.flops * EXTRAPOLATION:
            raise BadInput(
                f"the step costs of stage {key} cover at most {last.flops:.3g} FLOPs a step, but one of its steps "
                f"executes {flops:.3g}: make the step costs again for this config"
            )
        if flops <= first.flops:
            return first.seconds * flops / first.flops
        for low, high in itertools.pairwise(points):
            if flops <= high.flops:
                share = (flops - low.flops) / (high.flops - low.flops)
                return low.seconds + share * (high.seconds - low.seconds)
        return last.seconds * flops / last.flops

    def fingerprint(self) -> str:
        """Short hash of the table. Two times are comparable only if their tables have the same hash."""
        return hashlib.sha256(json.dumps(to_json(self), sort_keys=True).encode()).hexdigest()[:12]


def key_of(stage: Stage, methods: Sequence[tuple[str, Mapping[str, Any]]], optimizer: str) -> str:
    """The key of a stage: everything that its cost depends on, except for the layers that run and their widths.

    methods: (name, arguments) of the run's methods. optimizer: its name.
    """
    program = dataclasses.asdict(stage.program)
    program["model"] |= {"heads": 0, "mlp_dim": 0}  # a search decides the widths, and the FLOPs account for them
    program["model"] |= {"init_std": 0, "residual_init_std": 0, "norm_eps": 0}  # these cost nothing
    about = json.dumps(
        [stage.name, [[name, dict(given)] for name, given in methods], optimizer, program], sort_keys=True
    )
    words = f"{','.join(name for name, _ in methods) or 'dense'}/{stage.name}"
    return f"{words} {hashlib.sha256(about.encode()).hexdigest()[:12]}"


def not_ascending(points: tuple[Point, ...]) -> tuple[Point, Point] | None:
    """The first two neighbours on a curve where more FLOPs take less time; None if the curve ascends."""
    for low, high in itertools.pairwise(points):
        if high.seconds < low.seconds:
            return low, high
    return None


def to_json(costs: StepCosts) -> dict[str, Any]:
    tree = dataclasses.asdict(costs)
    return {
        "format": FORMAT,
        **tree,
        "curves": {key: [[float(x) for x in point] for point in curve] for key, curve in costs.curves.items()},
    }


def write(costs: StepCosts, path: pathlib.Path) -> None:
    """Writes a table. Raises BadInput if a step takes less time than a step with fewer FLOPs."""
    check(costs, "the step costs")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_json(path, to_json(costs))


def check(costs: StepCosts, where: str) -> None:
    """Raises BadInput if a step takes less time than a step with fewer FLOPs."""
    for key, points in costs.curves.items():
        if bad := not_ascending(points):
            low, high = bad
            raise BadInput(
                f"{where}: in stage {key} a step of {high.flops:.4g} FLOPs takes {high.seconds:.4g} s, and one of "
                f"{low.flops:.4g} FLOPs takes {low.seconds:.4g} s. More work cannot cost less: measure again on an "
                "idle machine, with more --rounds"
            )


def read(path: str | pathlib.Path) -> StepCosts:
    """Reads a table. Raises BadInput if it is missing, damaged, in another format or not ascending."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise BadInput(f"--config.costs={path}: no such file; make it with `bert-fast costs`")
    try:
        tree = json.loads(path.read_text())
        number = tree.pop("format")
        if number != FORMAT:
            raise BadInput(f"{path} has format {number}, this bert_fast reads {FORMAT}: make it again")
        curves = {key: tuple(Point(*map(float, point)) for point in curve) for key, curve in tree["curves"].items()}
        costs = StepCosts(**{**tree, "curves": curves})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{path} is not a table of step costs ({error}): make it with `bert-fast costs`") from error
    check(costs, str(path))
    return costs
