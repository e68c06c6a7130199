"""Fine-tuning runs: stopping and resuming, the weights that a run keeps, and micro-batches."""

import dataclasses
import json
import pathlib
import signal

import jax
import numpy as np
import pytest

from bert_fast import BadInput, Interrupted, encoder
from bert_fast.data import files
from bert_fast.tasks import data, finetune, sweep
from bert_fast.tasks.trainer import Trainer
from bert_fast.train import checkpoint, engine
from bert_fast.train.counters import CLOCKS
from bert_fast.train.signals import StopSignal
from helpers.made_tasks import make_encoder, make_settings, write_checkpoint, write_glue

RATE = 3e-3
PER_EPOCH = 8  # 60 examples in batches of 8; half of the last batch is padding
# name: (recipe, changes to it). EarlyBERT's search takes 6 steps, and its training 16 more.
RECIPES = {
    "bert": ("bert", {"dropout": 0.1}),
    "early_bert": (
        "early_bert",
        {"early_bert__search": 6.0, "early_bert__head_ratio": 0.5, "early_bert__draw_before_update": False},
    ),
}
SEARCH = 6


@pytest.fixture(scope="module")
def glue_folder(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"), ("mrpc",), train=60, dev=20, test=6)


def make_trainer(glue_folder, folder, recipe="bert", **changes) -> Trainer:
    """A trainer for MRPC, with two batch widths and an evaluation every third step."""
    small = {"batch_size": 8, "eval__every": 3, "learning_rates": f"{RATE}"}
    made, _ = make_settings(glue_folder, recipe=recipe, **{**small, **changes})
    start = make_encoder(folder)
    return Trainer(data.make("mrpc", data.read("mrpc", made), start.vocab, made), start, made)


@pytest.fixture(scope="module")
def trainers(glue_folder, tmp_path_factory):
    """A trainer for each recipe."""
    folder = tmp_path_factory.mktemp("encoder")
    return {name: make_trainer(glue_folder, folder, recipe, **more) for name, (recipe, more) in RECIPES.items()}


def train(trainer, folder, stop=None, seen=lambda step, numbers: None) -> finetune.Finished:
    return finetune.train_and_score(trainer, RATE, 0, folder, stop or StopSignal(), seen)


@pytest.fixture(scope="module")
def whole(trainers, tmp_path_factory):
    """For each recipe, a run that is never stopped, and its folder."""
    folders = {name: tmp_path_factory.mktemp("whole") / name for name in trainers}
    return {name: (train(trainer, folders[name]), folders[name]) for name, trainer in trainers.items()}


def stopped(trainer, folder: pathlib.Path, at_step: int):
    """Trains until SIGTERM arrives during step `at_step`."""
    train_step = engine.Engine.train_step

    def stopping(self):
        if self.step == at_step - 1:
            signal.raise_signal(signal.SIGTERM)
        train_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Engine, "train_step", stopping)
        message = f"step {at_step} of this run is saved"
        with StopSignal() as stop, pytest.raises(Interrupted, match=message) as interrupted:
            train(trainer, folder, stop)
    assert interrupted.value.exit_code == 143


def without_clock(result: dict) -> dict:
    stages = [{key: value for key, value in stage.items() if key != "seconds"} for stage in result["stages"]]
    return {key: value for key, value in result.items() if key not in CLOCKS} | {"stages": stages}


def same_run(one: finetune.Finished, other: finetune.Finished):
    """Asserts that everything but the seconds is equal, to the last bit."""
    assert without_clock(one.result) == without_clock(other.result)
    assert one.logits.keys() == other.logits.keys()
    for split, logits in one.logits.items():
        np.testing.assert_array_equal(logits, other.logits[split])


def kept_params(folder: pathlib.Path):
    (step,) = checkpoint.steps(folder / "checkpoints")
    return checkpoint.restore_params(folder / f"checkpoints/{step}")


