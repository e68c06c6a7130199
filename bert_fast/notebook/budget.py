"""A budget of minutes for a run: what steps cost is measured here, once, and its schedules end with the budget."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from bert_fast.notebook.pictures import settings_of
from bert_fast.planner import step_costs as instrument
from bert_fast.train import cache, step_costs


def for_minutes(
    config: str, run: str | pathlib.Path, minutes: float, data: str | pathlib.Path, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """`changes` with a budget of `minutes` of training on this machine, for `bert_fast.pretrain`.

    If `run` was started before, with its own budget and step costs: both are part of its schedules, so another
    session finishes what the first one planned. The time for compiling, evaluating and saving is not in the budget.
    """
    run = pathlib.Path(run)
    if (run / "config.json").is_file():
        kept = json.loads((run / "config.json").read_text())
        return {**changes, "budget": kept["budget"], "costs": str(run / "costs.json")}
    path = run.with_name(f"{run.name}-costs.json")
    if not path.is_file():
        cache.keep_programs()
        made = settings_of(config, {**changes, "data.dir": str(data)})
        step_costs.write(instrument.measured([made]), path)
    return {**changes, "budget": f"seconds:{60 * minutes:.0f}", "costs": str(path)}
