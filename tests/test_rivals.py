"""Every arm of the study of rivals trains within its budget, resumes exactly, and has as many steps as planned."""

import dataclasses

import pytest

from bert_fast import methods
from bert_fast.compare import study
from bert_fast.compare.study import Run
from bert_fast.train import budget, timeline
from helpers.interruption import interrupted
from helpers.small_runs import rows_without_clock, run
from helpers.tiers import tiers

DEBUG = "bert:size=tiny,objective=mlm,norm=pre,debug"
RIVALS = study.load("rivals")
OWN = ("growing rows", "3ML")  # what the tests of the four methods do not cover


@pytest.mark.parametrize("arm", tiers(RIVALS.arms, slow=OWN))
def test_every_rival_trains_within_its_budget_and_resumes_exactly(arm, small_shards, tmp_path, monkeypatch):
    small = {"eval.every": 0, "phases": "16:1", "model.depth": 4, "learning_rate.warmup_steps": 2, "log_every": 4}
    made = dataclasses.replace(RIVALS, config=DEBUG, changes=small | {"checkpoint.every": 4})
    changes = dict(RIVALS.arms[arm])
    if arm == "growing rows":
        changes["phases"] = "16@16:0.5,32@8:0.5"
    if "stacking.depths" in changes:
        changes["stacking.depths"] = "1,4"
    changes |= {"early_bert.align": 8, "early_bert.search": 0.4} if "early_bert" in changes.get("methods", "") else {}
    changes |= {"model.heads": 4, "model.head_size": 8} if "early_bert" in changes.get("methods", "") else {}
    if arm == "shallower":
        changes["model.depth"] = 3
    made = dataclasses.replace(made, arms={arm: changes})
    config = study.config_of(made, Run(arm, "examples:200", 0), small_shards, None).to_dict()
    summary = run(config, tmp_path / "whole")
    assert summary["examples"] <= 200
    assert summary["budget"]["spent"] == summary["examples"]
    interrupted(config, tmp_path / "parts", 6, monkeypatch)
    run(config, tmp_path / "parts")
    assert rows_without_clock(tmp_path / "parts") == rows_without_clock(tmp_path / "whole")
    settings = study.settings_of(made, Run(arm, "examples:200", 0), small_shards, None)
    planned = budget.resolved(settings, methods.make(settings.methods))
    assert summary["steps"] == sum(stage.steps for stage in timeline.stages(planned, methods.make(planned.methods)))
