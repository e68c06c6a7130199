"""A budget of minutes for a run. The cost of steps is measured once on this machine, and the run's schedules end with
the budget.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from bert_fast.data import sealed
from bert_fast.notebook.pictures import settings_of
from bert_fast.planner import step_costs as instrument
from bert_fast.train import cache, step_costs


def for_minutes(
    config: str, run: str | pathlib.Path, minutes: float, data: str | pathlib.Path, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """`changes` with a budget of `minutes` of training on this machine, for `bert_fast.pretrain`.

    If `run` was started before, returns its budget and step costs. Both determine its schedules, so a later session
    finishes what the first one planned. The time for compiling, evaluating and saving is not in the budget.
    """
    run = pathlib.Path(run)
    if (run / "config.json").is_file():
        kept = sealed.read(run / "config.json", "restore it, or choose another folder", (None,))
        return {**changes, "budget": kept["budget"], "costs": str(run / "costs.json")}
    path = run.with_name(f"{run.name}-costs.json")
    if not path.is_file():
        cache.keep_programs()
        made = settings_of(config, {**changes, "data.dir": str(data)})
        step_costs.write(instrument.measured([made]), path)
    return {**changes, "budget": f"seconds:{60 * minutes:.0f}", "costs": str(path)}
