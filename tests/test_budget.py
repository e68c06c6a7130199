"""Budgets: how they are written, what steps cost, and where runs with a budget end."""

import dataclasses
import json

import pytest

from bert_fast import BadInput, methods
from bert_fast.cost.budget import Budget, parse
from bert_fast.train import budget, checkpoint, step_costs, timeline
from bert_fast.train.log import read_rows
from bert_fast.train.step_costs import Point, StepCosts, key_of
from helpers.interruption import interrupted
from helpers.small_runs import make_settings, rows_without_clock, run, small_config

EARLY = {
    "methods": "early_bert",
    "model__heads": 4,
    "model__head_size": 8,
    "early_bert__search": 0.3,
    "early_bert__align": 8,
    "checkpoint__every": 4,
    "learning_rate__warmup_steps": 2,
}


def test_budgets_are_read_and_written():
    assert parse("") is None
    assert parse("tokens:2e6") == Budget("tokens", 2e6)
    assert parse("usd:20@v5e") == Budget("usd", 20.0, "v5e")
    assert [str(parse(text)) for text in ("seconds:3600", "chip_hours:2@v5e")] == ["seconds:3600", "chip_hours:2@v5e"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token:1e6", "did you mean tokens"),
        ("tokens", "expected an amount above 0"),
        ("tokens:many", "expected an amount above 0"),
        ("flops:-1", "expected an amount above 0"),
        ("flops:inf", "expected an amount above 0"),
        ("chip_hours:2", "one of the chips v4, v5e"),
        ("usd:2@v99", "one of the chips v4, v5e"),
        ("seconds:2@v5e", "leave out @v5e"),
        ("usd:2@tpu7x", "tpu7x, whose clock is unknown: expected one of v4, v5e"),
        ("chip_hours:2@tpu7x", "chip_hours cannot be counted for tpu7x"),
    ],
)
def test_bad_budgets_are_refused(text, message):
    with pytest.raises(BadInput, match=message):
        parse(text)


COSTS = StepCosts("measured", "here", {"a": (Point(100, 1.0), Point(200, 3.0)), "b": (Point(100, 1.0),)})


def test_costs_are_linear_between_programs_and_proportional_just_beyond_them():
    assert COSTS.seconds("a", 150) == pytest.approx(2.0)
    assert COSTS.seconds("a", 220) == pytest.approx(3.3)
    assert COSTS.seconds("b", 900) == pytest.approx(9.0)  # one point: proportional to FLOPs everywhere


@pytest.mark.parametrize(
    ("key", "flops", "message"), [("c", 100, "no entry for stage c"), ("a", 260, "cover at most 200")]
)
def test_costs_that_are_not_in_the_table_are_refused(key, flops, message):
    with pytest.raises(BadInput, match=message):
        COSTS.seconds(key, flops)


