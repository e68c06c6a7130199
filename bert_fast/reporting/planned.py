"""The plans of runs that have not begun, as a page: what each layer will do, step by step."""

import importlib.resources
import pathlib
from collections.abc import Mapping
from typing import Any

from bert_fast import __version__, methods
from bert_fast.data.files import atomic_write
from bert_fast.reporting import blocks, plans
from bert_fast.reporting.read import LoggedRun, LoggedStage
from bert_fast.train import budget, timeline
from bert_fast.train.settings import PretrainSettings


def run_of(label: str, settings: PretrainSettings, config: Mapping[str, Any]) -> LoggedRun:
    """A run at step 0, in the form that the report reads. Widths that a search will decide are guessed."""
    method = methods.make(settings.methods)
    spans, begin = [], 0
    for stage in timeline.stages(budget.resolved(settings, method), method):
        spans.append(LoggedStage(stage.name, begin, begin + stage.steps, stage))
        begin += stage.steps
    rows = [{"step": 0, "split": "train", "flops": 0.0}]
    return LoggedRun(label, label, "", settings.seed, rows, config, spans, summary={})


def write(runs: Mapping[str, tuple[PretrainSettings, Mapping[str, Any]]], path: pathlib.Path):
    """Writes the page. runs: the settings and the config of each run, by the run's title."""
    drawn = [run_of(label, *about) for label, about in runs.items()]
    section = plans.section(drawn, {run.arm: number for number, run in enumerate(drawn)})
    assert section is not None
    files = importlib.resources.files("bert_fast.reporting")
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    guessed = any(span.stage is not None and span.stage.guess for run in drawn for span in run.spans)
    warnings = ["Widths are guessed where a search in the run will decide them."] if guessed else []
    page = blocks.page(" and ".join(runs), f"Planned, bert_fast {__version__}", warnings, [section], style, script)
    atomic_write(path, page.encode())
