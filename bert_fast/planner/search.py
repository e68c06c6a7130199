"""Finds the batch, micro-batches, recomputation and mesh with which a run costs least on a slice.

Not every choice is compiled. Micro-batches, recomputation, and meshes that split the parameters save memory, and a
choice that fits without them is cheaper than the same choice with them. So micro-batches are doubled only until
something fits. After that, more recomputation and further meshes are tried only with at most half as many
micro-batches. The batch size is doubled or halved as long as each change makes an example cheaper by more than
the share WORTH.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.planner import estimate
from bert_fast.planner.estimate import CostEstimate, Slice
from bert_fast.train.budget import with_steps
from bert_fast.train.settings import RECOMPUTE, Mesh, PretrainSettings

WORTH = 0.01


class Choice(NamedTuple):
    """What a search decides."""

    batch_size: int
    micro_batches: int
    recompute: str
    mesh: Mesh

    def settings(self, settings: PretrainSettings) -> PretrainSettings:
        """The settings with this choice, and the number of steps that gives the same number of examples."""
        model = dataclasses.replace(settings.model, recompute=self.recompute)
        changed = dataclasses.replace(
            settings, batch_size=self.batch_size, micro_batches=self.micro_batches, model=model, mesh=self.mesh
        )
        if settings.budget:
            return changed
        steps = max(1, round(settings.steps * settings.batch_size / self.batch_size))
        return with_steps(changed, steps)

    def flags(self, settings: PretrainSettings) -> dict[str, int | str]:
        """The values of this choice by config key."""
        found: dict[str, int | str] = {"batch_size": self.batch_size, "micro_batches": self.micro_batches}
        found |= {f"mesh.{axis}": size for axis, size in dataclasses.asdict(self.mesh).items()}
        found["model.recompute"] = self.recompute
        return found if settings.budget else found | {"steps": self.settings(settings).steps}


class Found(NamedTuple):
    """A choice that fits. seconds: chip-seconds per example, over the whole run."""

    choice: Choice
    plan: CostEstimate
    seconds: float


Plan = Callable[[PretrainSettings], CostEstimate]


def search(
    settings: PretrainSettings, where: Slice, cache: pathlib.Path, say: Callable[[str], None]
) -> tuple[list[Found], Found | None]:
    """All choices that were found to fit, cheapest first, and the cheapest of those with the run's own batch size.

    The second value is None if none of those fits. Raises BadInput if nothing fits, if the chip's clock is unknown, or
    if the phases have batch sizes.
    """
    if where.chip is None or not where.chip.clock:
        raise BadInput(
            f"--search needs a chip whose clock is known, such as v5e: choose a --topology other than {where.topology}"
        )
    if any(phase.batch_size for phase in settings.phases):
        raise BadInput("--search needs phases without batch sizes: leave out @BATCH in --config.phases")

    planned, refused = 0, []

    def plan(changed: PretrainSettings) -> CostEstimate:
        nonlocal planned
        try:
            found = estimate.plan(changed, where, cache, say)
        except BadInput as error:
            refused.append(error)
            raise
        planned += 1
        return found

    tried: dict[int, list[Found]] = {}

    def cost(size: int) -> float:
        if size not in tried:
            say(f"batch of {size}:")
            tried[size] = that_fit(settings, size, len(where.devices), plan)
        return min((found.seconds for found in tried[size]), default=float("inf"))

    least, own = len(where.devices), settings.batch_size
    size = own
    while cost(size) == float("inf") and size // 2 >= least:
        size //= 2
    while cost(2 * size) < (1 - WORTH) * cost(size):
        size *= 2
    while size <= own and size // 2 >= least and cost(size // 2) < (1 - WORTH) * cost(size):
        size //= 2
    found = sorted((each for fits in tried.values() for each in fits), key=lambda each: each.seconds)
    if refused and not planned:
        raise refused[0]  # the config is wrong
    if not found:
        raise BadInput(
            f"not even one example per device fits on {where.topology}: use a larger chip, or "
            "--config.model.dtype=bfloat16"
        )
    return found, min(tried[own], key=lambda each: each.seconds, default=None)


def that_fit(settings: PretrainSettings, size: int, devices: int, plan: Plan) -> list[Found]:
    """The choices with this batch size that fit. Choices that are sure to cost more than another are left out."""
    found: list[Found] = []
    for mesh in meshes(devices):
        for index, recompute in enumerate(RECOMPUTE):
            # More recomputation, or a mesh that sends more, is worth it only with fewer micro-batches.
            simpler = [each.choice for each in found if each.choice.recompute in RECOMPUTE[: index + 1]]
            most = min((choice.micro_batches // 2 for choice in simpler), default=size // (mesh.data * mesh.fsdp))
            count = 1
            while count <= most:
                choice = Choice(size, count, recompute, mesh)
                planned = tried(plan, choice, settings)
                if planned is not None and planned.fits:
                    hours, examples = planned.hours(), sum(stage.steps * stage.batch_size for stage in planned.stages)
                    assert hours is not None
                    found.append(Found(choice, planned, 3600 * hours * planned.chips / examples))
                    break
                count *= 2
    return found


def tried(plan: Plan, choice: Choice, settings: PretrainSettings) -> CostEstimate | None:
    """The plan of a choice. None if it cannot be planned, as with an odd number of heads on two devices."""
    if choice.batch_size % (choice.micro_batches * choice.mesh.data * choice.mesh.fsdp):
        return None
    try:
        return plan(choice.settings(settings))
    except BadInput:
        return None


def meshes(devices: int) -> list[Mesh]:
    """Meshes to try, those that send the fewest bytes first: data=N; fsdp=N; fsdp=N/2 and tensor=2, which splits each
    layer over two devices.
    """
    found = [Mesh(devices, 1, 1)]
    if devices > 1:
        found += [Mesh(1, devices, 1), Mesh(1, devices // 2, 2)]
    return found
