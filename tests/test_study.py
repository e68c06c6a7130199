"""The study of the methods: its parts, the commit that a part runs from, and pages that match the records."""

import json
import pathlib
import subprocess

import pytest

from bert_fast import methods
from bert_fast.compare import records, study
from bert_fast.compare.records import Record
from bert_fast.compare.study import Run
from bert_fast.configs import combined, late_growth
from bert_fast.data.shards import read_manifest
from bert_fast.tasks import settings
from bert_fast.train import budget, timeline
from bert_fast.train import settings as pretrain_settings
from bert_fast.train.step_costs import Point, StepCosts
from experiments import downstream, study_budgets, study_pages, study_statistics
from experiments import study as part_script
from experiments.speedrun import rules
from experiments.study_words import METHODS, PAGES
from helpers.command_line import ROOT


def settings_of(arm: str, small_shards, part: str):
    made = study.load(part)
    return study.settings_of(made, Run(arm, "", 0), small_shards, None)


TIER1 = study.load("tier1")


def test_every_part_ships_and_every_method_has_a_description():
    assert set(part_script.PARTS) == {path.stem for path in study.SHIPPED.glob("tier*.py")}
    assert set(METHODS) >= set(TIER1.arms) - {"dense"}
    assert set(METHODS) <= {*TIER1.arms, *study.load("tier2_growth").arms}


def test_every_arm_is_on_a_page():
    shown = {arm for page in PAGES.values() for arm in page.arms}
    prefixes = tuple(prefix for page in PAGES.values() for prefix in page.more)
    for part in (part for part in part_script.PARTS if not part.startswith("tier1_rates")):
        for arm in study.load(part).arms:
            assert arm == "dense" or arm in shown or arm.startswith(prefixes), (part, arm)


ARMS = [(part, arm) for part in ("tier1", "tier2_rivals", "tier2_growth") for arm in study.load(part).arms]


@pytest.mark.parametrize(("part", "arm"), ARMS)
def test_arms_end_with_a_deep_model_and_a_rate_of_zero(part, arm, small_shards):
    settings = budget.with_steps(settings_of(arm, small_shards, part), 2000)
    stages = timeline.stages(settings, methods.make(settings.methods))
    last, begins = stages[-1], [sum(stage.steps for stage in stages[:index]) for index in range(len(stages))]
    assert last.program.model.depth >= (4 if arm == "shallower" else 6)
    began = max(begin for stage, begin in zip(stages, begins, strict=True) if stage.data == "restart" or not begin)
    clock = timeline.clock_of(stages, len(stages) - 1, begins[-1] + last.steps - 1, began)
    rate = last.learning_rate(clock, last.steps - 1)
    assert 0 <= rate < 0.002 * settings.schedule.peak


@pytest.mark.parametrize(
    ("config", "part", "arm"),
    [(late_growth, "tier2_growth", "late growth"), (combined, "tier1", "stacking + token dropping")],
)
def test_recommended_configs_grow_like_the_arms_of_the_study(config, part, arm, small_shards):
    made = config.get_config("size=tiny")
    made.update_from_flattened_dict({"model.depth": 6, "data.dir": str(small_shards), "phases": "64:1"})
    wanted = settings_of(arm, small_shards, part)
    found = pretrain_settings.make(made.to_dict(), read_manifest(small_shards)["vocab"], tuple(methods.known()))
    assert [name for name, _ in found.methods] == [name for name, _ in wanted.methods]

    def growth(of):
        depths: dict[int, int] = {}
        for stage in timeline.stages(budget.with_steps(of, 1000), methods.make(of.methods)):
            depths[stage.program.model.depth] = depths.get(stage.program.model.depth, 0) + stage.steps
        return depths

    assert growth(found) == growth(wanted)
    assert (
        dict(found.methods)["stacking"]["learning_rate"] == dict(wanted.methods)["stacking"]["learning_rate"] == "run"
    )


def test_each_arm_tries_the_same_rates_as_dense():
    found: dict[str, set[str]] = {}
    for arm in (*study.load("tier1_rates").arms, *study.load("tier1_rates_mslt").arms):
        name, _, rate = arm.rpartition(", rate ")
        found.setdefault(name, set()).add(rate)
    assert set(found) == {*TIER1.arms, "MSLT"}
    assert len({frozenset(rates) for rates in found.values()}) == 1