def test_unstopped_runs_have_the_steps_that_other_tests_assume(whole):
    for name, (done, folder) in whole.items():
        steps = 2 * PER_EPOCH + (SEARCH if name == "early_bert" else 0)
        assert done.result["steps"] == steps
        # An evaluation after every third step of the training, and after the last step.
        assert [row["step"] for row in done.result["curve"]] == [3, 6, 9, 12, 15, 16]
        assert len({row["train_loss"] for row in done.result["curve"]}) == 6
        assert done.result["examples"] < 8 * steps
        assert done.result["flops"] > 0
        assert done.result["compile_seconds"] > 0
        assert checkpoint.steps(folder / "checkpoints") == [steps]


# BERT: one stop (between two evaluations, at an evaluation, at the end of an epoch, one step before the end of the run,
# or at the end of the run), or three stops. EarlyBERT: one stop (within the search, at the end of the search, after the
# first step of the slim model, or at an evaluation), or two stops.
@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("bert", (4,)),
        ("bert", (6,)),
        ("bert", (8,)),
        ("bert", (15,)),
        ("bert", (16,)),
        ("bert", (2, 9, 10)),
        ("early_bert", (3,)),
        ("early_bert", (SEARCH,)),
        ("early_bert", (SEARCH + 1,)),
        ("early_bert", (SEARCH + 3,)),
        ("early_bert", (2, SEARCH + 5)),
    ],
)
def test_resumed_run_ends_like_an_unstopped_one(trainers, whole, tmp_path, name, stops):
    trainer, (expected, folder) = trainers[name], whole[name]
    for at_step in stops:
        stopped(trainer, tmp_path, at_step)
        assert checkpoint.steps(tmp_path / finetune.UNDER_WAY / "checkpoints") == [at_step]
    steps = []
    found = train(trainer, tmp_path, seen=lambda step, numbers: steps.append(step))
    assert steps == list(range(stops[-1] + 1, expected.result["steps"] + 1))
    same_run(found, expected)
    jax.tree.map(np.testing.assert_array_equal, kept_params(tmp_path), kept_params(folder))


def test_killed_run_resumes_from_its_last_checkpoint(glue_folder, whole, trainers, tmp_path):
    class Killed(Exception):
        pass

    def kill(step, numbers):
        if step == 11:
            raise Killed

    trainer = make_trainer(glue_folder, tmp_path, dropout=0.1, checkpoint__every=4)
    with pytest.raises(Killed):
        train(trainer, tmp_path / "run", seen=kill)
    assert checkpoint.steps(tmp_path / "run" / finetune.UNDER_WAY / "checkpoints") == [8]
    steps = []
    found = train(trainer, tmp_path / "run", seen=lambda step, numbers: steps.append(step))
    assert steps[0] == 9
    same_run(found, whole["bert"][0])


def test_resumed_call_has_the_results_of_an_unstopped_one(glue_folder, tmp_path):
    start = write_checkpoint(tmp_path, pooler=True)
    made, config = make_settings(glue_folder, seeds="0,1", batch_size=8, dropout=0.1, eval__every=3)
    expected = sweep.finetune(made, config, tmp_path / "whole", str(start))
    train_step, taken = engine.Engine.train_step, []

    def stopping(self):
        taken.append(self.step)
        if len(taken) == 2 * PER_EPOCH + 5:  # in the second run
            signal.raise_signal(signal.SIGINT)
        train_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Engine, "train_step", stopping)
        with pytest.raises(Interrupted):
            sweep.finetune(made, config, tmp_path / "out", str(start))
    names = {path.name for path in (tmp_path / "out/mrpc").iterdir()}
    assert names == {"lr=0.003,seed=0", ".lr=0.003,seed=1.unfinished"}
    results = sweep.finetune(made, config, tmp_path / "out", str(start))
    names = {path.name for path in (tmp_path / "out/mrpc").iterdir()}
    assert names == {"lr=0.003,seed=0", "lr=0.003,seed=1"}
    for one, other in zip(results["tasks"]["mrpc"]["runs"], expected["tasks"]["mrpc"]["runs"], strict=True):
        assert without_clock(one) == without_clock(other)
    for name in names:
        assert not (tmp_path / "out/mrpc" / name / finetune.UNDER_WAY).exists()
        for file in ("dev/MRPC.tsv", "test/MRPC.tsv"):
            one, other = (tmp_path / folder / "mrpc" / name / file for folder in ("out", "whole"))
            assert one.read_bytes() == other.read_bytes()


