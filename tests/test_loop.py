"""The train loop: a run learns, resumes bit for bit, and refuses bad settings, folders and checkpoints."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from bert_fast import BadInput, encoder, inference
from bert_fast.cost import accelerators
from bert_fast.data import files, sealed, shards
from bert_fast.train import checkpoint, compile, loop
from bert_fast.train.log import read_rows
from helpers import made_shards
from helpers.interruption import interrupted
from helpers.small_runs import make_settings, rows_without_clock, run, small_config


@pytest.fixture(scope="module")
def finished(small_shards, tmp_path_factory):
    """A run of 60 steps in two phases, never interrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    summary = run(small_config(small_shards), workdir)
    return workdir, summary


def test_a_run_learns_and_writes_all_its_files(finished):
    workdir, summary = finished
    rows = read_rows(workdir / "metrics.jsonl")
    train = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in train] == [15, 30, 45, 60]
    assert [row["stage"] for row in train] == ["16-tokens", "16-tokens", "32-tokens", "32-tokens"]
    valid = [row for row in rows if row["split"] == "valid"]
    assert [row["step"] for row in valid] == [30, 60]
    assert valid[1]["mlm_loss"] < train[0]["mlm_loss"] - 0.2 < np.log(83)
    for name in ("config.json", "stages.json", "summary.json", "checkpoints/60", "tensorboard"):
        assert (workdir / name).exists(), name
    assert summary["steps"] == 60
    assert summary["examples"] == 60 * 8
    assert summary["tokens_padded"] == 30 * 8 * 16 + 30 * 8 * 32
    assert 0 < summary["tokens_real"] <= summary["tokens_padded"]
    assert summary["flops"] == summary["flops_dense"] > 0
    assert sealed.read(workdir / "summary.json", "") == json.loads(json.dumps(summary))


def test_rows_and_summary_report_the_utilisation_of_the_peak(small_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerators, "measured_peak", lambda device: 1e12)
    config = small_config(small_shards, steps=4, phases="16:1", log_every=2, eval__every=0, measure_peak=True)
    summary = run(config, tmp_path)
    one, two = (row for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "train")
    assert summary["peak_flops_per_second"] == 1e12
    assert 0 < summary["utilisation"] <= summary["utilisation_padded"] == summary["utilisation_dense"]
    # A row's utilisation covers the steps since the previous row, not since the start.
    spent = two["seconds"] - one["seconds"]
    assert two["utilisation_padded"] == pytest.approx((two["flops"] - one["flops"]) / spent / 1e12, rel=0.2)


def test_no_utilisation_is_reported_without_a_known_peak(finished):
    workdir, summary = finished
    assert summary["peak_flops_per_second"] is None
    assert not any(key.startswith("utilisation") for row in read_rows(workdir / "metrics.jsonl") for key in row)


def same_arrays(one, other):
    a, b = (checkpoint.restore_params(folder / "checkpoints/60") for folder in (one, other))
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), a, b)))


# Step 25 is inside a stage and between two rows. Step 30 is the end of a stage.
@pytest.mark.parametrize("at_step", [25, 30])
def test_interrupted_run_ends_like_an_uninterrupted_one(finished, small_shards, tmp_path, monkeypatch, at_step):
    config = small_config(small_shards)
    interrupted(config, tmp_path, at_step, monkeypatch)
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == at_step
    run(config, tmp_path)
    assert rows_without_clock(tmp_path) == rows_without_clock(finished[0])
    assert same_arrays(tmp_path, finished[0])


def test_run_killed_between_checkpoints_writes_no_row_twice(finished, small_shards, tmp_path):
    # What SIGKILL may leave: an older checkpoint, rows of later steps, and a partial row.
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/60")
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "spli')
    run(small_config(small_shards), tmp_path / "run")
    assert rows_without_clock(tmp_path / "run") == rows_without_clock(finished[0])
    assert same_arrays(tmp_path / "run", finished[0])