def figures(arm: str, seed: int, loss: float, commit: str = "c0ffee", **changes) -> dict:
    return {
        "arm": arm, "budget": "seconds:10", "seed": seed, "mlm_loss": loss, "mask_loss": loss + 0.25, "tokens": 2e6,
        "mlm_accuracy": 0.25, "flops": 1e12, "seconds": 10.0, "clock_seconds": 11.0, "overhead": 1.0, "commit": commit,
        "unigram_loss": 6.5, "unigram_mask_loss": 6.75, "corpus_tokens": 8_000_000, "config": "quickstart",
        "changes": {"model.depth": 6}, "machine": "a test", "costs": "f00d", "fingerprint": "of its text", **changes,
    }  # fmt: skip


def fill(folder: pathlib.Path, arm: str, losses: list[float], **changes):
    rows = [{"step": 1, "split": "valid", "mlm_loss": losses[0], "flops": 1e12}]
    for seed, loss in enumerate(losses):
        records.write(folder, Record(figures(arm, seed, loss, **changes), rows))


@pytest.fixture
def made_records(tmp_path, monkeypatch):
    for module in (part_script, study_statistics):
        monkeypatch.setattr(module, "RECORDS", tmp_path)
    fill(tmp_path / "tier1", "dense", [5.0, 5.1, 4.9])
    fill(tmp_path / "tier1", "token dropping", [4.9, 5.01, 4.79], tokens=2.5e6)
    fill(tmp_path / "tier1", "stacking", [5.1, 5.05, 4.9])
    for rate, loss in (("0.003", 5.3), ("0.006", 5.2)):
        fill(tmp_path / "tier1_rates", f"dense, rate {rate}", [loss])
    return tmp_path


def test_pages_have_the_numbers_of_the_records(made_records):
    text = study_pages.text_of("token_drop")
    # The differences are -0.1, -0.09 and -0.11: so close together that their mean is clearly below 0. Dense training
    # reads 2 M of the 8 M tokens, and ends 6.75 - 5.25 nats below the unigram model.
    assert (
        "| token dropping | 3 (seeds 0, 1, 2) | 4.900 ± 0.110 | -0.100 [-0.125, -0.075] | 5.150 | 25.0% | 2.50 |"
        in text
    )
    assert "Token dropping ends 0.100 nats below dense training at equal time, after 3 seeds (t -17.3)." in text
    assert "2.0 M of the 8.0 M tokens of the text (0.25 epochs). It ends 1.50 nats below" in text
    assert "**9 of 40 runs have finished" in text
    assert "| dense | 5.300 | **5.200** |" in text
    assert "| token dropping | 47 h, 56 USD | 0.87 |" in text  # from tpu_plan.md


def test_differences_within_the_noise_are_called_unresolved(made_records):
    text = study_pages.text_of("stacking")
    assert "The difference between stacking and dense training is unresolved (+0.017 nats at equal time" in text
    assert "| +0.017 [-0.173, +0.206] (unresolved) |" in text


def test_rivals_are_compared_with_the_methods_of_the_main_part(made_records):
    fill(made_records / "tier2_rivals", "dense", [5.0, 5.1, 4.9])
    fill(made_records / "tier2_rivals", "random token dropping", [4.88, 4.98, 4.78])
    text = study_pages.text_of("token_drop")
    assert "| minus | token dropping |" in text
    assert "| random token dropping | -0.020 [-0.045, +0.005] (unresolved) |" in text  # -0.02, -0.03 and -0.01
    fill(made_records / "tier2_epochs", "dense", [5.0, 5.1, 4.9])
    fill(made_records / "tier2_epochs", "random token dropping", [3.0, 3.1, 2.9])
    assert study_pages.text_of("token_drop").count("| minus |") == 1  # another text: not comparable