def test_run_that_diverges_at_a_checkpoint_step_is_scored_and_not_saved(glue_folder, tmp_path):
    for rate, more in ((1e30, {}), (3e38, {"learning_rate__warmup": 0.0, "optimizer__clip_norm": 0.0})):
        trainer = make_trainer(glue_folder, tmp_path, checkpoint__every=1, **more)
        folder = tmp_path / f"{rate}"
        done = finetune.train_and_score(trainer, rate, 0, folder, StopSignal(), lambda step, numbers: None)
        assert 0 < done.result["diverged_at"] < trainer.steps
        assert not any(logits.any() for logits in done.logits.values())
        assert not any((folder / "checkpoints").rglob("checksums.json"))


def test_signal_at_a_step_that_diverges_ends_the_run_as_diverged(glue_folder, tmp_path):
    # A diverged run leaves nothing to resume from. The call stops at the first step of the next run.
    more = {"learning_rate__warmup": 0.0, "optimizer__clip_norm": 0.0}
    trainer = make_trainer(glue_folder, tmp_path, **more)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        done = finetune.train_and_score(trainer, 3e38, 0, tmp_path / "run", stop, lambda step, numbers: None)
    assert done.result["diverged_at"] == 1
    assert not (tmp_path / "run").exists()


def test_simultaneous_second_call_in_the_same_folder_is_refused(glue_folder, tmp_path):
    start = write_checkpoint(tmp_path, pooler=True)
    made, config = make_settings(glue_folder, batch_size=8, epochs=0.25)
    out = tmp_path / "out"
    out.mkdir()
    with files.hold(out / ".lock", "held"), pytest.raises(BadInput, match=f"another finetune is writing to {out}"):
        sweep.finetune(made, config, out, str(start))
    assert [path.name for path in out.iterdir()] == [".lock"]
    refused = []

    def second(*_):
        with pytest.raises(BadInput, match="another finetune is writing to"):
            sweep.finetune(made, config, out, str(start))
        refused.append(True)

    # The second call is refused while the first is running, but not afterwards.
    with pytest.MonkeyPatch.context() as patch:
        evaluate = finetune.FinetuneRun.evaluate
        patch.setattr(finetune.FinetuneRun, "evaluate", lambda self: second() or evaluate(self))
        sweep.finetune(made, config, out, str(start))
    assert refused
    sweep.finetune(made, config, out, str(start))


def test_two_micro_batches_give_the_same_as_one(glue_folder, tmp_path):
    changes = {"eval__every": 1, "epochs": 1.0, "dropout": 0.0, "learning_rates": "1e-3", "widths": 1}
    found = []
    for count in (1, 2):
        trainer = make_trainer(glue_folder, tmp_path, micro_batches=count, **changes)
        assert trainer.timeline(RATE)[0].program.micro_batches == count
        found.append(train(trainer, tmp_path / f"{count}"))
    one, two = found
    assert [row["step"] for row in one.result["curve"]] == list(range(1, PER_EPOCH + 1))
    losses = [[row["train_loss"] for row in done.result["curve"]] for done in found]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    for split, logits in one.logits.items():
        np.testing.assert_allclose(two.logits[split], logits, rtol=1e-5, atol=1e-5)
    for key in ("examples", "tokens_real", "tokens_padded", "flops", "flops_dense", "steps"):
        assert one.result[key] == two.result[key]


# --- the weights that are kept ----------------------------------------------------------------------------------------


def predictions_of(trainer, folder: pathlib.Path):
    """(encoder with the kept weights of a run, its dev logits), from the kept files alone."""
    kept = encoder.load(folder)
    logits = trainer.logits(jax.device_put(kept.params), trainer.task.held_out["dev"], kept.program)
    return kept, logits