def test_table_is_read_back_as_written_and_damage_is_refused(tmp_path):
    path = tmp_path / "made/costs.json"
    step_costs.write(COSTS, path)
    assert step_costs.read(path) == COSTS
    assert step_costs.read(path).fingerprint() == COSTS.fingerprint()
    with pytest.raises(BadInput, match="More work cannot cost less"):
        step_costs.write(dataclasses.replace(COSTS, curves={"a": (Point(100, 2.0), Point(200, 1.0))}), path)
    tree = json.loads(path.read_text())
    for text, message in (
        (json.dumps({**tree, "format": 9}), "has format 9"),
        (json.dumps({**tree, "surprise": 1}), "is not a table"),
        ("[]", "is not a table"),
        ("{", "is not a table"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            step_costs.read(path)
    with pytest.raises(BadInput, match="no such file"):
        step_costs.read(tmp_path / "absent.json")


def planned(config: dict):
    settings = make_settings(config)
    method = methods.make(settings.methods)
    settings = budget.resolved(settings, method)
    return settings, method, budget.Meter(settings, method)


CASES = {
    "dense": {},
    "growing rows": {"phases": "16@8:0.3,32:0.7"},
    "layer_drop": {"methods": "layer_drop", "phases": "16:1", "model__norm": "pre"},
    "layer_drop, conditional": {
        "methods": "layer_drop",
        "layer_drop__execution": "cond",
        "micro_batches": 2,
        "model__norm": "pre",
    },
    "token_drop": {"methods": "token_drop"},
    "mslt": {"methods": "stacking", "stacking__variant": "mslt", "model__depth": 4},
    "early_bert": EARLY,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("text", ["tokens:2e4", "examples:900", "flops:4e9"])
def test_the_last_step_of_a_plan_is_the_last_that_the_budget_allows(small_shards, case, text):
    settings, method, meter = planned(small_config(small_shards, budget=text, **CASES[case]))
    assert settings.schedule.steps == settings.steps
    assert meter.of_all(timeline.stages(settings, method)) <= settings.budget.amount * (1 + 1e-9)
    longer = budget.with_steps(settings, settings.steps + 1)
    assert meter.of_all(timeline.stages(longer, method)) > settings.budget.amount


@pytest.mark.slow
def test_flops_spent_of_a_budget_equal_the_flops_that_the_run_counts(small_shards, tmp_path):
    config = small_config(small_shards, budget="flops:3e8", methods="layer_drop", phases="16:1", model__norm="pre")
    summary = run(config, tmp_path)
    assert summary["budget"]["spent"] == pytest.approx(summary["flops"], rel=1e-9)
    assert summary["flops"] <= 3e8 < summary["flops"] + 2 * summary["flops"] / summary["steps"]
    last = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "valid"][-1]
    assert last["step"] == summary["steps"]


def costs_of(config: dict) -> StepCosts:
    """A table in which a step of this run takes a nanosecond per FLOP, plus a millisecond."""
    settings = make_settings(config)
    method = methods.make(settings.methods)
    keys = [key_of(stage, settings.methods, settings.optimizer.name) for stage in timeline.stages(settings, method)]
    curve = tuple(Point(flops, 1e-3 + 1e-9 * flops) for flops in (1e5, 1e8))
    return StepCosts("measured", "here", dict.fromkeys(keys, curve))


@pytest.fixture
def early(small_shards, tmp_path):
    """An EarlyBERT run with a budget in seconds. Its search finds other widths than those guessed."""
    config = small_config(small_shards, **EARLY, early_bert__neuron_ratio=0.75)
    step_costs.write(costs_of(config), tmp_path / "costs.json")
    return {**config, "budget": "seconds:0.3", "costs": str(tmp_path / "costs.json")}


@pytest.mark.slow
def test_run_is_planned_again_after_its_search_and_resumes_exactly(early, tmp_path, monkeypatch):
    settings, method, _ = planned(early)
    search, *rest = timeline.stages(settings, method)
    # If steps are cheaper than guessed, there are more of them.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setattr(budget.Meter, "of_step", cheaper_than_guessed(budget.Meter.of_step))
    summary = run(early, whole)
    assert summary["steps"] > search.steps + sum(stage.steps for stage in rest)
    each = 0.3 / settings.steps
    assert 0.3 - 2 * each < summary["budget"]["spent"] <= 0.3 * (1 + 1e-9)
    for step in (search.steps - 1, search.steps + 5):
        interrupted(early, parts / str(step), step, monkeypatch)
        run(early, parts / str(step))
        assert rows_without_clock(parts / str(step)) == rows_without_clock(whole)
    about = checkpoint.about(checkpoint.newest(whole / "checkpoints", print))
    assert about.stage.schedule.steps == summary["steps"] - search.steps  # the schedule ends where the budget does


def cheaper_than_guessed(of_step):
    def changed(self, stage, program, on_L):
        return of_step(self, stage, program, on_L) * (
            1.0 if stage.guess or not isinstance(program.model.mlp_dim, tuple) else 0.5
        )

    return changed


def test_run_planned_with_other_costs_is_not_continued(early, tmp_path, monkeypatch):
    interrupted(early, tmp_path / "run", 4, monkeypatch)
    costs = step_costs.read(early["costs"])
    slower = {key: tuple(Point(p.flops, 2 * p.seconds) for p in curve) for key, curve in costs.curves.items()}
    step_costs.write(dataclasses.replace(costs, curves=slower), tmp_path / "costs.json")
    with pytest.raises(BadInput, match="planned with other step costs"):
        run(early, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "seconds:1"}, "needs the costs of steps"),
        ({"budget": "tokens:1"}, "does not allow even one step, which costs"),
        ({"budget": "examples:40", **EARLY}, "allows . steps, and .*the learning rate is 0"),
    ],
)
def test_budgets_that_cannot_be_planned_are_refused_before_anything_is_written(
    small_shards, tmp_path, changes, message
):
    with pytest.raises(BadInput, match=message):
        run(small_config(small_shards, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_chip_hours_and_dollars_are_computed_from_reference_time_on_the_budgets_chip():
    costs = dataclasses.replace(COSTS, instrument="compiled", chip="v5e", chips=4)
    assert budget.factor(parse("chip_hours:1@v5e"), costs) == pytest.approx(4 / 3600)
    assert budget.factor(parse("usd:1@v5e"), costs) == pytest.approx(1.2 * 4 / 3600)
    assert budget.factor(parse("seconds:1"), costs) == 1
    with pytest.raises(BadInput, match="is for v4, but the step costs were made for v5e"):
        budget.factor(parse("usd:1@v4"), costs)
    with pytest.raises(BadInput, match="made on here"):
        budget.factor(parse("usd:1@v5e"), COSTS)


def test_error_about_missing_step_costs_has_the_command_that_makes_them():
    argv = "--config=bert:size=mini,seq=128 --workdir=runs/a --config.data.dir=my shards --config.model.depth=2"
    argv = [*argv.replace("my shards", "my_shards").split(), "--config.budget=seconds:60", "--config.steps=9"]
    made = budget.costs_command([arg.replace("my_", "my ") for arg in argv], parse("seconds:60"))
    assert made.endswith(
        "costs --config=bert:size=mini,seq=128 '--config.data.dir=my shards' --config.model.depth=2 --out=costs.json"
    )
    assert "--topology=v5p:2x2x1" in budget.costs_command([], parse("usd:1@v5p"))
    made = budget.costs_command([], parse("usd:1@v5e"))
    assert made.endswith("costs --config=CONFIG --config.data.dir=SHARDS --topology=v5e:1x1 --out=costs.json")
    with pytest.raises(BadInput, match=r"give it as --config.costs=costs.json:\n  .* costs --config="):
        budget.factor(parse("seconds:1"), None)


def test_a_meter_makes_the_same_draws_as_the_run(small_shards):
    config = small_config(small_shards, budget="flops:3e8", methods="layer_drop", phases="16:1", model__norm="pre")
    settings, method, meter = planned(config)
    (stage,) = timeline.stages(settings, method)
    by_hand = 0.0
    for step in range(stage.steps):
        clock = timeline.clock_of((stage,), 0, step, 0)
        program, _, on_L = timeline.drawn(method, stage, clock, timeline.rng_of(settings.seed, step))
        by_hand += meter.of_step(stage, program, on_L.tolist())
    assert meter.of_all((stage,)) == pytest.approx(by_hand, rel=1e-12)
    usual = budget.DRAWS
    try:
        budget.DRAWS = 20
        assert meter.of_all((stage,)) == pytest.approx(by_hand, rel=0.1)
    finally:
        budget.DRAWS = usual
