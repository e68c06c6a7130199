"""How a run starts: its timeline and clock, and the parameters and states that it takes from a checkpoint."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import BadInput, bert, methods
from bert_fast.data import shards
from bert_fast.data.vocab import SPECIAL, parse
from bert_fast.method import Clock, Method, Program, Stage, chain, cut
from bert_fast.plan import edit, whole
from bert_fast.schedule import Schedule
from bert_fast.train import checkpoint, initial_params, optim, report, resume, sharding, timeline
from bert_fast.train.counters import Counters
from bert_fast.train.description import Description
from bert_fast.train.sharding import AXES, make_mesh
from bert_fast.train.state import check_model, first_state, resumed
from helpers.reference import random_params
from helpers.small_runs import make_settings, run, small_config

CONFIG = bert.Config(60, 2, 16, 2, 8, 32, 16, dropout=0.0, attention_dropout=0.0)
PROGRAM = Program(CONFIG, whole(2), 8, 1, 16, 2, "mlm")
SCHEDULE = Schedule(1.0, 100, 10)
STAGE = Stage("first", PROGRAM, 100, SCHEDULE)
OPTIMIZER = optim.make(optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, True, 1.0))


# --- rates and clocks -------------------------------------------------------------------------------------------------


def test_rate_counts_from_the_start_of_the_run_or_of_the_stage():
    assert STAGE.learning_rate(Clock(40, 100), 7) == SCHEDULE(40)
    of_stage = dataclasses.replace(STAGE, schedule_from="stage")
    assert of_stage.learning_rate(Clock(40, 100), 7) == SCHEDULE(7)
    assert SCHEDULE(40) != SCHEDULE(7)


def test_rate_warms_up_again_from_zero_to_the_schedule():
    again = dataclasses.replace(STAGE, warm_again=5)
    shares = [again.learning_rate(Clock(50 + i, 100), i) / SCHEDULE(50 + i) for i in range(7)]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1])


@pytest.mark.parametrize("changes", [{"schedule_from": "stage"}, {"warm_again": 30}, {}])
def test_stage_that_is_cut_keeps_its_rates(changes):
    stage = dataclasses.replace(STAGE, **changes)
    low, high = cut((stage,), 20)
    assert (low.steps, high.steps, high.skipped) == (20, 80, 20)
    for step in range(100):
        part, since = (low, step) if step < 20 else (high, step - 20)
        assert part.learning_rate(Clock(step, 100), since) == stage.learning_rate(Clock(step, 100), step)


def test_clock_counts_the_steps_of_one_training_and_starts_again_at_a_restart():
    restart = dataclasses.replace(STAGE, data="restart")
    steps = (10, 20, 30, 40)
    planned = [dataclasses.replace(s, steps=n) for s, n in zip((STAGE, STAGE, restart, STAGE), steps, strict=True)]
    # The search ended at step 25 instead of 30. Its own clock still counts the planned steps.
    assert timeline.clock_of(planned, 0, 5, 0) == Clock(5, 30)
    assert timeline.clock_of(planned, 1, 24, 0) == Clock(24, 30)
    assert timeline.clock_of(planned, 2, 25, 25) == Clock(0, 70)
    assert timeline.clock_of(planned, 3, 60, 25) == Clock(35, 70)


# --- the timeline -----------------------------------------------------------------------------------------------------


def frozen_below(depth):
    def stages(stages):
        plan = edit(whole(2), 0, depth, frozen=True)
        return tuple(dataclasses.replace(s, program=dataclasses.replace(s.program, plan=plan)) for s in stages)

    return Method(stages=stages)


def test_stage_in_which_nothing_learns_is_refused(small_shards):
    settings = make_settings(small_config(small_shards))
    assert len(timeline.stages(settings, frozen_below(1))) == 2
    with pytest.raises(BadInput, match=r"no layer learns in stage 16-tokens: do not freeze the topmost"):
        timeline.stages(settings, frozen_below(2))


# --- a folder that already holds a run --------------------------------------------------------------------------------


def test_a_key_that_an_older_run_lacks_has_its_default(small_shards, tmp_path):
    config = small_config(small_shards)
    older = {**config, "token_drop": {**config["token_drop"]}, "optimizer": {**config["optimizer"]}}
    del older["token_drop"]["examples_per_row"]
    del older["optimizer"]["eps_before_correction"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    resume.refuse_other(tmp_path, config)
    with pytest.raises(BadInput, match=r"token_drop\.examples_per_row: 1 there, 2 now"):
        resume.refuse_other(tmp_path, {**config, "token_drop": {**config["token_drop"], "examples_per_row": 2}})
    with pytest.raises(BadInput, match=r"optimizer\.eps_before_correction: False there, True now"):
        resume.refuse_other(tmp_path, {**config, "optimizer": {**config["optimizer"], "eps_before_correction": True}})
    with pytest.raises(BadInput, match=r"seed: 0 there, 7 now"):
        resume.refuse_other(tmp_path, {**config, "seed": 7})


def test_renamed_keys_are_read_from_an_older_config(small_shards, tmp_path):
    config = small_config(small_shards)
    older = {**config, "token_drop": {**config["token_drop"]}, "model": {**config["model"]}}
    older["token_drop"]["beside"] = older["token_drop"].pop("examples_per_row")
    older["model"]["hidden"] = older["model"].pop("mlp_dim")
    (tmp_path / "config.json").write_text(json.dumps(older))
    resume.refuse_other(tmp_path, config)
    older["model"]["hidden"] += 1
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(BadInput, match=r"model\.mlp_dim: 65 there, 64 now"):
        resume.refuse_other(tmp_path, config)


# --- a checkpoint's parameters and states -----------------------------------------------------------------------------


def test_parameters_of_another_model_are_refused():
    params = random_params(CONFIG)
    check_model("grown", {**params, "layers": {**params["layers"], "gain": np.ones(2)}}, CONFIG)
    with pytest.raises(ValueError, match=r"stage grown: .* has shape \(2, .*, but the stage's model expects \(3, "):
        check_model("grown", params, dataclasses.replace(CONFIG, depth=3))
    without = {name: leaf for name, leaf in params.items() if name != "mlm"}
    with pytest.raises(ValueError, match=r"stage grown: mlm/.* has shape None"):
        check_model("grown", without, CONFIG)


def test_warm_start_applies_and_removes_the_parameters_that_a_method_added(small_shards, tmp_path):
    search = {"search": 3.0, "neuron_ratio": 0.0, "head_ratio": 0.0}
    config = small_config(
        small_shards,
        steps=3,
        phases="16:1",
        methods="early_bert",
        early_bert=search,
        checkpoint__every=1,
        checkpoint__keep=9,
        eval__every=0,
    )
    # The search prunes nothing: the training after it has the same program, but no coefficients.
    assert run(config, tmp_path)["steps"] == 6
    folder = tmp_path / "checkpoints/3"
    theirs = checkpoint.restore_params(folder)["layers"]
    settings = dataclasses.replace(make_settings(small_config(small_shards)), init=str(folder))
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    warm = initial_params.warm(settings, settings.model, shards.read_manifest(small_shards), mesh)
    check_model("warm", warm, settings.model)
    fresh = bert.shapes(settings.model)
    assert jax.tree.structure(warm) == jax.tree.structure(fresh)
    scale_LF = theirs["neuron_scale"][:, :, None]
    assert (scale_LF != 1).all()
    np.testing.assert_allclose(
        warm["layers"]["mlp_output"]["kernel"], theirs["mlp_output"]["kernel"] * scale_LF, rtol=1e-6
    )


def test_state_of_a_method_is_restored_with_its_saved_shape(tmp_path):
    counting = Method(init=lambda params, config: (params, {"seen": jnp.zeros(3), "steps": jnp.zeros((), jnp.int32)}))
    method, mesh = chain(counting), make_mesh(1, 1, 1, jax.devices()[:1])
    state = first_state(initial_params.fresh(CONFIG, 0, mesh), method, STAGE, OPTIMIZER, mesh)
    grown = ({"seen": jnp.arange(5.0), "steps": jnp.int32(7)},)
    about = Description(step=0, stage=STAGE, vocab=parse("\n".join(SPECIAL).encode(), "vocab.txt", False, None))
    folder = checkpoint.save(tmp_path, state._replace(method=grown), about, set())
    back = resumed(folder, method, OPTIMIZER, mesh)
    assert jax.tree.all(jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), back.method, grown))
    assert back.method[0]["seen"].shape == (5,)


# --- methods by name --------------------------------------------------------------------------------------------------


def test_unknown_argument_of_a_method_is_refused():
    methods.make([("token_drop", {"keep": 0.5})])
    with pytest.raises(BadInput, match=r"--config\.token_drop\.keeep is unknown: did you mean keep\?"):
        methods.make([("token_drop", {"keeep": 0.5})])


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int = 0
    platform: str = "cpu"


def test_stage_that_the_mesh_does_not_divide_is_refused_before_it_begins(small_shards):
    settings = make_settings(small_config(small_shards, methods="early_bert", model__heads=4, model__head_size=8))
    method = methods.make(settings.methods)
    mesh = jax.sharding.Mesh(np.array([Device(0), Device(1)]).reshape(1, 1, 2), AXES)
    with pytest.raises(BadInput, match=r"stage 16-tokens: layers/attention_output/kernel has an axis of 3.*tensor=2"):
        sharding.check_stages(settings.eval.batch_size, timeline.stages(settings, method), mesh)


def test_examples_are_not_joined_across_devices(small_shards):
    changes = {"methods": "token_drop", "token_drop__examples_per_row": 2, "batch_size": 16, "eval__batch_size": 16}
    changes["model__depth"] = 6
    settings = make_settings(small_config(small_shards, **changes))
    method = methods.make(settings.methods)
    stages = timeline.stages(settings, method)
    for count in (8, 16):
        mesh = jax.sharding.Mesh(np.array([Device(i) for i in range(count)]).reshape(count, 1, 1), AXES)
        if count == 8:
            sharding.check_stages(settings.eval.batch_size, stages, mesh)
        else:
            with pytest.raises(BadInput, match=r"2 examples per row do not divide a device's 1 of .* multiple of 32"):
                sharding.check_stages(settings.eval.batch_size, stages, mesh)


def test_counts_of_another_version_are_refused():
    old = {**Counters().to_json(), "stage": 1}
    with pytest.raises(BadInput, match=r"another version of bert_fast, which kept different counts \(stage\)"):
        Counters.from_json(old)
    assert Counters.from_json(Counters(ends=[5, 9]).to_json()).stage_began == 9


def test_run_warns_of_a_long_warm_up_and_of_many_passes_over_the_corpus(small_shards, tmp_path, capfd, monkeypatch):
    changes = {"steps": 4, "eval__every": 0, "checkpoint__every": 0}
    run(small_config(small_shards, **changes, learning_rate__warmup_steps=3), tmp_path / "slow")
    assert "the learning rate rises for 3 of 4 steps" in capfd.readouterr().err
    run(small_config(small_shards, **changes, learning_rate__warmup_steps=0.5), tmp_path / "fine")
    assert "WARNING" not in capfd.readouterr().err
    monkeypatch.setattr(report, "MANY_PASSES", 0)
    run(small_config(small_shards, **changes, learning_rate__warmup_steps=0.5), tmp_path / "many")
    assert "the run reads the corpus" in capfd.readouterr().err