def test_damaged_row_is_reported_before_a_run_continues(finished, small_shards, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/60")
    lines = (finished[0] / "metrics.jsonl").read_text().splitlines()
    damaged = "\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n"
    (tmp_path / "run/metrics.jsonl").write_text(damaged)
    with pytest.raises(BadInput, match=r"metrics\.jsonl, line 2: expected"):
        run(small_config(small_shards), tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_text() == damaged
    assert checkpoint.steps(tmp_path / "run/checkpoints")[-1] == 40


def test_damaged_newest_checkpoint_is_skipped(finished, small_shards, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    data = next(path for path in (tmp_path / "run/checkpoints/60/arrays").rglob("d/*") if path.stat().st_size > 1000)
    content = bytearray(data.read_bytes())
    content[500] ^= 1
    data.write_bytes(content)
    run(small_config(small_shards), tmp_path / "run")
    assert "damaged" in capsys.readouterr().err
    assert same_arrays(tmp_path / "run", finished[0])


def test_folder_of_a_run_with_another_config_is_refused(finished, small_shards):
    config = small_config(small_shards, learning_rate__peak=2e-2)
    with pytest.raises(BadInput, match=r"learning_rate\.peak: 0\.01 there, 0\.02 now"):
        run(config, finished[0])


def test_folder_that_another_run_is_writing_to_is_refused(small_shards, tmp_path):
    with files.hold(tmp_path / ".lock", "held"), pytest.raises(BadInput, match="another run is writing to"):
        run(small_config(small_shards), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_finished_run_is_not_run_again(finished, small_shards):
    before = (finished[0] / "metrics.jsonl").read_text()
    summary = run(small_config(small_shards), finished[0])
    assert (finished[0] / "metrics.jsonl").read_text() == before
    # These values are final only after the last checkpoint is written.
    unknown = dict.fromkeys(("save_seconds", "idle_seconds", "wall_seconds", "goodput"))
    assert summary | unknown == finished[1] | unknown


def test_warm_start_starts_where_the_other_run_ended(finished, small_shards, tmp_path):
    config = small_config(small_shards, init=str(finished[0]), steps=1, learning_rate__peak=0.0, phases="16:1")
    run(config, tmp_path / "run")
    valid = read_rows(tmp_path / "run/metrics.jsonl")[-1]
    assert valid["mlm_loss"] == pytest.approx(read_rows(finished[0] / "metrics.jsonl")[-1]["mlm_loss"], abs=1e-6)


def test_warm_start_from_another_model_is_refused(finished, small_shards, tmp_path):
    config = small_config(small_shards, init=str(finished[0]), model__width=16, model__heads=1)
    with pytest.raises(BadInput, match="width is 32 there, 16 here"):
        run(config, tmp_path)


def test_warm_start_from_a_pruned_model_says_that_no_config_matches(finished, small_shards, tmp_path, monkeypatch):
    about = checkpoint.about(checkpoint.find(finished[0]))
    slim = dataclasses.replace(about.program, model=about.model.with_widths(about.model.heads_L, [38, 39]))
    about = dataclasses.replace(about, stage=dataclasses.replace(about.stage, program=slim))
    monkeypatch.setattr(checkpoint, "about", lambda _: about)
    with pytest.raises(BadInput, match=r"mlp_dim_L is \(38, 39\) there.*a new run cannot start from it"):
        run(small_config(small_shards, init=str(finished[0])), tmp_path)


def test_loss_that_is_not_finite_ends_the_run_and_its_weights_are_not_saved(small_shards, tmp_path):
    config = small_config(small_shards, learning_rate__peak=1e38, optimizer__clip_norm=0.0, checkpoint__every=1)
    with pytest.raises(BadInput, match=rf"not finite.*in another --workdir; .*--config.init={tmp_path}"):
        run(config, tmp_path)
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoint.restore_params(newest)))


def test_folder_accepts_a_corrected_config_after_a_run_without_checkpoints(small_shards, tmp_path):
    config = small_config(small_shards, learning_rate__peak=1e38, optimizer__clip_norm=0.0, checkpoint__every=0)
    with pytest.raises(BadInput, match=r"not finite.*float32$"):
        run(config, tmp_path)
    assert run(small_config(small_shards, steps=1, phases="16:1"), tmp_path)["steps"] == 1


LAST_STEP_OVERFLOWS = {
    "steps": 1,
    "phases": "16:1",
    "learning_rate__peak": 3e38,
    "learning_rate__warmup_steps": 0,
    "learning_rate__decay": "constant",
    "optimizer__clip_norm": 0.0,
    "optimizer__bias_correction": False,  # so the first update is about 3 times the rate, which overflows
}


@pytest.mark.parametrize("every", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_weights_that_are_not_finite_after_the_last_step_end_the_run(small_shards, tmp_path, every):
    # The last step's loss is computed before its update. No later loss shows the effect of that update.
    config = small_config(small_shards, eval__every=every, checkpoint__every=every, **LAST_STEP_OVERFLOWS)
    with pytest.raises(BadInput, match=r"parameters is not finite \(inf\) after step 1.*so this step is not saved"):
        run(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == []
    assert read_rows(tmp_path / "metrics.jsonl") == []
    assert not (tmp_path / "summary.json").exists()


def test_checkpoint_with_a_weight_that_is_not_finite_is_refused_everywhere(small_shards, tmp_path, monkeypatch):
    small = {"steps": 4, "phases": "16:1", "eval__every": 0, "checkpoint__every": 2, "learning_rate__peak": 1e-3}
    config = small_config(small_shards, **small)
    save = checkpoint.save

    def poisoned(root, state, about, keep, warn):
        """Saves the weights with a NaN in one leaf, and skips the check that would refuse to save them."""
        bias = state.params["mlm"]["bias"].copy()
        bias[3] = np.nan
        params = {**state.params, "mlm": {**state.params["mlm"], "bias": bias}}
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "refuse_not_finite", lambda tree, consequence: None)
            return save(root, state._replace(params=params), about, keep)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", poisoned)
        interrupted(config, tmp_path / "run", 2, monkeypatch)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [2]
    assert checkpoint.damage(tmp_path / "run/checkpoints/2") is None
    message = r"mlm/bias is not finite \(NaN or infinity\), so .*checkpoints/2 cannot be used"
    for use in (
        lambda: encoder.load(tmp_path / "run"),
        lambda: inference.evaluate(str(tmp_path / "run")),
        lambda: run(config, tmp_path / "run"),
        lambda: run(small_config(small_shards, init=str(tmp_path / "run"), **small), tmp_path / "other"),
    ):
        with pytest.raises(BadInput, match=message):
            use()
    assert [path.name for path in (tmp_path / "other").iterdir()] == [".lock"]


@pytest.mark.parametrize(("branch", "name"), [("opt_state", "opt_state/.*mu/.*"), ("method", "method/0")])
def test_moment_or_method_state_that_is_not_finite_is_refused_by_name(
    small_shards, tmp_path, monkeypatch, branch, name
):
    config = small_config(
        small_shards, steps=4, phases="16:1", eval__every=0, checkpoint__every=2, methods="token_drop"
    )
    save = checkpoint.save

    def poisoned(root, state, about, keep, warn):
        broken = jax.tree.map(
            lambda leaf: np.full_like(leaf, np.inf) if leaf.dtype == np.float32 else leaf,
            getattr(state, branch),
        )
        return save(root, state._replace(**{branch: broken}), about, keep)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", poisoned)
        with pytest.raises(BadInput, match=rf"^{name} is not finite"):
            run(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == []


def test_only_the_newest_checkpoints_are_kept(small_shards, tmp_path):
    run(small_config(small_shards, steps=14, phases="16:1", checkpoint__every=2, checkpoint__keep=5), tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == [6, 8, 10, 12, 14]


def test_each_program_compiles_once(small_shards, tmp_path, monkeypatch):
    compiled = []
    add = compile.Programs.add
    monkeypatch.setattr(
        compile.Programs, "add", lambda self, program, *a: compiled.append(program) or add(self, program, *a)
    )
    run(small_config(small_shards, steps=12, phases="16:0.34,32:0.33,16:0.33"), tmp_path)
    assert [program.seq_len for program in compiled] == [16, 32]


def test_run_is_not_continued_on_other_shards(small_shards, tmp_path, monkeypatch):
    data = shutil.copytree(small_shards, tmp_path / "shards")
    config = small_config(data, phases="16:1")
    interrupted(config, tmp_path / "run", 5, monkeypatch)
    manifest = shards.read_manifest(data)
    manifest["splits"] = dict(zip(shards.SPLITS, reversed(manifest["splits"].values()), strict=True))
    made_shards.seal(data, manifest)
    with pytest.raises(BadInput, match="no longer holds the shards of this run"):
        run(config, tmp_path / "run")


def test_batch_size_is_checked_against_every_phase_before_the_first_step(small_shards, tmp_path):
    config = small_config(small_shards, phases="16:0.5,64:0.5", batch_size=256)
    with pytest.raises(BadInput, match="an epoch of seq_len 64 has"):
        run(config, tmp_path / "run")


def test_folder_accepts_a_corrected_config_after_a_refused_start(small_shards, tmp_path):
    with pytest.raises(BadInput, match="no checkpoint in /typo"):
        run(small_config(small_shards, init="/typo"), tmp_path / "run")
    assert run(small_config(small_shards, steps=1, phases="16:1"), tmp_path / "run")["steps"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint__keep": 0}, "expected at least 1"),
        ({"model__depth": 0}, "model.depth=0: expected at least 1"),
        ({"model__heads": 0}, "model.heads=0: expected at least 1"),
        ({"model__type_count": 1}, "model.type_count=1: expected at least 2"),
        ({"learning_rate__interval": 0}, "learning_rate.interval=0: expected at least 1"),
        ({"optimizer__clip_norm": -1.0}, "optimizer.clip_norm=-1.0: expected at least 0"),
        ({"optimizer__b1": 1.5}, "optimizer.b1=1.5: expected a number of at least 0"),
        ({"optimizer__momentum": 1.0}, "optimizer.momentum=1.0: expected a number of at least 0"),
        ({"optimizer__matrix_rms": -0.4}, "optimizer.matrix_rms=-0.4: expected at least 0"),
        ({"data__workers": -1}, "data.workers=-1: expected at least 0"),
        ({"eval__batch_size": 0}, "eval.batch_size=0: expected at least 1"),
        ({"methods": "token_drop,token_drop"}, "methods=token_drop,token_drop: list each method only once"),
        ({"steps": 10**20}, "steps=100000000000000000000: expected at most 2,147,483,647"),
        ({"model__depth": 10**7}, "model.depth=10000000: expected at most 1,000"),
        ({"model__heads": 3}, "expected --config.model.width=32"),
        ({"model__init_std": -0.1}, "model.init_std=-0.1: expected at least 0"),
        ({"learning_rate__peak": -1e-3}, "learning_rate.peak=-0.001: expected at least 0"),
        ({"learning_rate__rate": math.nan}, "learning_rate.rate=nan: expected a finite number"),
        ({"optimizer__weight_decay": -0.01}, "optimizer.weight_decay=-0.01: expected at least 0"),
        ({"optimizer__eps": math.inf}, "optimizer.eps=inf: expected a finite number"),
        ({"layer_drop__theta": math.nan}, "layer_drop.theta=nan: expected a finite number"),
        ({"micro_batches": 3}, "is not divisible by"),
        ({"phases": "128:1"}, "above the model's 64"),
        ({"eval__seq_len": 65}, "above the model's 64"),
        ({"phases": "16:0.5,32:0.4"}, "sum to 1"),
        ({"phases": "16@:0.5,32:0.5"}, "with a batch size for each"),
        ({"phases": "16@0:0.5,32:0.5"}, "with a batch size for each"),
        ({"phases": "16@9:0.5,32:0.5", "micro_batches": 2}, "a batch size of 9 is not divisible by"),
        ({"methods": "layer_dorp"}, "unknown"),
        ({"mesh__tensor": 3}, "does not fit the number of devices, 1:"),
        ({"optimizer__name": "adam"}, "adamw"),
        ({"data__objective": "mml"}, "mlm"),
        ({"learning_rate__decay": "cosine"}, "unknown"),
        ({"model__dropout": 1.0}, "expected 0, or a share"),
        ({"data__dir": "/nowhere"}, "no manifest.json"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(small_shards, tmp_path, changes, message):
    config = small_config(small_shards)
    for key, value in changes.items():
        branch = config
        *path, last = key.split("__")
        for name in path:
            branch = branch[name]
        branch[last] = value
    with pytest.raises(BadInput, match=message):
        loop.pretrain(make_settings(config), config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