def test_the_page_about_budgets_says_what_an_error_of_the_clock_is_worth(made_records):
    stages = {"dense/64-tokens c0ffee": (Point(1.0, 1.02),), "stacking/joint f00d": (Point(1.0, 0.98), Point(2.0, 3.0))}
    curves = {**stages, "dense/8-tokens decaf": (Point(3.0, 9.0),)}
    costs = StepCosts("measured", "a test", curves)
    said = study_budgets.clock(costs)
    assert "2 programs fall into 1 groups of equal FLOPs" in said
    assert "are up to 4% apart; their root mean square deviation from the mean of their group is 2.8%" in said
    assert "| stacking/joint | 0.9800 |\n| dense/64-tokens | 1.0200 |" in said
    assert "has not been measured yet" in said
    fill(made_records / "tier2_clock", "dense", [5.2, 5.3, 5.09], budget="seconds:9")
    fill(made_records / "tier2_clock", "dense", [4.8, 4.9, 4.71], budget="seconds:11")
    said = study_budgets.clock(costs)
    assert "a little more time. Minus its loss at 10 s: " in said
    assert "+0.197 [+0.182, +0.211] at 9 s, -0.197 [-0.211, -0.182] at 11 s" in said
    assert "by about 0.06 nats" in said  # 0.393 * 0.028 / ln(11 / 9)


def test_the_page_about_budgets_has_the_arms_with_several_budgets(made_records):
    assert set(study_budgets.measured()[10.0]) == set()
    fill(made_records / "tier2_growth", "dense", [5.0, 5.1, 4.9])
    fill(made_records / "tier2_growth", "late growth", [4.5, 4.6, 4.4])
    fill(made_records / "tier2_growth", "late growth, two layers", [4.5, 4.6, 4.4])
    for arm, losses in (("dense", [4.0, 4.1, 3.9]), ("late growth", [3.5, 3.61, 3.4])):
        fill(made_records / "tier2_larger", arm, losses, budget="seconds:20")
    found = study_budgets.measured()
    assert list(found) == [10.0, 20.0]
    assert set(found[10.0]) == set(found[20.0]) == {"dense", "late growth"}
    assert study_budgets.arms_of(found) == ["late growth", "dense"]


def test_the_block_of_the_readme_has_every_method_that_ran(made_records):
    block = study_pages.readme_block()
    names = [line.split("|")[1].split(" (")[0].strip() for line in block.splitlines() if line.startswith("| ")]
    assert names == ["", "dense", "token dropping", "progressive stacking"]
    assert "| 0.80 | 4.900 ± 0.110 | -0.100 [-0.125, -0.075] |" in block
    fill(made_records / "tier2_growth", "dense", [5.0, 5.1, 4.9])
    fill(made_records / "tier2_growth", "late growth", [4.5, 4.61, 4.39], tokens=4e6)
    fill(made_records / "tier2_growth", "late growth, two layers", [4.4, 4.5, 4.3])
    block = study_pages.readme_block()
    assert "| 80 % of the compute, in decoders | 0.50 | 4.500 ± 0.110 | -0.500 [-0.525, -0.475] |" in block
    assert "two layers" not in block
    assert not study_pages.finished()
    readme = study_pages.with_block((ROOT / "README.md").read_text(), block)
    assert readme.count(block) == 1
    assert study_pages.with_block(readme, block) == readme
    assert "## Install" in readme


HAVE_RUN = any((part_script.RECORDS / "tier1").rglob("*.gz"))


@pytest.mark.skipif(not HAVE_RUN, reason="no run of tier1 is recorded yet")
def test_peak_rates_are_the_best_of_the_trials():
    kept = study_statistics.read("tier1_rates") | study_statistics.read("tier1_rates_mslt")
    losses: dict[str, dict[float, float]] = {}
    for run, record in kept.items():
        arm, _, rate = run.arm.rpartition(", rate ")
        losses.setdefault(arm, {})[float(rate)] = record.figures["mlm_loss"]
    assert set(losses) >= set(TIER1.arms)
    for arm, found in losses.items():
        if arm not in TIER1.arms:  # MSLT with equal shares: the study has it only among the trials
            continue
        assert TIER1.arms[arm]["learning_rate.peak"] == min(found, key=found.__getitem__)


@pytest.mark.skipif(not HAVE_RUN, reason="no run of tier1 is recorded yet")
@pytest.mark.parametrize("name", PAGES)
def test_pages_follow_from_the_records(name):
    text = (ROOT / f"experiments/{name}.md").read_text()
    assert text == study_pages.text_of(name), "write the pages again: python -m experiments.study_pages"