@pytest.mark.parametrize("name", RECIPES)
def test_kept_weights_give_the_scored_predictions(trainers, whole, name):
    trainer, (done, folder) = trainers[name], whole[name]
    kept, logits = predictions_of(trainer, folder)
    np.testing.assert_array_equal(logits, done.logits["dev"])
    assert kept.about.step == done.result["steps"]
    assert kept.about.task == trainer.task.about
    assert kept.about.task.kind == "classes"
    assert kept.about.scored == tuple(done.result["curve"])
    assert kept.about.init == str(trainer.start.folder)
    assert kept.vocab == trainer.start.vocab
    assert checkpoint.shapes(kept.folder).keys() == {"step", "params"}  # no optimizer state
    assert (sum(kept.model.mlp_dim_L) < sum(trainer.start.model.mlp_dim_L)) == (name == "early_bert")


def scores_of(trainer, scores: list[float]):
    """Makes the trainer return these scores, one per evaluation; returns a list that collects the dev logits."""
    given = []

    def score(logits):
        given.append(logits["dev"].copy())
        return {"score": scores[len(given) - 1]}

    trainer.task = trainer.task._replace(score=score)
    return given


def test_best_weights_come_from_the_first_evaluation_with_the_highest_score(glue_folder, tmp_path):
    trainer = make_trainer(glue_folder, tmp_path, keep="best")
    given = scores_of(trainer, [50.0, 90.0, 70.0, 90.0, 60.0, 80.0])
    done = train(trainer, tmp_path / "run")
    assert done.result["best"]["step"] == 6
    kept, logits = predictions_of(trainer, tmp_path / "run")
    assert kept.about.step == 6
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [6]
    np.testing.assert_array_equal(logits, given[1])
    assert (logits != done.logits["dev"]).any()


def test_best_weights_are_still_known_after_a_stop(glue_folder, tmp_path):
    trainer = make_trainer(glue_folder, tmp_path, keep="best")
    given = scores_of(trainer, [50.0, 90.0, 70.0, 85.0, 60.0, 80.0])
    stopped(trainer, tmp_path / "run", 10)
    done = train(trainer, tmp_path / "run")
    assert [row["score"] for row in done.result["curve"]] == [50.0, 90.0, 70.0, 85.0, 60.0, 80.0]
    kept, logits = predictions_of(trainer, tmp_path / "run")
    assert (kept.about.step, done.result["best"]["step"]) == (6, 6)
    np.testing.assert_array_equal(logits, given[1])


def test_no_weights_are_kept_if_keep_is_none(glue_folder, tmp_path):
    trainer = make_trainer(glue_folder, tmp_path, keep="none", epochs=1.0)
    train(trainer, tmp_path / "run")
    assert not any((tmp_path / "run").rglob("checksums.json"))


def test_kept_weights_are_in_the_folder_of_the_finished_run(glue_folder, tmp_path):
    start = write_checkpoint(tmp_path, pooler=True)
    made, config = make_settings(glue_folder, batch_size=8, epochs=0.5, keep="last")
    sweep.finetune(made, config, tmp_path / "out", str(start))
    run = tmp_path / "out/mrpc/lr=0.003,seed=0"
    kept = encoder.load(run)
    assert kept.about.step == json.loads((run / "result.json").read_text())["steps"] == 4
    assert kept.about.task.labels == ("0", "1")
    assert dataclasses.replace(kept.model, dropout=0.1, attention_dropout=0.1, pooler=True) == encoder.load(start).model


def test_runs_that_another_call_has_just_finished_are_not_repeated(glue_folder, tmp_path, monkeypatch):
    """The second call finds the lock free, because the first call ended just after the second had read the folder."""
    start = write_checkpoint(tmp_path, pooler=True)
    made, config = make_settings(glue_folder, batch_size=8, epochs=0.25)
    hold = sweep.hold

    def after_the_first(path, busy):
        monkeypatch.setattr(sweep, "hold", hold)
        sweep.finetune(made, config, path.parent, str(start))
        monkeypatch.setattr(sweep, "train_and_score", lambda *_: pytest.fail("trains again"))
        return hold(path, busy)

    monkeypatch.setattr(sweep, "hold", after_the_first)
    assert sweep.finetune(made, config, tmp_path / "out", str(start))["tasks"]
