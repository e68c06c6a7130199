"""The estimate of the time left is right even if some stages have slower steps than others."""

import itertools
import types

import pytest

from bert_fast import methods
from bert_fast.compare.runs import Planned
from bert_fast.compare.study import Run
from bert_fast.train import report, timeline
from bert_fast.train.log import Progress
from helpers.small_runs import make_settings, small_config


def test_time_left_is_longer_if_later_steps_are_slower(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("bert_fast.train.log.time.monotonic", lambda: now[0])
    progress = Progress(total=100, done=0)
    progress.follow([(0, 0.0), (50, 50.0), (100, 200.0)])  # the later half takes three times as long
    now[0] = 25.0
    progress.update(25, {"loss": 1.5})
    assert capsys.readouterr().err == "step 25/100  loss 1.5  2 min 55 s left\n"  # not 1 min 15 s


def test_time_left_of_a_continued_run_depends_only_on_steps_since_it_continued(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("bert_fast.train.log.time.monotonic", lambda: now[0])
    progress = Progress(total=100, done=40, noun="reference second")
    now[0] = 30.0
    progress.update(70, {})
    assert capsys.readouterr().err == "reference second 70/100  30 s left\n"


def test_course_of_a_growing_model_counts_flops_and_follows_stages_that_ended_early(small_shards):
    made = make_settings(small_config(small_shards, methods="stacking", steps=40, model__depth=4))
    method = methods.make(made.methods)
    stages = timeline.stages(made, method)
    engine = types.SimpleNamespace(timeline=stages, counters=types.SimpleNamespace(ends=[]))
    course = report.course(method, engine)  # type: ignore[arg-type]
    assert [step for step, _ in course] == [0, *(sum(s.steps for s in stages[: i + 1]) for i in range(len(stages)))]
    each = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(course)]
    assert each == sorted(each)
    assert each[-1] > 1.5 * each[0]
    engine.counters.ends = [2]
    assert report.course(method, engine)[1] == (2, pytest.approx(2 * each[0]))  # type: ignore[arg-type]


def test_reference_seconds_of_a_planned_run_are_those_of_its_stages():
    planned = Planned(Run("arm", "tokens:1", 0), None, [(0, 0.0), (50, 10.0), (100, 40.0)], 0)  # type: ignore[arg-type]
    assert (planned.steps, planned.seconds) == (100, 40.0)
    assert [planned.seconds_at(step) for step in (0, 25, 75, 100, 120)] == [0, 5, 25, 40, 40]