@pytest.mark.skipif(not study_statistics.read("tier2"), reason="no run of tier2 is recorded yet")
def test_the_page_about_budgets_follows_from_the_records():
    text = (ROOT / "experiments/budgets.md").read_text()
    assert text == study_budgets.text(), "write the page again: python -m experiments.study_budgets"


def arms_of(**gains: list[float]) -> dict:
    """Arms at one budget: dense training at 5 nats with each seed, and arms with these gains over it."""
    runs = {name: [{"seed": i, "mlm_loss": 5 - gain} for i, gain in enumerate(of)] for name, of in gains.items()}
    runs["dense"] = [{"seed": i, "mlm_loss": 5.0} for i in range(5)]
    return {name: {"difference": -sum(gains.get(name, [0])), "runs": of} for name, of in runs.items()}


def test_a_gain_shrinks_or_grows_only_beyond_the_noise_between_seeds():
    smaller = arms_of(less=[0.50, 0.51, 0.52], more=[0.1, 0.1, 0.1], noisy=[0.1, 0.9, 0.2], loses=[0.5, 0.5, 0.6])
    larger = arms_of(less=[0.10, 0.12, 0.11, 9], more=[0.3, 0.31, 0.3], noisy=[0.3, 0.2, 0.3], loses=[-0.5, -0.6, -0.5])
    assert study_budgets.changes(smaller, larger) == (["less"], ["more"], ["noisy"])
    said = study_budgets.changed({50.0: arms_of(), 100.0: smaller, 200.0: larger})
    assert said == (
        "From 100 to 200 s, the gain over dense training shrinks for less; it grows for more; it does not change by "
        "more than the noise for noisy (over the seeds that both have)."
    )


def test_arms_that_reach_dense_training_sooner_are_named():
    smaller = arms_of(late=[0.50, 0.51, 0.52], noisy=[0.1, 0.9, 0.2], little=[0.1, 0.11, 0.1])
    larger = arms_of(late=[0.6, 0.6, 0.6])
    for run in larger["dense"]["runs"]:
        run["mlm_loss"] -= 0.2  # dense training with more time
    for arms in (smaller, larger):
        for about in arms.values():
            about["mlm_loss"] = 0
    assert study_budgets.sooner({100.0: smaller, 200.0: larger}) == (
        "These arms end at 100 s below dense training at 200 s: late -0.310 [-0.335, -0.285]."
    )
    del smaller["late"]
    assert "No arm ends at 100 s clearly below" in study_budgets.sooner({100.0: smaller, 200.0: larger})


def test_downstream_scores_show_pre_training_only_three_deviations_above_random_weights():
    assert downstream.distance([10, 12, 14], [1, 2, 3]) == pytest.approx(10 / 5**0.5)
    assert downstream.distance([0, 0], [0, 0]) == 0
    assert downstream.distance([5, 5], [0, 0]) == float("inf")
    low = {"0.0003": {"0": 5.0, "1": 6.0, "2": 5.0}, "0.001": {"0": 9.0, "1": 7.0, "2": 8.0}}
    assert downstream.best(low) == ("0.001", [9.0, 7.0, 8.0])
    equal = {task: dict.fromkeys(downstream.ENCODERS, low) for task in downstream.TASKS}
    assert "pre-training shows in no task" in downstream.page(equal)
    high = {rate: {seed: 50 + score for seed, score in of.items()} for rate, of in low.items()}
    assert "pre-training shows in CoLA (Matthews)." in downstream.page(
        equal | {"cola": {"dense": high, "random weights": low}}
    )
    with pytest.raises(ValueError, match=r"squad1.1, dense: not finished for seed 0, 1, 2"):
        downstream.page({task: equal[task] for task in list(equal)[:-1]})


