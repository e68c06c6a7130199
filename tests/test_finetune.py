"""Fine-tuning: what a call writes, compiles and refuses."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from bert_fast import Interrupted
from bert_fast.tasks import batches, finetune, glue, sweep
from bert_fast.train import checkpoint
from bert_fast.train.signals import StopSignal
from helpers.command_line import bert_fast
from helpers.made_tasks import make_settings, make_trainer, train, write_checkpoint, write_glue

SMALL = {
    "data.seq_len": 48, "batch_size": 8, "epochs": 3.0, "widths": 2, "dropout": 0.0, "eval.batch_size": 16,
    "learning_rates": "3e-3", "seeds": "0,1",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"), ("mrpc", "stsb", "cola"), train=150, dev=40)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), pooler=True)


def finetune_command(folder, run_folder, workdir, *more):
    values = [f"--config.{key}={value}" for key, value in SMALL.items()]
    return bert_fast(
        "finetune",
        "--config=configs/glue.py:task=mrpc",
        f"--checkpoint={run_folder}",
        f"--workdir={workdir}",
        f"--config.data.dir={folder}",
        *values,
        *more,
    )


@pytest.fixture(scope="module")
def finished(folder, run_folder):
    done = finetune_command(folder, run_folder, run_folder / "mrpc")
    assert done.returncode == 0, done.stderr
    return run_folder / "mrpc", done


def read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text())


def test_a_call_learns_and_reports_its_scores(finished):
    workdir, done = finished
    results = read(workdir / "results.json")
    runs = results["tasks"]["mrpc"]["runs"]
    assert [(run["seed"], run["learning_rate"]) for run in runs] == [(0, 3e-3), (1, 3e-3)]
    assert [row["epoch"] for row in runs[0]["curve"]] == [1, 2, 3]
    assert runs[0]["curve"][-1]["train_loss"] < runs[0]["curve"][0]["train_loss"]
    assert max(run["best"]["accuracy"] for run in runs) > 90
    assert runs[0]["last"] == runs[0]["curve"][-1]
    assert runs[0]["best"]["score"] == max(row["score"] for row in runs[0]["curve"])
    assert "mrpc" in done.stdout
    assert "learning rate 0.003; widths " in done.stderr
    assert "no trained pooler" not in done.stderr, done.stderr


def test_written_predictions_are_the_predictions_that_were_scored(finished, folder):
    workdir, _ = finished
    run = workdir / "mrpc/lr=0.003,seed=0"
    labels = glue.read("mrpc", str(folder))["dev"].labels
    lines = (run / "dev/MRPC.tsv").read_text().splitlines()[1:]
    right = np.mean([int(line.split("\t")[1]) == label for line, label in zip(lines, labels, strict=True)])
    assert 100 * right == pytest.approx(read(run / "result.json")["last"]["accuracy"])
    best = max(read(workdir / "results.json")["tasks"]["mrpc"]["runs"], key=lambda run: run["last"]["score"])
    test = workdir / f"mrpc/lr=0.003,seed={best['seed']}/test/MRPC.tsv"
    assert (workdir / "submission/MRPC.tsv").read_bytes() == test.read_bytes()
    assert len(test.read_text().splitlines()) == 11


def test_finished_runs_are_kept_and_another_config_is_refused(finished, folder, run_folder):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("mrpc/*/result.json")}
    done = finetune_command(folder, run_folder, workdir)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 2 already finished" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in workdir.glob("mrpc/*/result.json")}
    done = finetune_command(folder, run_folder, workdir, "--config.epochs=2.0")
    assert (done.returncode, "epochs: 3.0 there, 2.0 now" in done.stderr) == (2, True)


@pytest.fixture(scope="module")
def trainer(folder, tmp_path_factory):
    """A trainer for MRPC, with two widths and some dropout."""
    return make_trainer(tmp_path_factory.mktemp("encoder"), folder, dropout=0.1)


def compiled(trainer) -> int:
    return len(trainer.programs.compiled) + trainer.predict._cache_size()


def test_first_epoch_compiles_every_program_for_all_seeds_and_learning_rates(trainer, tmp_path):
    counts = []
    first = train(trainer, tmp_path / "first", seen=lambda step, numbers: counts.append(compiled(trainer)))
    lengths = trainer.task.train.lengths_N
    used = {batch.width for batch in batches.epoch(lengths, trainer.widths, 8, None)}
    assert len(used) == len(trainer.widths) == 2
    assert counts[trainer.per_epoch - 1] == counts[-1] == len(used) + 2  # 2: prediction, at both widths
    after_tests = compiled(trainer)  # the test examples are predicted last
    again = train(trainer, tmp_path / "again")
    other = train(trainer, tmp_path / "other", rate=1e-3, seed=1)
    assert compiled(trainer) == after_tests
    assert not trainer.programs.coming
    assert again.result["curve"] == first.result["curve"]
    np.testing.assert_array_equal(again.logits["dev"], first.logits["dev"])
    assert other.result["curve"] != first.result["curve"]


def test_interrupted_call_keeps_finished_runs_and_resumes(trainer, folder, run_folder, tmp_path, monkeypatch):
    calls = []

    def one(trainer, rate, seed, folder, stop, progress):
        calls.append(seed)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            raise Interrupted(stop.signum(1), "finished runs are kept")
        row = {"score": 50.0 + seed, "step": 1, "epoch": 1.0}
        rows = trainer.task.held_out | trainer.task.test
        result = {"task": "mrpc", "learning_rate": rate, "seed": seed, "diverged_at": None, "last": row, "best": row}
        return finetune.Finished(result, {split: np.zeros((len(r.ids_N), 2)) for split, r in rows.items()})

    monkeypatch.setattr(sweep, "train_and_score", one)
    made, config = make_settings(folder, seeds="0,1,2")
    with pytest.raises(Interrupted):
        sweep.finetune(made, config, tmp_path / "out", str(run_folder))
    assert [path.parent.name for path in (tmp_path / "out").glob("mrpc/*/*.json")] == ["lr=0.003,seed=0"]
    results = sweep.finetune(made, config, tmp_path / "out", str(run_folder))
    assert calls == [0, 1, 1, 2]
    score = results["tasks"]["mrpc"]["last"]["score"]
    assert score == {"mean": 51.0, "deviation": 1.0, "median": 51.0}


def test_signal_ends_a_run_after_the_current_step_is_saved(trainer, tmp_path):
    steps = []

    def seen(step, numbers):
        steps.append(step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with StopSignal() as stop, pytest.raises(Interrupted, match="step 3 of this run is saved; finished runs are kept"):
        train(trainer, tmp_path, stop=stop, seen=seen)
    assert steps == [1, 2]
    assert checkpoint.steps(tmp_path / finetune.UNDER_WAY / "checkpoints") == [3]


def test_all_tasks_of_a_folder_are_done_in_one_call(tmp_path):
    made, config = make_settings(write_glue(tmp_path / "glue", ("rte", "wnli"), 16, 8), "all", epochs=1.0, seeds="0")
    results = sweep.finetune(made, config, tmp_path / "out", str(write_checkpoint(tmp_path, pooler=True)))
    assert list(results["tasks"]) == ["rte", "wnli"]
    assert sorted(path.name for path in (tmp_path / "out/submission").iterdir()) == ["RTE.tsv", "WNLI.tsv"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.data.seq_len=200"], "above the model's 64 positions"),
        (["--config.data.dir=/nowhere"], "no such folder"),
        (["--checkpoint=/nowhere"], "no checkpoint in /nowhere"),
        (["--hf=/nowhere"], "give either --checkpoint"),
        (["--config.task=rte"], "holds no RTE/train.tsv"),
    ],
)
def test_bad_flags_are_reported_and_leave_no_folder(folder, run_folder, tmp_path, more, message):
    done = finetune_command(folder, run_folder, tmp_path / "out", *more)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_bad_data_file_leaves_no_folder(folder, run_folder, tmp_path):
    write_glue(tmp_path / "glue", ("mrpc",))
    path = tmp_path / "glue/MRPC/train.tsv"
    path.write_text(path.read_text().replace("Quality", "quality"))
    done = finetune_command(tmp_path / "glue", run_folder, tmp_path / "out")
    assert (done.returncode, "no column 'Quality'" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_diverged_run_is_marked_and_scored_with_logits_of_zero(trainer, tmp_path):
    done = train(trainer, tmp_path, rate=1e30)
    result, rows = done.result, trainer.task.held_out | trainer.task.test
    assert 0 < result["diverged_at"] == result["steps"] < trainer.steps
    assert done.logits.keys() == rows.keys()
    for split, logits in done.logits.items():
        np.testing.assert_array_equal(logits, np.zeros((len(rows[split].ids_N), 2)))
    nothing = trainer.task.score({split: done.logits[split] for split in trainer.task.held_out})
    assert {key: result["last"][key] for key in nothing} == nothing
    assert result["last"]["train_loss"] is None
    assert result["curve"][-1] == result["last"]
    assert not (tmp_path / "checkpoints").exists()
    json.dumps(result, allow_nan=False)


def test_a_run_with_broken_weights_after_its_last_step_has_diverged(folder, tmp_path):
    # No later loss would show the damage, so the weights themselves are checked.
    trainer = make_trainer(tmp_path, folder, epochs=1 / 19, learning_rate__warmup=0.0, optimizer__clip_norm=0.0)
    assert trainer.steps == 1
    done = train(trainer, tmp_path / "run", rate=3e38)
    assert done.result["diverged_at"] == 1
    assert not any(logits.any() for logits in done.logits.values())
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.slow
def test_eight_devices_give_the_same_results_as_one():
    script = pathlib.Path(__file__).parent / "helpers" / "finetune_devices.py"
    env = {**os.environ, "PYTHONPATH": f"{script.parents[2]}:{script.parents[1]}"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    one, eight = json.loads(done.stdout)
    assert [row["score"] for row in one] == [row["score"] for row in eight]
    np.testing.assert_allclose([row["train_loss"] for row in one], [row["train_loss"] for row in eight], rtol=1e-4)
