"""Studies: bad input, statistics, and one whole comparison."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bert_fast import BadInput, methods
from bert_fast.compare import costs, page, results, runs, study
from bert_fast.compare.study import Run, Study
from bert_fast.data import sealed, shards
from bert_fast.planner import step_costs as made_costs
from bert_fast.train import budget, resume, step_costs, timeline
from bert_fast.train.step_costs import Point, StepCosts
from helpers.command_line import ROOT

DEBUG = "bert:size=tiny,objective=mlm,norm=pre,debug"
CHANGES = {"eval.every": 0, "checkpoint.every": 0, "phases": "32:1"}


def small_study(**changes) -> Study:
    made = Study({"dense": {}, "shallow": {"model.depth": 1}}, DEBUG, CHANGES, (0, 1), ("tokens:1500", "tokens:3000"))
    return dataclasses.replace(made, **changes)


def table_of(made: Study, data) -> StepCosts:
    """Step costs of a millisecond plus a nanosecond per FLOP, for every arm."""
    curve = (Point(1e3, 1e-3), Point(1e9, 1e-3 + 1.0))
    keys = {key for settings in costs.settings_of(made, data) for key in costs.keys_of(settings)}
    return StepCosts("measured", "a test", dict.fromkeys(keys, curve))


def test_runs_are_ordered_seed_by_seed():
    found = study.runs_of(small_study())
    assert [(one.seed, one.budget, one.arm) for one in found[:3]] == [
        (0, "tokens:1500", "dense"),
        (0, "tokens:1500", "shallow"),
        (0, "tokens:3000", "dense"),
    ]
    assert len({one.folder for one in found}) == 8
    assert Run("a, b + c", "usd:2@v5e", 3).folder.as_posix() == "runs/usd=2@v5e/a-b-+-c/seed=3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "has no arms"),
        ({"seeds": ()}, "has no seeds"),
        ({"seeds": (1, 1)}, "one of its seeds twice: 1, 1"),
        ({"budgets": ("token:1",)}, "did you mean tokens"),
        ({"rounds": 0}, "times each program 0 times: expected rounds of at least 1"),
        ({"arms": {"a b": {}, "a-b": {}}}, "would share the folder 'a-b'"),
        ({"changes": {"seed": 3}}, "changes seed, which the comparison sets itself"),
        ({"arms": {"dense": {"budget": "tokens:1"}}}, "changes budget, which the comparison sets itself"),
    ],
)
def test_bad_studies_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        study.check(small_study(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_study(:", "is not a Python file"),
        ("x = 1", "does not define get_study"),
        ("def get_study(): return {}", "returned a dict: expected bert_fast.compare.study.Study"),
        ("from bert_fast.compare.study import Study\ndef get_study(): return Study(arm={})", "cannot be read: .*'arm'"),
    ],
)
def test_bad_study_files_are_refused(text, message, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(BadInput, match=message):
        study.load(str(tmp_path / "mine.py"))


def test_unknown_studies_suggest_the_nearest():
    with pytest.raises(BadInput, match="did you mean smoke"):
        study.load("smok")
    with pytest.raises(BadInput, match="no study file"):
        study.load("absent.py")


SHIPPED = sorted(path.stem for path in study.SHIPPED.glob("[!_]*.py"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_arm_of_a_shipped_study_is_comparable_and_can_be_planned(name, small_shards, monkeypatch):
    made = study.load(name)
    study.refuse_incomparable(made, small_shards)
    for arm in made.arms:
        settings = study.settings_of(made, Run(arm, "", 0), small_shards, None)
        settings = budget.with_steps(settings, 200_000)
        method = methods.make(settings.methods)
        stages = timeline.stages(settings, method)
        # A table as `costs` makes it, with a nanosecond per FLOP.
        curves: dict = {}
        for timed in made_costs.programs_of(settings, method):
            curves.setdefault(timed.key, set()).add(Point(timed.flops, 1e-9 * timed.flops))
        table = StepCosts("measured", "here", {key: tuple(sorted(curve)) for key, curve in curves.items()})
        assert set(table.curves) == set(costs.keys_of(settings))
        meter = runs.reference(settings, table)
        monkeypatch.setattr(budget, "DRAWS", 50)
        assert meter.of_all(stages) > 0


def test_a_step_cost_is_the_mean_of_the_fastest_fifth_of_the_rounds():
    assert made_costs.unhindered([9.0, 2.0, 8.0, 9.0, 8.0, 1.0, 9.0, 9.0, 8.0, 7.0]) == 1.5
    assert made_costs.unhindered([3.0, 2.0]) == 2.0


def test_costs_in_the_wrong_order_get_their_mean_only_if_noise_explains_the_order(capsys):
    ascending = (Point(1.0, 2.0), Point(2.0, 3.0))
    assert made_costs.pooled("a", ascending) == ascending
    mean = pytest.approx(2.09)
    assert made_costs.pooled("b", (Point(1.0, 2.18), Point(2.0, 2.0), Point(3.0, 9.0))) == (
        Point(1.0, mean), Point(2.0, mean), Point(3.0, 9.0),
    )  # fmt: skip
    too_far = (Point(1.0, 2.22), Point(2.0, 2.0))
    assert made_costs.pooled("c", too_far) == too_far
    assert capsys.readouterr().err.count("replaced by their mean") == 1


def test_ctrl_c_while_step_costs_are_made_shows_no_traceback(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(costs, "make", stop)
    assert costs.main(["smoke", "out", "shards"]) == 130


def test_costs_in_the_wrong_order_are_measured_three_times_and_for_45_rounds():
    assert [made_costs.attempts(rounds) for rounds in (1, 3, 15, 60)] == [45, 15, 3, 3]


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"eval.seq_len": 16}, r"different examples from arm 'dense' \(eval.seq_len: 16, not 32\)"),
        ({"eval.masked_share": 0.3}, "eval.masked_share: 0.3, not 0.15"),
        ({"data.objective": "mlm_packed"}, "data.objective: 'mlm_packed', not 'mlm'"),
        ({"model.depht": 2}, "arm 'other': unknown config key 'model.depht'"),
        ({"methods": "layer_dorp"}, "arm 'other': .*did you mean layer_drop"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(arm, message, small_shards):
    with pytest.raises(BadInput, match=message):
        study.refuse_incomparable(small_study(arms={"dense": {}, "other": arm}), small_shards)


def test_arms_that_train_on_different_masks_can_be_compared(small_shards):
    arm = {"data.masked_share": 0.3, "data.whole_word": True, "data.random_positions": True}
    study.refuse_incomparable(small_study(arms={"dense": {}, "other": arm}), small_shards)


def test_paired_statistics_equal_those_of_scipys_paired_test():
    scipy_stats = pytest.importorskip("scipy.stats")
    dense, arm = {0: 5.0, 1: 5.2, 2: 5.1}, {0: 4.9, 1: 5.0, 2: 5.05, 7: 1.0}
    found = results.paired(arm, dense)
    assert found["difference"] == pytest.approx(np.mean([-0.1, -0.2, -0.05]))
    theirs = scipy_stats.ttest_rel([4.9, 5.0, 5.05], [5.0, 5.2, 5.1])
    assert found["t"] == pytest.approx(theirs.statistic)
    ends = found["difference"] - found["half_width"], found["difference"] + found["half_width"]
    assert ends == pytest.approx(tuple(theirs.confidence_interval(results.CONFIDENCE)))
    assert not found["resolved"]  # |t| is 2.6: above the floor of 2.5, but below the critical value of 4.3
    assert results.paired({0: 4.9, 1: 5.11, 2: 5.005}, dense)["resolved"]
    unknown = {"difference": -1.0, "t": None, "half_width": None, "resolved": False}
    assert results.paired({0: 1.0}, {0: 2.0}) == unknown
    assert results.paired({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0}) == unknown
    assert results.paired({3: 1.0}, {0: 2.0})["difference"] is None


def test_a_mean_difference_of_zero_has_an_interval():
    found = results.paired({0: 5.5, 1: 4.5}, {0: 5.0, 1: 5.0})
    assert (found["difference"], found["t"]) == (0.0, 0.0)
    assert page.difference({**found, "runs": [0, 1]}, is_first=False) == "+0.000 [-6.353, +6.353] (unresolved)"


def test_equivalent_is_the_amount_that_the_reference_needs_for_the_same_loss():
    curve = [(100.0, 6.0), (400.0, 5.0)]
    assert results.equivalent(5.5, curve) == pytest.approx(200.0)
    assert results.equivalent(5.0, curve) == pytest.approx(400.0)
    assert results.equivalent(4.9, curve) is None
    assert results.equivalent(5.5, curve[:1]) is None
    assert results.equivalent(6.92, [(10.0, 6.9), (20.0, 6.95)]) is None  # the larger budget has a higher loss


def test_critical_values_come_from_the_t_distribution():
    assert [round(results.critical(seeds), 2) for seeds in (2, 3, 5, 100)] == [12.71, 4.30, 2.78, 2.5]


def figure(seed: int, loss: float, tokens: float, flops: float, seconds: float) -> dict:
    about = {"seed": seed, "mlm_loss": loss, "mask_loss": loss, "mlm_accuracy": 0.2, "tokens": tokens, "flops": flops}
    return about | {"seconds": seconds, "clock_seconds": seconds, "overhead": 1.0}


def made_results() -> dict:
    """Results of a dense and a shallow arm. Per token, the shallow arm needs half of the dense arm's FLOPs and three
    quarters of its seconds. Its loss is about 0.1 lower.
    """
    made = small_study(tasks=("glue:task=mrpc",))
    found = {}
    for seed in made.seeds:
        for text, tokens, loss in (("tokens:1500", 1500, 6.0), ("tokens:3000", 3000, 5.0)):
            found[Run("dense", text, seed)] = figure(seed, loss + 0.01 * seed, tokens, 2 * tokens, 4 * tokens)
            found[Run("shallow", text, seed)] = figure(seed, loss + 0.02 * seed - 0.1, tokens, tokens, 3 * tokens)
    found[Run("shallow", "tokens:1500", 0)]["scores"] = {"glue:task=mrpc": 80.0}
    return {
        "arms": dict(made.arms),
        "config": made.config,
        "changes": dict(made.changes),
        "seeds": [0, 1],
        "tasks": list(made.tasks),
        "costs": {"instrument": "measured", "machine": "a test", "fingerprint": "f"},
        "missing": [],
        "budgets": results.summarize(made, found),
    }


def test_summary_has_differences_realised_savings_and_speedups():
    arms = made_results()["budgets"]["tokens:1500"]["arms"]
    shallow = arms["shallow"]
    assert shallow["difference"] == pytest.approx(-0.095)
    assert shallow["resolved"]  # t is -19
    assert (shallow["flops_per_token"], shallow["seconds_per_token"]) == pytest.approx((0.5, 0.75))
    assert shallow["realised"] == pytest.approx(0.5)
    # The dense arm has a mean loss of 6.005 nats with the first budget and of 5.005 with the second. With the first
    # budget, the shallow arm is 0.095 below the dense arm.
    assert shallow["speedup"]["tokens"] == pytest.approx(2**0.095)
    assert shallow["speedup"]["flops"] == pytest.approx(2 * 2**0.095)
    assert shallow["speedup"]["seconds"] == pytest.approx(2**0.095 * 4 / 3)
    assert arms["dense"]["speedup"]["seconds"] == pytest.approx(1)
    later = made_results()["budgets"]["tokens:3000"]
    assert later["arms"]["shallow"]["speedup"]["tokens"] is None  # no dense run reaches this loss
    assert later["ranking"]["loss"] == ["shallow", "dense"]


def test_page_shows_each_budget_and_the_changes_of_each_arm():
    text = page.markdown(made_results(), "mine")
    assert "## Budget tokens:1500" in text
    assert "| arm | seeds | loss | minus dense | tokens | FLOPs | seconds | glue:task=mrpc |" in text
    # The differences are -0.1 and -0.09. The 95 % interval extends by 12.7 standard errors to each side.
    assert "| shallow | 2 | 5.910 ± 0.014 | -0.095 [-0.159, -0.031] | 1,500 | 1.5e+03 | 4500.0 | 80.0 |" in text
    assert "| shallow | 0.50 | 0.75 | 50% |" in text  # savings
    assert "| shallow | 5.910 | 20.0% | -19.0 |" in text  # other figures
    assert "Ranking by final loss: shallow, dense." in text
    assert max(line.count("|") for line in text.splitlines()) <= 9
    assert "- shallow: `model.depth=1`" in text


def test_one_seed_ranks_nothing():
    made = small_study(seeds=(0,))
    found = {
        Run(arm, text, 0): figure(0, loss, 1500, 3000, 6000)
        for arm, loss in (("dense", 6.0), ("shallow", 5.9))
        for text in made.budgets
    }
    summary = results.summarize(made, found)
    assert summary["tokens:1500"]["ranking"] == {"loss": [], "tokens": [], "flops": [], "seconds": []}
    text = page.markdown({**made_results(), "seeds": [0], "budgets": summary}, "mine")
    assert "Ranking" not in text
    assert "One seed cannot rank the arms" in text
    assert text.index("| dense | 1 |") < text.index("| shallow | 1 | 5.900 | -0.100 (one seed) |")


def test_costs_of_arms_added_later_are_scaled_to_the_first_measurement():
    known = StepCosts("measured", "here", {"dense": (Point(10, 1.0),)})
    new = StepCosts("measured", "here", {"dense": (Point(10, 2.0),), "other": (Point(5, 1.0), Point(9, 1.6))})
    found = costs.joined(known, new, ["dense"])
    assert found.curves == {"dense": (Point(10, 1.0),), "other": (Point(5, 0.5), Point(9, 0.8))}


def test_arms_with_different_arguments_of_a_method_have_separate_curves(small_shards):
    arms = {"a": {"methods": "layer_drop"}, "b": {"methods": "layer_drop", "layer_drop.theta": 0.8}}
    first, second = map(costs.keys_of, costs.settings_of(small_study(arms=arms), small_shards))
    assert not set(first) & set(second)
    assert costs.keys_of(
        costs.settings_of(small_study(changes=CHANGES | {"model.init_std": 0.1}), small_shards)[0]
    ) == (costs.keys_of(costs.settings_of(small_study(), small_shards)[0]))


def test_finished_runs_of_another_config_are_refused(small_shards, tmp_path):
    made = small_study()
    one = study.runs_of(made)[0]
    folder = tmp_path / one.folder
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    config = study.config_of(made, one, small_shards, tmp_path / "costs.json").to_dict()
    resume.settle_activation(folder, config)  # as the run does
    (folder / "config.json").write_text(json.dumps(config))
    runs.refuse_other(made, one, tmp_path, small_shards)
    moved = shutil.copytree(small_shards, tmp_path / "moved")
    runs.refuse_other(made, one, tmp_path, moved)
    other = small_study(changes=CHANGES | {"learning_rate.peak": 0.5})
    with pytest.raises(BadInput, match=r"learning_rate.peak: .* there, 0.5 now"):
        runs.refuse_other(other, one, tmp_path, small_shards)


def test_tasks_need_data(tmp_path):
    with pytest.raises(BadInput, match="task 'glue:task=mrpc' needs data"):
        study.check(small_study(tasks=("glue:task=mrpc",)))
    study.check(small_study(tasks=("glue:task=mrpc",), task_data=str(tmp_path)))


def test_runs_evaluated_on_different_examples_are_not_put_into_one_table(small_shards, tmp_path, monkeypatch):
    prints = iter("ab" * 4)
    monkeypatch.setattr(results, "figures", lambda *_: {**figure(0, 5.0, 1, 1, 1), "fingerprint": next(prints)})
    with pytest.raises(BadInput, match="were evaluated on different examples"):
        results.collect(small_study(), tmp_path, small_shards, StepCosts("measured", "here", {}))


def test_plan_says_what_runs_and_for_how_long(small_shards, tmp_path):
    made = small_study()
    step_costs.write(table_of(made, small_shards), tmp_path / "costs.json")
    planned = runs.plan(made, tmp_path, small_shards, step_costs.read(tmp_path / "costs.json"))
    assert [one.steps for one in planned[:2]] == [5, 5]  # steps of 8 x 32 tokens
    text = runs.describe(planned, made, step_costs.read(tmp_path / "costs.json"), 2)
    assert "2 arms x 2 seeds x 2 budgets: 8 runs" in text
    assert "shallow: tokens:1500: 5 steps" in text
    with pytest.raises(BadInput, match=r"arm 'dense': --config\.budget=tokens:9 does not allow"):
        runs.plan(small_study(budgets=("tokens:9",)), tmp_path, small_shards, planned[0].settings.costs)


def test_making_step_costs_shows_progress_and_mentions_dry_runs(small_shards, tmp_path, monkeypatch, capsys):
    made = small_study()
    step_costs.write(table_of(made, small_shards), tmp_path / "ready.json")
    code = "import shutil, sys; print('[1/2] compiling', flush=True); shutil.copy(*sys.argv[1:]); print('timing')"
    files = [str(tmp_path / "ready.json"), str(tmp_path / "costs.json")]
    start = runs.start
    monkeypatch.setattr(runs, "start", lambda _, log, core: start([sys.executable, "-c", code, *files], log, core))
    found = runs.make_costs("mine", made, tmp_path, small_shards, one_core=False)
    assert found.curves
    said = capsys.readouterr().err
    assert "step costs of 2 arms: measuring them on this machine takes a few minutes" in said
    assert "a dry run makes them too" in said
    assert said.endswith("  [1/2] compiling\n  timing\n")
    runs.make_costs("mine", made, tmp_path, small_shards, one_core=False)
    assert capsys.readouterr().err == ""
    (tmp_path / "costs.json").unlink()
    code = "import sys; sys.exit('error: no device')"
    with pytest.raises(BadInput, match="the step costs cannot be made: error: no device"):
        runs.make_costs("mine", made, tmp_path, small_shards, one_core=False)
    assert "no device" not in capsys.readouterr().err


def compare(folder, data, name, *flags) -> subprocess.Popen:
    command = [sys.executable, "-m", "bert_fast", "compare", str(name), f"--out={folder}", f"--data={data}", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


STUDY = """
from bert_fast.compare.study import Study
def get_study():
    return Study({arms}, {config!r}, {changes!r}, (0, 1), ("tokens:5000", "tokens:10000"))
