"""Scores after fine-tuning, with their deviations over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from bert_fast.reporting import bars
from bert_fast.reporting.bars import Dot
from bert_fast.reporting.blocks import Figure, Section, Table


def section(scores: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """The section with the scores; None if there are no scores. scores: the content of results.json, by model name."""
    entries: list[Dot] = []
    rows: list[Sequence[str]] = []
    looks = {name: number for number, name in enumerate(scores)}
    tasks = dict.fromkeys(task for found in scores.values() for task in found["tasks"])
    for task in tasks:
        for name, found in scores.items():
            if task not in found["tasks"]:
                continue
            about = found["tasks"][task]
            score = about["last"]["score"]
            seeds = len(about["learning_rates"][about["chosen"]]["seeds"])
            deviation = score["deviation"]
            spread = deviation or 0.0
            others = ", ".join(
                f"{key} {value['mean']:.2f}" for key, value in sorted(about["last"].items()) if key != "score"
            )
            words = f"{score['mean']:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")
            label = f"{task}: {name}" if len(scores) > 1 else task
            entries.append(
                Dot(label, score["mean"], score["mean"] - spread, score["mean"] + spread, looks[name], words)
            )
            best = f"{about['best']['score']['mean']:.2f}"
            baseline = about.get("baseline")  # folders of older versions have none
            constant = f"{baseline['score']:.2f}" if baseline else "-"
            numbers = [str(seeds), words, f"{score['median']:.2f}", best, constant]
            rows.append([task, name, about["chosen"], *numbers, others])
    if not rows:
        return None
    heads = ["task", "model", "learning rate", "seeds", "score", "median", "best", "constant", "metrics"]
    table = Table("Scores on held-out data at the end of fine-tuning", heads, rows, words=2)
    about_all = "Scores: " + "; ".join(f"{dot.name} {dot.words}" for dot in entries)
    note = (
        "Means over seeds at each task's chosen learning rate; the bars are one sample standard deviation. With one "
        "seed there is no deviation. The learning rate was chosen on the same held-out data. Constant: the score "
        "if every example gets the same prediction."
    )
    return Section("scores", "Scores", [Figure("Scores", bars.dots(entries, "score", about_all), table, note)])
