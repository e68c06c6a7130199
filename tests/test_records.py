"""Records: finished runs as small files. A study continues from them without its run folders."""

import dataclasses
import json
import subprocess

import pytest

from bert_fast import BadInput
from bert_fast.compare import compare, records, results, runs, study
from bert_fast.compare.records import Record
from bert_fast.compare.study import Run, Study
from bert_fast.train import step_costs
from bert_fast.train.step_costs import Point, StepCosts

DEBUG = "bert:size=tiny,objective=mlm,norm=pre,debug"
CHANGES = {"eval.every": 0, "checkpoint.every": 0, "phases": "32:1"}
COSTS = StepCosts("measured", "a test", {"dense": (Point(1e3, 1e-3), Point(1e9, 1.0))})
ROWS = [{"step": 5, "split": "valid", "mlm_loss": 5.25}]


def small_study(**changes) -> Study:
    made = Study({"dense": {}, "shallow": {"model.depth": 1}}, DEBUG, CHANGES, (0, 1), ("tokens:1500",))
    return dataclasses.replace(made, **changes)


@pytest.fixture
def committed(monkeypatch):
    monkeypatch.setattr(records, "commit", lambda: "c0ffee")


def keeper(folder, out, data, made=None, costs=COSTS) -> records.Keeper:
    out.mkdir(exist_ok=True)
    keep = records.Keeper(folder, made or small_study(), out, data)
    if not (out / "costs.json").exists():
        step_costs.write(costs, out / "costs.json")
    return keep


def figures(seed: int) -> dict:
    return {"seed": seed, "mlm_loss": 5.0 + seed, "mask_loss": 5.5, "mlm_accuracy": 0.2, "tokens": 10, "flops": 1e3} | {
        "seconds": 2.0, "clock_seconds": 2.5, "overhead": 1.0
    }  # fmt: skip


@pytest.fixture
def trained(committed, monkeypatch, tmp_path, small_shards):
    """A folder with the record of one run. The run's own folder does not exist."""
    monkeypatch.setattr(results, "figures", lambda _, run, *__: figures(run.seed))
    monkeypatch.setattr(records, "read_rows", lambda _: ROWS)
    keep = keeper(tmp_path / "records", tmp_path / "first", small_shards)
    keep.begin(step_costs.read(tmp_path / "first" / "costs.json"))
    keep.add(Run("shallow", "tokens:1500", 1))
    return tmp_path / "records"


def test_a_record_holds_the_log_and_the_figures_and_what_the_run_was_made_with(trained, small_shards):
    run = Run("shallow", "tokens:1500", 1)
    assert (trained / "tokens=1500/shallow/seed=1.jsonl.gz").is_file()
    found = records.read_all(trained)
    assert list(found) == [run]
    about = found[run].figures
    assert (about["mlm_loss"], about["commit"], about["config"]) == (6.0, "c0ffee", DEBUG)
    assert about["changes"] == {"checkpoint.keep": 1, **CHANGES, "model.depth": 1}
    assert about["costs"] == COSTS.fingerprint()
    assert 2 < about["unigram_loss"] < 3  # nats; the word frequencies of this corpus are very uneven
    assert found[run].rows == ROWS


def test_a_study_continues_from_records_without_run_folders(trained, small_shards, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(records, "commit", lambda: "c0ffee")
    made = small_study()
    out = tmp_path / "second"
    out.mkdir()
    keep = records.Keeper(trained, made, out, small_shards)
    costs = step_costs.read(out / "costs.json")  # the table of step costs came with the records
    assert costs.fingerprint() == COSTS.fingerprint()
    kept = keep.begin(costs)
    planned = [runs.Planned(run, None, [(0, 0.0), (5, 60.0)], 2**20) for run in study.runs_of(made)]  # type: ignore[arg-type]
    text = runs.describe(planned, dataclasses.replace(made, arms={}), costs, 1, kept)
    assert "1 run finished before" in text
    assert "3 min 00 s of training" in text  # three of the four runs are left
    found = results.collect(made, out, small_shards, costs, kept)
    (shallow,) = found["budgets"]["tokens:1500"]["arms"]["shallow"]["runs"]
    assert shallow["mlm_loss"] == 6.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": DEBUG.replace("pre", "post")}, "has config"),
        ({"changes": CHANGES | {"learning_rate.peak": 0.5}}, "has changes"),
        ({"changes": CHANGES | {"eval.examples": 8}}, "has changes"),
    ],
)
def test_records_of_another_study_are_refused(trained, small_shards, tmp_path, changes, message):
    keep = keeper(trained, tmp_path / "first", small_shards, small_study(**changes))
    with pytest.raises(BadInput, match=f"seed=1.jsonl.gz {message}.*choose another --records"):
        keep.begin(COSTS)


def test_records_of_another_commit_are_refused(trained, small_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "commit", lambda: "decaf")
    with pytest.raises(BadInput, match="has commit 'c0ffee', this study 'decaf': run in a clone of c0ffee"):
        keeper(trained, tmp_path / "first", small_shards).begin(COSTS)


