"""Fine-tuning: what a call writes, compiles and refuses, and EarlyBERT's ticket."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import BadInput, Interrupted
from bert_fast.plan import Route
from bert_fast.tasks import batches, data, encoder, finetune, glue, model, sweep
from bert_fast.tasks.trainer import Trainer
from bert_fast.train import checkpoint
from bert_fast.train.signals import StopSignal
from bert_fast.train.step import make_step
from helpers.command_line import bert_fast
from helpers.made_tasks import make_encoder, make_settings, write_checkpoint, write_glue, write_squad

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
    made, _ = make_settings(folder, dropout=0.1)
    start = make_encoder(tmp_path_factory.mktemp("encoder"))
    return Trainer(data.make("mrpc", data.read("mrpc", made), start.vocab, made), start, made)


def train(trainer, folder, rate=3e-3, seed=0, stop=None, seen=None):
    return finetune.train_and_score(
        trainer, rate, seed, folder, stop or StopSignal(), seen or (lambda step, numbers: None)
    )


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


def test_signal_ends_a_run_after_its_step_is_saved(trainer, tmp_path):
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


@pytest.mark.parametrize("kind", ["classes", "span"])
def test_logits_do_not_depend_on_the_width_of_the_batch(trainer, kind):
    head, config = model.Head(kind, 2), trainer.start.model
    params = model.init(config, head, trainer.start.params, jax.random.key(0))
    rows = batches.make_examples([["good w1 w2", "bad w3"]], np.array([1, 0]), trainer.start.vocab, 48)
    found = []
    for width in (8, 24):
        batch = batches.fill(rows, batches.Batch(width, np.arange(2)), 2, trainer.start.vocab.pad)
        program = trainer.timeline(1.0)[0].program
        logits = jax.jit(lambda params, batch: model.logits(config, head, params, batch, program.plan, None))  # noqa: B023
        found.append(np.asarray(logits(params, batch)))
    narrow, wide = found
    if kind == "span":
        assert (wide[:, 8:] == model.NEVER).all()
        assert (narrow[1, 4:] == model.NEVER).all()
        wide = wide[:, :8]
    np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-5)


def test_loss_is_cross_entropy_or_squared_error_or_the_mean_over_start_and_end():
    logits = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
    np.testing.assert_allclose(
        model.losses(model.Head("classes", 2), logits, jnp.array([1, 0])), -np.log([0.75, 0.5]), rtol=1e-6
    )
    np.testing.assert_allclose(model.losses(model.Head("score", 1), jnp.array([[3.0]]), jnp.array([1.0])), [4.0])
    ends_BS2 = jnp.log(jnp.array([[[0.2, 0.5], [0.8, 0.5]]]))
    loss = model.losses(model.Head("span", 2), ends_BS2, jnp.array([[1, 0]]))
    np.testing.assert_allclose(loss, [-(np.log(0.8) + np.log(0.5)) / 2], rtol=1e-6)


def test_padding_examples_have_no_weight(trainer):
    """A batch of 2 examples and 6 of padding gives the same step as a batch of 2."""
    rows = trainer.task.train
    engine = trainer.engine(1.0, 0)
    engine.begin(trainer.first_params(0))
    state, program, objective = engine.state, engine.stage.program, model.objective(trainer.task.head)
    step = jax.jit(make_step(trainer.method, trainer.optimizer, objective), static_argnames="program")
    results = []
    for size in (2, 8):
        batch = batches.fill(rows, batches.Batch(trainer.widths[-1], np.array([3, 4])), size, trainer.start.vocab.pad)
        # No dropout: its draws depend on the batch size.
        still = dataclasses.replace(program.model, dropout=0.0, attention_dropout=0.0)
        of = dataclasses.replace(program, model=still)
        results.append(step(state, batch, Route(), np.float32(1e-3), np.uint32(0), program=of))
    for a, b in zip(jax.tree.leaves(results[0][0].params), jax.tree.leaves(results[1][0].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for name in ("examples", "tokens_real"):
        assert results[0][1][name] == results[1][1][name]
    assert results[1][1]["examples"] == 2


@pytest.mark.parametrize(
    "changes",
    [{"norm": "pre"}, {"embed_norm": False, "norm": "pre"}, {"heads": (1, 2), "mlp_dim": (8, 24)}, {"tied": False}],
    ids=["pre", "without embedding norm", "slim", "own table"],
)
def test_fine_tuning_trains_every_layer_on_all_tokens(folder, tmp_path, changes):
    made, _ = make_settings(folder, "stsb")
    start = make_encoder(tmp_path, **changes)
    trainer = Trainer(data.make("stsb", data.read("stsb", made), start.vocab, made), start, made)
    program = trainer.timeline(1.0)[0].program
    assert all(span.queries is span.keys is None and not span.frozen for span in program.plan)
    params = jax.eval_shape(lambda: model.init(start.model, trainer.task.head, start.params, jax.random.key(0)))
    assert "mlm" not in params
    batch = batches.fill(trainer.task.train, batches.Batch(trainer.widths[-1], np.arange(8)), 8, 0)
    found = jax.eval_shape(lambda p: model.logits(start.model, trainer.task.head, p, batch, program.plan, None), params)
    assert found.shape == (8, 1)


def test_pooler_comes_from_pre_training_or_is_fresh(tmp_path):
    with_pooler, without = (make_encoder(tmp_path, pooler=pooler) for pooler in (True, False))
    head = model.Head("classes", 2)
    taken = model.init(with_pooler.model, head, with_pooler.params, jax.random.key(0))
    np.testing.assert_array_equal(taken["task"]["pooler"]["kernel"], with_pooler.params["next"]["pooler"]["kernel"])
    fresh = model.init(without.model, head, without.params, jax.random.key(0))
    assert (np.asarray(fresh["task"]["pooler"]["kernel"]) != taken["task"]["pooler"]["kernel"]).any()
    assert "next" not in taken


@pytest.mark.parametrize(
    ("objective", "about", "learned"),
    [
        ("mlm+nsp", {}, True),
        ("mlm", {"init": ""}, False),
        ("mlm", {"init": "bert-base"}, True),
        ("mlm", {"imported": {"initialised": ["next-sentence head"]}}, True),
        ("mlm+nsp", {"imported": {"initialised": ["pooler", "next-sentence head"]}}, False),
    ],
)
def test_only_a_trained_pooler_counts_as_learned(tmp_path, objective, about, learned):
    made = make_encoder(tmp_path)
    stage = dataclasses.replace(made.about.stage, program=dataclasses.replace(made.program, objective=objective))
    made = dataclasses.replace(made, about=dataclasses.replace(made.about, stage=stage, **about))
    assert encoder.has_learned_pooler(made) == learned


def test_random_weights_come_from_the_seed_and_not_the_checkpoint(folder, tmp_path):
    made, _ = make_settings(folder, random_weights=True)
    start = make_encoder(tmp_path)
    keys = (jax.random.key(seed) for seed in (1, 2))  # the encoder's seed is 0
    one, two = (encoder.weights(start, start.model, made, key) for key in keys)
    word = lambda params: np.asarray(params["embed"]["word"])  # noqa: E731
    assert (word(one) != word(two)).any()
    assert (word(one) != start.params["embed"]["word"]).any()
    shapes = jax.tree.map(np.shape, one)
    assert shapes == jax.tree.map(np.shape, {name: leaf for name, leaf in start.params.items() if name in one})


def test_ticket_is_drawn_after_a_short_search_and_trained_from_the_initial_weights(folder, tmp_path):
    changes = {"batch_size": 8, "widths": 1, "learning_rates": "4e-3", "early_bert__head_ratio": 0.5}
    made, _ = make_settings(folder, recipe="early_bert", early_bert__search=0.2, **changes)
    start = make_encoder(tmp_path)
    trainer = Trainer(data.make("mrpc", data.read("mrpc", made), start.vocab, made), start, made)
    search, training = trainer.timeline(4e-3)
    assert search.steps == round(0.2 * training.steps) - 1  # the released trainer.py records before an update
    # The search has its own schedule, with a peak of 2e-5 over 3 epochs. The training starts its schedule at step 0.
    assert (search.schedule.peak, search.schedule.steps) == (2e-5, 3 * trainer.per_epoch)
    assert (training.schedule.peak, training.schedule.steps) == (4e-3, training.steps)
    assert (search.guess, training.guess) == (False, True)
    run = finetune.FinetuneRun(trainer, 4e-3, 0, tmp_path / "live")
    engine = run.engine
    before = jax.tree.map(np.asarray, engine.whole_params())
    while not engine.stage_is_over():
        assert run.advance()
        assert not run.is_due()
    assert engine.step == search.steps
    learned = np.asarray(engine.whole_params()["task"]["output"]["kernel"])
    assert (learned != before["task"]["output"]["kernel"]).any()
    engine.enter_next_stage()
    slim = engine.stage.program.model
    assert not engine.stage.guess
    assert slim.heads_L == (1, 1)
    assert sum(slim.mlp_dim_L) < 64
    # The kept weights, task head included, are rewound to the start. There are no coefficients, and nothing is frozen.
    state = engine.state
    assert state.frozen == {}
    assert "head_scale" not in state.params["layers"]
    np.testing.assert_array_equal(state.params["task"]["output"]["kernel"], before["task"]["output"]["kernel"])
    np.testing.assert_array_equal(state.params["embed"]["word"], before["embed"]["word"])
    kept = np.asarray(state.params["layers"]["query"]["kernel"])[0, :, 0]
    assert any((kept == before["layers"]["query"]["kernel"][0, :, head]).all() for head in range(2))
    assert engine.counters.training_began == search.steps
    result = train(trainer, tmp_path / "whole", 4e-3).result
    assert result["steps"] == search.steps + training.steps
    assert [stage["steps"] for stage in result["stages"]] == [search.steps, training.steps]
    assert result["stages"][1]["heads"] == [1, 1]
    assert [row["epoch"] for row in result["curve"]] == [1, 2]
    assert result["flops"] < result["flops_dense"]


def test_losses_of_the_search_are_not_counted_in_the_training(folder, tmp_path):
    made, _ = make_settings(folder, recipe="early_bert", early_bert__search=0.2, widths=1)
    start = make_encoder(tmp_path)
    trainer = Trainer(data.make("mrpc", data.read("mrpc", made), start.vocab, made), start, made)
    run = finetune.FinetuneRun(trainer, 4e-3, 0, tmp_path / "live")
    search, _ = trainer.timeline(4e-3)
    for _ in range(search.steps):
        run.advance()
    run.engine.settle()
    assert run.engine.counters.since["steps"] == search.steps
    run.advance()
    assert run.engine.step == search.steps + 1
    assert run.engine.counters.since == {}
    run.engine.settle()
    assert run.engine.counters.since["steps"] == 1


@pytest.mark.parametrize("method", ["layer_drop", "token_drop", "stacking"])
def test_layer_drop_token_drop_and_stacking_are_refused(folder, tmp_path, method):
    def trainer():
        made, _ = make_settings(folder, methods=method)
        start = make_encoder(tmp_path)
        return Trainer(data.make("mrpc", data.read("mrpc", made), start.vocab, made), start, made)

    with pytest.raises(BadInput, match=f"--config.methods={method}"):
        trainer()


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
    made, _ = make_settings(folder, epochs=1 / 19, learning_rate__warmup=0.0, optimizer__clip_norm=0.0)
    start = make_encoder(tmp_path)
    trainer = Trainer(data.make("mrpc", data.read("mrpc", made), start.vocab, made), start, made)
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


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_is_fine_tuned_and_its_predictions_are_written(run_folder, tmp_path, version):
    write_squad(tmp_path, version)
    # Batch widths are multiples of 8, but a seq_len of 20 is not.
    values = {**SMALL, "data.seq_len": 20, "data.stride": 8, "epochs": 2.0, "widths": 1, "seeds": "0"}
    done = bert_fast(
        "finetune",
        f"--config=configs/squad.py:version={version}",
        f"--checkpoint={run_folder}",
        f"--workdir={tmp_path / 'out'}",
        f"--config.data.dir={tmp_path}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / f"out/squad{version}/lr=0.003,seed=0"
    assert set(read(run / "dev/predictions.json")) == {f"dev{number}" for number in range(10)}
    assert (run / "dev/null_odds.json").exists() == (version == "2.0")
    last = read(run / "result.json")["last"]
    assert last["score"] == last["f1"]
    assert ("HasAns_f1" in last) == (version == "2.0")
    assert not any(key.endswith("total") for key in last)
    (tmp_path / f"train-v{version}.json").unlink()
    done = bert_fast(
        "finetune", f"--config=configs/squad.py:version={version}", f"--checkpoint={run_folder}",
        f"--workdir={tmp_path / 'other'}", f"--config.data.dir={tmp_path}",
    )  # fmt: skip
    assert (done.returncode, f"expected one file train-v{version}.json" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "other").exists()