"""


@pytest.mark.slow
def test_comparison_is_interrupted_continued_and_extended(small_shards, tmp_path):
    out, path = tmp_path / "out", tmp_path / "mine.py"
    arms = {"dense": {}, "tokens": {"methods": "token_drop"}}
    path.write_text(STUDY.format(arms=arms, config=DEBUG, changes=CHANGES))
    out.mkdir()
    more = arms | {"shallow": {"model.depth": 1}, "diverging": {"learning_rate.peak": 1e30}}
    step_costs.write(table_of(small_study(arms=more), small_shards), out / "costs.json")

    child = compare(out, small_shards, path, "--processes=2")
    deadline = time.monotonic() + 120
    while not any((out / "runs").rglob("config.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGHUP)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 128 + signal.SIGHUP, said
    assert "To continue:" in said

    child = compare(out, small_shards, path, "--processes=2")
    done, said = child.communicate()
    assert child.returncode == 0, said
    assert "| tokens |" in done
    assert f"report {out}\n" in said
    found = json.loads((out / "results.json").read_text())
    assert not found["missing"]
    first = {name: about["mlm_loss"] for name, about in found["budgets"]["tokens:5000"]["arms"].items()}
    (row,) = {one["fingerprint"] for arm in found["budgets"]["tokens:5000"]["arms"].values() for one in arm["runs"]}
    assert row

    path.write_text(STUDY.format(arms=more, config=DEBUG, changes=CHANGES))
    child = compare(out, small_shards, path, "--processes=2")
    _, said = child.communicate()
    assert child.returncode == 1, said
    assert "failed: diverging" in said
    found = json.loads((out / "results.json").read_text())
    assert {run["arm"] for run in found["missing"]} == {"diverging"}
    again = found["budgets"]["tokens:5000"]["arms"]
    assert {name: again[name]["mlm_loss"] for name in first} == first
    assert "shallow" in again


def test_a_study_continues_with_its_shards_after_its_source_has_changed(small_shards, tmp_path, monkeypatch):
    manifest = shards.read_manifest(small_shards)
    made = small_study(source="docs", vocab_size=300)
    (tmp_path / "shards").mkdir()

    def write(**settings):
        known = {"source": "docs", "source_identity": "as it was", "vocab": "trained, 300"}
        sealed.write(tmp_path / "shards" / "manifest.json", {**manifest, "settings": known | settings})

    write()
    monkeypatch.setattr(runs, "prepare", lambda *_, **__: pytest.fail("prepares again"))
    assert runs.shards_of(made, tmp_path, "") == tmp_path / "shards"
    for settings in ({"source": "files:*.txt"}, {"vocab": "trained, 400"}):
        write(**settings)
        with pytest.raises(BadInput, match="choose another --out"):
            runs.shards_of(made, tmp_path, "")