def test_study_with_added_stages_keeps_its_records_and_adds_their_step_costs(trained, small_shards, tmp_path):
    keep = keeper(trained, tmp_path / "out", small_shards)
    keep.begin(COSTS)
    added = dataclasses.replace(COSTS, curves={**COSTS.curves, "another stage": (Point(1e3, 2e-3),)})
    step_costs.write(added, tmp_path / "out" / "costs.json")
    assert len(keep.begin(added)) == 1
    assert step_costs.read(tmp_path / "records" / "costs.json") == added


def test_records_with_other_step_costs_are_refused(trained, small_shards, tmp_path):
    other = StepCosts("measured", "another machine", {"dense": (Point(1e3, 2e-3),)})
    (tmp_path / "third").mkdir()
    step_costs.write(other, tmp_path / "third" / "costs.json")
    with pytest.raises(BadInput, match=r"the step costs in .* differ: choose another --out"):
        keeper(trained, tmp_path / "third", small_shards)


def test_records_without_their_step_costs_are_refused(trained, small_shards, tmp_path):
    (trained / "costs.json").unlink()
    with pytest.raises(BadInput, match=r"has records, but costs\.json is missing"):
        keeper(trained, tmp_path / "third", small_shards)


@pytest.mark.parametrize("content", [b"not gzip", b""])
def test_damaged_records_are_refused(tmp_path, content):
    (tmp_path / "seed=0.jsonl.gz").write_bytes(content)
    with pytest.raises(BadInput, match=r"is not a run's record: .* Restore it, or delete it"):
        records.read_all(tmp_path)


def test_records_survive_writing_and_reading(tmp_path):
    record = Record({"arm": "a, b", "budget": "tokens:5", "seed": 3, "mlm_loss": 5.125}, ROWS)
    records.write(tmp_path, record)
    assert records.read_all(tmp_path) == {Run("a, b", "tokens:5", 3): record}


def test_code_with_uncommitted_changes_cannot_make_records(tmp_path, monkeypatch):
    (tmp_path / "bert_fast").mkdir()
    (tmp_path / "bert_fast" / "__init__.py").write_text("1\n")
    monkeypatch.setattr(records.bert_fast, "__file__", str(tmp_path / "bert_fast" / "__init__.py"))
    assert records.commit().startswith("bert_fast ")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    assert len(records.commit()) == 40
    (tmp_path / "bert_fast" / "__init__.py").write_text("2\n")
    with pytest.raises(BadInput, match=r"has changes .*__init__\.py"):
        records.commit()
    subprocess.run([*git, "commit", "-qam", "two"], check=True)
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries" / "mine.py").write_text("1\n")
    assert len(records.commit()) == 40
    with pytest.raises(BadInput, match=r"has changes .*entries"):
        records.commit("entries")


def test_record_without_the_scores_of_a_task_is_not_finished(trained, small_shards, tmp_path, monkeypatch, committed):
    begun = []
    made = small_study(tasks=("glue:task=mrpc",), task_data=str(tmp_path))
    monkeypatch.setattr(study, "load", lambda name: made)
    monkeypatch.setattr(runs, "make_costs", lambda *_, **__: COSTS)
    monkeypatch.setattr(runs, "plan", lambda *_: [])
    monkeypatch.setattr(runs, "describe", lambda planned, study, costs, at_once, kept: begun.append(kept) or "")
    compare("mine", str(tmp_path / "first"), str(small_shards), records_folder=str(trained), dry_run=True)
    made = small_study()
    compare("mine", str(tmp_path / "first"), str(small_shards), records_folder=str(trained), dry_run=True)
    assert [len(kept) for kept in begun] == [0, 1]


@pytest.mark.slow
def test_comparison_continues_from_records_alone(committed, small_shards, tmp_path):
    """All runs are recorded as they finish; a second comparison elsewhere runs nothing and has the same table."""
    path, kept = tmp_path / "mine.py", tmp_path / "records"
    made = small_study(seeds=(0,))
    path.write_text(
        "from bert_fast.compare.study import Study\n"
        "def get_study():\n"
        f"    return Study({dict(made.arms)}, {made.config!r}, {dict(made.changes)}, (0,), {made.budgets})\n"
    )
    first = compare(str(path), str(tmp_path / "a"), str(small_shards), records_folder=str(kept))
    assert not first["failed"]
    assert len(records.read_all(kept)) == 2
    second = compare(str(path), str(tmp_path / "b"), str(small_shards), records_folder=str(kept))
    assert not list((tmp_path / "b").rglob("metrics.jsonl"))
    losses = [
        {arm: about["mlm_loss"] for arm, about in json.loads((tmp_path / name / "results.json").read_text())["budgets"][
            "tokens:1500"
        ]["arms"].items()}
        for name in "ab"
    ]  # fmt: skip
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    assert not second["missing"]
    assert (tmp_path / "a" / "rows.jsonl.gz").read_bytes() == (tmp_path / "b" / "rows.jsonl.gz").read_bytes()
