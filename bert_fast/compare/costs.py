"""The table of a study's step costs. They are measured or estimated once, and kept in the study's folder. This module
runs as a separate process, so that no device stays in use when it ends.

    python -m bert_fast.compare.costs STUDY FOLDER SHARDS

`compare` starts this process if the table lacks a stage.
"""

import dataclasses
import pathlib
import statistics
import sys

from bert_fast import BadInput, methods
from bert_fast.compare import study as studies
from bert_fast.compare.study import Run, Study
from bert_fast.planner import step_costs as made
from bert_fast.train import cache, host_memory, step_costs, timeline
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.step_costs import Point, StepCosts, key_of

NAME = "costs.json"


def settings_of(study: Study, data: pathlib.Path) -> list[PretrainSettings]:
    """The settings of each arm, without a budget."""
    return [studies.settings_of(study, Run(arm, "", study.seeds[0]), data, None) for arm in study.arms]


def keys_of(settings: PretrainSettings) -> list[str]:
    stages = timeline.stages(settings, methods.make(settings.methods))
    return [key_of(stage, settings.methods, settings.optimizer.name) for stage in stages]


def missing(runs: list[PretrainSettings], known: StepCosts | None) -> list[PretrainSettings]:
    """The runs that have a stage without costs in the table."""
    curves = known.curves if known else {}
    return [settings for settings in runs if any(key not in curves for key in keys_of(settings))]


def joined(known: StepCosts, new: StepCosts, reference: list[str]) -> StepCosts:
    """The known table, with the curves that it lacks taken from a later measurement, `new`.

    That measurement also timed the stages in `reference` again. These stages give ratios of known to new seconds. The
    new seconds are multiplied by the median ratio, as if all stages had been timed together.
    """
    ratios = []
    for key in reference:
        again = {point.flops: point.seconds for point in new.curves[key]}
        ratios += [point.seconds / again[point.flops] for point in known.curves[key] if point.flops in again]
    scale = statistics.median(ratios)
    added = {
        key: tuple(Point(point.flops, scale * point.seconds) for point in curve)
        for key, curve in new.curves.items()
        if key not in known.curves
    }
    return dataclasses.replace(known, curves={**known.curves, **added})


def make(study: Study, out: pathlib.Path, data: pathlib.Path):
    """Writes the table, or adds the stages that it lacks."""
    path = out / NAME
    known = step_costs.read(path) if path.exists() else None
    runs = settings_of(study, data)
    lacking = missing(runs, known)
    if not lacking:
        return
    cache.keep_programs()
    if study.topology:
        new = made.compiled(lacking, study.topology, pathlib.Path("~/.cache/bert_fast/plan").expanduser())
        costs = dataclasses.replace(new, curves={**(known.curves if known else {}), **new.curves})
    elif known is None:
        costs = made.measured(lacking, study.rounds)
    else:
        reference = next((settings for settings in runs if settings not in lacking), None)
        if reference is None:
            raise BadInput(f"{path} has the step costs of another study: choose another --out, or delete it")
        costs = joined(known, made.measured([reference, *lacking], study.rounds), keys_of(reference))
    step_costs.write(costs, path)


def main(argv: list[str]) -> int:
    study, out, data = argv
    host_memory.keep_freed()  # as in the runs
    try:
        make(studies.load(study), pathlib.Path(out), pathlib.Path(data))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # `compare` says what to do next
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