def test_downstream_scores_are_those_of_the_finished_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(downstream, "FOLDER", tmp_path)
    monkeypatch.setattr(downstream, "KEPT", tmp_path / "kept.json")
    for encoder, score in zip(downstream.ENCODERS, (3.0, 1.0), strict=True):
        path = downstream.folder_of("cola", encoder, 1) / "results.json"
        path.parent.mkdir(parents=True)
        run = {"learning_rate": 3e-4, "seed": 1, "last": {"score": score}}
        path.write_text(json.dumps({"tasks": {"cola": {"runs": [run]}}}))
    assert downstream.kept() == {"cola": {"dense": {"0.0003": {"1": 3.0}}, "random weights": {"0.0003": {"1": 1.0}}}}
    downstream.KEPT.write_text(json.dumps({"cola": {"dense": {"0.001": {"1": 4.0}}}}))  # made on another machine
    assert downstream.kept()["cola"]["dense"] == {"0.001": {"1": 4.0}, "0.0003": {"1": 3.0}}
    assert downstream.finished(downstream.kept(), "cola", "dense", 1)
    assert not downstream.finished(downstream.kept(), "cola", "random weights", 1)
    for task in downstream.TASKS:
        config = downstream.config_of(task, "random weights", 2, tmp_path)
        assert config["random_weights"]
        settings.make(config)


@pytest.mark.skipif(not study_pages.finished(), reason="tier1 has not finished")
def test_the_readme_follows_from_the_records():
    assert study_pages.readme_block() in (ROOT / "README.md").read_text(), "python -m experiments.study_pages"


def test_a_part_runs_from_the_commit_of_its_records(tmp_path):
    kept = {1: Record({"commit": "c0ffee"}, []), 2: Record({"commit": "c0ffee"}, [])}
    assert part_script.commit_of("tier1", kept, tmp_path) == "c0ffee"
    kept[3] = Record({"commit": "decaf"}, [])
    with pytest.raises(SystemExit, match="several commits: c0ffee, decaf"):
        part_script.commit_of("tier1", kept, tmp_path)


def test_every_part_begins_with_the_step_costs_of_another_part(tmp_path):
    parts = list(part_script.PARTS)
    costs = {part: part_script.PARTS[part].costs for part in parts}
    assert costs["tier2"] == "tier1"
    assert costs["tier2_larger"] == "tier2_growth"  # it has the costs of the arms that tier1 lacks
    assert set(costs.values()) <= set(parts)
    first, part = tmp_path / "tier1", tmp_path / "tier2"
    part_script.share_costs(part, first)
    assert not part.exists()
    first.mkdir()
    (first / "costs.json").write_text("first")
    part_script.share_costs(part, first)
    assert (part / "costs.json").read_text() == "first"
    (part / "costs.json").write_text("with added stages")
    part_script.share_costs(part, first)
    assert (part / "costs.json").read_text() == "with added stages"


def test_a_clone_has_the_recorded_commit_and_not_the_newest(tmp_path):
    root = tmp_path / "repository"
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a"]
    subprocess.run(["git", "init", "-q", root], check=True)
    for content in ("one", "two"):
        (root / "file").write_text(content)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", content], check=True)
        if content == "one":
            recorded = part_script.commit_of("tier1", {}, root)
    for _ in range(2):  # the second time, the clone exists
        code = part_script.clone(recorded, root, tmp_path / "runs")
        assert (code / "file").read_text() == "one"


def test_the_speedrun_page_follows_from_its_rules_and_records():
    assert (rules.HERE / "README.md").read_text() == rules.page(), "python -m experiments.speedrun --page"


def test_a_record_of_the_speedrun_needs_losses_significantly_below_the_target(monkeypatch):
    monkeypatch.setitem(rules.TRACKS, "tiny", rules.Track("here", "text", 5.0, 64))
    record = {"entry": "baseline", "track": "tiny", "date": "2026-01-02", "commit": "c0ffee"}
    low = [{"mlm_loss": loss, "seconds": 10.0} for loss in (4.90, 4.91, 4.92)]
    noisy = [{"mlm_loss": loss, "seconds": 10.0} for loss in (4.2, 5.0, 4.9)]
    assert "| 3 | 0.002 | yes |" in rules.row({**record, "runs": low})
    assert "| no |" in rules.row({**record, "runs": noisy})
    assert "| no |" in rules.row({**record, "runs": low[:2]})
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.ttest_1samp([4.90, 4.91, 4.92], 5.0).pvalue / 2
    assert rules.chance({**record, "runs": low}, 5.0) == pytest.approx(expected)
