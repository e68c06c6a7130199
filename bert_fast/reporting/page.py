"""Puts the sections of a report together."""

import importlib.resources
from typing import NamedTuple

from bert_fast import __version__, methods
from bert_fast.reporting import blocks, differences, losses, panels, plans, scores, settings, speed
from bert_fast.reporting.blocks import Section
from bert_fast.reporting.losses import Curves
from bert_fast.reporting.read import ReportContent, warnings_of
from bert_fast.train.log import counted


class Page(NamedTuple):
    title: str
    lead: str
    warnings: list[str]
    sections: list[Section]

    def html(self) -> str:
        """The page with its style and script inside."""
        files = importlib.resources.files("bert_fast.reporting")
        style, script = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        return blocks.page(*self, style=style, script=script)

    def markdown(self, picture: str) -> str:
        return blocks.markdown(*self, picture=picture)


def lead_of(content: ReportContent) -> str:
    """What the report is about, in one line."""
    runs = content.runs
    parts = [counted(len(runs), "run")] if runs else []
    if content.is_study:
        sizes = {
            "arm": len({run.arm for run in runs}),
            "budget": len({run.budget for run in runs}),
            "seed": len({run.seed for run in runs}),
        }
        parts += [counted(count, noun) for noun, count in sizes.items()]
    if content.scores:
        parts.append(counted(len(content.scores), "fine-tuning folder"))
    summaries = [run.summary for run in runs if run.summary is not None]
    devices = dict.fromkeys(summary["devices"].split(" (")[0] for summary in summaries)
    if devices:
        parts.append("on " + ", ".join(devices))
    return ", ".join([*parts, f"bert_fast {__version__}"])


def page_of(content: ReportContent) -> tuple[Page, Curves]:
    """The page of a report, and the curves that its PNG also shows."""
    runs = content.runs
    curves = losses.curves_of(content)
    found: list[Section | None] = []
    if content.study is not None:
        found.append(differences.section(content.study, curves.looks))
    elif runs:
        found.append(differences.runs_section(curves))
    if runs:
        found += [losses.section(curves), plans.section(runs, curves.looks), panels.section(curves)]
    found.append(scores.section(content.scores))
    if runs:
        found += [speed.section(curves), settings.section(runs, methods.defaults(), content.is_study)]
    sections = [section for section in found if section is not None]
    return Page(f"Report: {content.title}", lead_of(content), warnings_of(content), sections), curves
