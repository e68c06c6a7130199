"""EarlyBERT's search, its stages, bad input and config.

Axes: as in methods/early_bert.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import BadInput, methods
from bert_fast.method import chain
from bert_fast.methods.early_bert import make
from bert_fast.plan import edit, whole
from bert_fast.train import optim, settings
from helpers.config_files import CONFIGS, VOCAB, get_config
from helpers.early_bert_cases import (
    CONFIG,
    FIRST,
    PROGRAM,
    UNEVEN,
    leave_search,
    quantile_rule,
    random_coefficients,
    scaled,
)
from helpers.reference import random_params

# --- the search -------------------------------------------------------------------------------------------------------

SEARCHING = dataclasses.replace(FIRST, name="search", steps=40, ask_every=2)


def random_search(method, speed=0.02):
    """Yields (step, state, over, c_LH, c_LF) after every second step of a search of 40 steps.

    The coefficients take a random walk.
    """
    params, state = method.init(random_params(CONFIG), CONFIG)
    c_LH, c_LF = np.ones((3, 4), np.float32), np.ones((3, 20), np.float32)
    rng = np.random.default_rng(0)
    for step in range(2, 42, 2):
        c_LH = c_LH + rng.normal(0, speed, c_LH.shape).astype(np.float32)
        c_LF = c_LF + rng.normal(0, speed, c_LF.shape).astype(np.float32)
        state, over = method.observe(scaled(params, c_LH, c_LF), state, SEARCHING, step)
        yield step, state, over, c_LH, c_LF


def shapes_of(state):
    return jax.tree.map(lambda leaf: (np.shape(leaf), np.asarray(leaf).dtype), state)


@pytest.mark.parametrize("neurons", ["global", "layer"])
def test_masks_and_distances_match_a_numpy_reimplementation(neurons):
    method = make(window=3, neurons=neurons, head_penalty=1e-2, neuron_penalty=1e-3)
    first = method.init(random_params(CONFIG), CONFIG)[1]
    assert method.report(first, SEARCHING, None, ()) == {"heads": [4] * 3, "neurons": [20] * 3}
    fifo = {"head": [], "neuron": []}
    for _, state, _, c_LH, c_LF in random_search(method):
        report = method.report(state, SEARCHING, None, ())
        assert shapes_of(state) == shapes_of(first)
        for name, c_LU, ratio, together, penalty in (
            ("head", c_LH, 0.333333, False, 1e-2),
            ("neuron", c_LF, 0.4, neurons == "global", 1e-3),
        ):
            fifo[name] = masks = [*fifo[name], quantile_rule(c_LU, ratio, together)][-3:]
            assert report[f"{name}s"] == masks[-1].sum(1).tolist()
            assert report[f"{name}_penalty"] == pytest.approx(penalty * np.abs(c_LU.astype(float)).sum(), rel=1e-5)
            if len(masks) > 1:
                apart = [(masks[-1] != older).mean() for older in masks[:-1]]
                assert report[f"{name}_distance"] == pytest.approx(apart[-1])
                assert report[f"{name}_distance_max"] == pytest.approx(max(apart))
            else:
                assert f"{name}_distance" not in report


def test_search_ends_when_all_neuron_masks_agree_but_not_before_min_steps():
    held = {}
    for least in (1, 30):
        method = make(stop="early_bird", window=3, threshold=0.1, min_steps=least)
        masks, held[least], wanted = [], [], []
        for step, _, over, _, c_LF in random_search(method):
            masks = [*masks, quantile_rule(c_LF, 0.4, True)][-3:]
            agree = len(masks) == 3 and all((masks[-1] != older).sum() <= 6 for older in masks[:-1])  # 0.1 of 60
            wanted.append(agree and step >= least)
            held[least].append(over)
        assert held[least] == wanted
        assert len(set(wanted)) == 2
    assert any(held[1][:14])


def test_search_ends_early_only_after_half_of_its_steps_and_never_if_its_length_is_fixed():
    for stop, window, expected in (("early_bird", 2, 20), ("early_bird", 14, 28), ("steps", 2, None)):
        method = make(stop=stop, window=window, threshold=1.0)
        held = [step for step, _, over, _, _ in random_search(method) if over]
        assert held == ([] if expected is None else list(range(expected, 42, 2)))


def test_stopping_criterion_ignores_the_heads():
    method = make(stop="early_bird", window=2, threshold=0.0, min_steps=1)
    params, state = method.init(random_params(CONFIG), CONFIG)
    c_LH, c_LF = random_coefficients(CONFIG)
    for coefficients in ((c_LH, c_LF), (-c_LH, c_LF)):
        state, over = method.observe(scaled(params, *coefficients), state, SEARCHING, 2)
    assert method.report(state, SEARCHING, None, ())["head_distance"] > 0
    assert over


def test_nothing_is_searched_after_the_ticket_is_drawn():
    method = make(stop="early_bird", window=2, threshold=1.0, min_steps=1)
    *_, (step, state, over, c_LH, c_LF) = random_search(method)
    assert over
    slim, stage, after = leave_search(method, scaled(random_params(CONFIG), c_LH, c_LF), state)
    widths = {"heads": [3, 3, 3], "neurons": list(stage.program.model.mlp_dim_L)}
    assert method.report(after, stage, None, ()) == widths
    seen, over = method.observe(slim, after, stage, step + 1)
    assert not over
    assert shapes_of(seen) == shapes_of(after) == shapes_of(state)
    assert method.report(seen, stage, None, ()) == widths


def test_entering_another_stage_of_the_search_changes_nothing():
    method = make()
    *_, (_, state, _, c_LH, c_LF) = random_search(method)
    params = scaled(random_params(CONFIG), c_LH, c_LF)
    unchanged, moments, after, new = method.enter(params, state, SEARCHING, SEARCHING, None, None)
    assert new == SEARCHING
    assert after is state
    assert unchanged is params
    assert moments(params) is params


def not_pruned(stage):
    """The stage with the model's own widths instead of a guess."""
    program = dataclasses.replace(stage.program, model=CONFIG)
    return dataclasses.replace(stage, program=program, guess=False)


def test_search_runs_the_first_steps_of_the_training_schedule():
    second = dataclasses.replace(FIRST, name="second", program=dataclasses.replace(PROGRAM, seq_len=16), steps=100)
    searching, first, last = make(search=0.1).stages((FIRST, second))
    assert searching == dataclasses.replace(FIRST, name="search", steps=30, ask_every=2)
    # Widths are a guess until the ticket is drawn: a third of the heads and two fifths of the neurons are pruned.
    for stage, plain in ((first, dataclasses.replace(FIRST, data="restart")), (last, second)):
        assert stage.guess
        assert stage.program.model.heads_L == (3, 3, 3)
        assert sum(stage.program.model.mlp_dim_L) == 36
        assert not_pruned(stage) == plain
    assert not searching.guess
    searching, *_ = make(search=60.0, stop="early_bird", mask_every=7).stages((FIRST, second))
    assert (searching.steps, searching.ask_every) == (60, 7)


def test_draw_before_update_uses_the_coefficients_that_the_released_code_for_glue_records():
    """The released code records the coefficients before each update. With `slimming_coef_step` t, it uses record t - 1,
    counted from 0.
    """
    updates = np.random.default_rng(0).normal(size=(40, 3, 20))
    for t in (3, 20, 40):
        c_LF, records = np.ones((3, 20)), []
        for update in updates[:t]:
            records.append(c_LF)
            c_LF = c_LF + update
        searching, training = make(search=float(t), draw_before_update=True).stages((FIRST,))
        found = np.ones((3, 20))
        for update in updates[: searching.steps]:
            found = found + update
        np.testing.assert_array_equal(found, records[t - 1])
        assert not_pruned(training) == dataclasses.replace(FIRST, data="restart")
        assert searching.ask_every == make(search=float(t)).stages((FIRST,))[0].ask_every


def test_later_stages_keep_the_widths_of_the_ticket_unless_they_change_the_depth():
    method = make()
    plain = random_params(CONFIG)
    state = method.init(plain, CONFIG)[1]
    narrow = dataclasses.replace(FIRST, program=dataclasses.replace(PROGRAM, model=UNEVEN))
    unchanged, moments, after, new = method.enter(plain, state, narrow, FIRST, None, None)
    assert new.program.model == UNEVEN
    assert unchanged is plain
    assert moments(plain) is plain
    assert after is state
    deeper = dataclasses.replace(CONFIG, depth=5, mlp_dim=(20, 7, 12, 7, 12))
    grown = dataclasses.replace(FIRST, program=dataclasses.replace(PROGRAM, model=deeper, plan=whole(5)))
    assert method.enter(plain, state, narrow, grown, None, None)[3] == grown


def test_method_asks_to_keep_the_initial_weights():
    assert make().needs_initial
    assert chain(make()).needs_initial


# --- bad input and the config -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search": 0.0}, "early_bert.search=0.0: expected steps"),
        ({"search": 1.5}, "early_bert.search=1.5"),
        ({"search": -3.0}, "early_bert.search=-3.0"),
        ({"stop": "early"}, "early_bert.stop='early' is unknown: use steps or early_bird"),
        ({"neurons": "all"}, "neurons='all' is unknown: use global or layer"),
        ({"ticket": "lucky"}, "ticket='lucky' is unknown: use early_bird or random"),
        ({"mask_every": -1}, "mask_every=-1"),
        ({"window": 1}, "window=1: expected at least 2"),
        ({"threshold": 2.0}, "threshold=2.0"),
        ({"min_steps": -1}, "min_steps=-1"),
        ({"head_ratio": 1.0}, "head_ratio=1.0"),
        ({"neuron_ratio": -0.1}, "neuron_ratio=-0.1"),
        ({"align": 0}, "align=0"),
        ({"head_penalty": -1.0}, "head_penalty=-1.0"),
        ({"neuron_penalty": float("nan")}, "neuron_penalty=nan"),
        (
            {"draw_before_update": True, "stop": "early_bird"},
            "stop=early_bird the search may end at any mask: set draw_before_update=False",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        make(**arguments)


FROZEN = dataclasses.replace(FIRST, program=dataclasses.replace(PROGRAM, plan=edit(whole(3), 0, 1, frozen=True)))


@pytest.mark.parametrize(
    ("arguments", "timeline", "message"),
    [
        ({}, (FIRST, dataclasses.replace(FIRST, data="restart")), "one search and one training"),
        ({}, (FROZEN,), "stage first are frozen.*before the method that freezes"),
        ({"search": 300.0}, (FIRST,), "search=300 is more than the 200 steps of training: lower it"),
        (
            {"search": 1.0, "draw_before_update": True},
            (FIRST,),
            "learning rate is 0 in all 0 steps before",
        ),
        ({"search": 1.0}, (FIRST,), "search=1.0: the learning rate is 0 in all 1 steps before.*beyond the warm-up"),
        (
            {"search": 20.0, "stop": "early_bird", "mask_every": 5},
            (FIRST,),
            "search of 20 steps is too short: 5 masks, 5 steps apart, take 25",
        ),
        ({"search": 20.0, "stop": "early_bird", "min_steps": 30}, (FIRST,), "min_steps is 30.*lower"),
    ],
)
def test_timelines_that_cannot_hold_the_search_are_refused(arguments, timeline, message):
    with pytest.raises(BadInput, match=message):
        make(**arguments).stages(timeline)


def test_frozen_layers_after_the_ticket_are_allowed():
    assert not_pruned(make().stages((FIRST, FROZEN))[-1]) == FROZEN


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_parameters_other_than_float32_are_refused(dtype):
    params = random_params(CONFIG)
    params["layers"]["mlp_output"]["kernel"] = params["layers"]["mlp_output"]["kernel"].astype(dtype)
    with pytest.raises(BadInput, match=rf"mlp_output.*{np.dtype(dtype).name}.*float32"):
        make().init(params, CONFIG)


def config_of(text):
    config = get_config(next(path for path in CONFIGS if path.stem == "early_bert"))(text).to_dict()
    return config, settings.make(config, VOCAB, tuple(methods.known()))


def test_config_is_the_recipe_of_bert_with_the_released_ratios():
    config, made = config_of("")
    plain = get_config(next(path for path in CONFIGS if path.stem == "bert"))("").to_dict()
    assert config.pop("methods") == "early_bert"
    plain.pop("methods")
    assert config == plain
    ((name, arguments),) = made.methods
    assert name == "early_bert"
    assert (arguments["head_ratio"], arguments["neuron_ratio"], arguments["neurons"]) == (0.333333, 0.4, "global")
    assert (arguments["head_penalty"], arguments["neuron_penalty"]) == (1e-4, 1e-4)
    assert (arguments["search"], arguments["stop"], arguments["ticket"]) == (0.05, "steps", "early_bird")
    assert (arguments["window"], arguments["threshold"], arguments["align"]) == (5, 0.1, 1)


def test_lamb_recipe_is_the_recipe_of_nvidia_with_a_single_schedule():
    _, made = config_of("recipe=lamb")
    assert made.optimizer == optim.Optimizer("lamb", 0.9, 0.999, 1e-6, 0.01, True, 1.0)
    assert made.phases == ((128, 0.9, None), (512, 0.1, None))
    assert round(made.steps * 0.9) == 7_038
    assert (made.steps - 7_038) * made.batch_size == pytest.approx(1_563 * 32_768, rel=1e-3)
    assert made.batch_size == 65_536
    rate = made.schedule
    assert rate(1_000) == pytest.approx(3e-3)
    assert rate(1_999) == pytest.approx(6e-3, rel=1e-3)
    # `PolyWarmUpScheduler`: base_lr * (1 - progress) ** 0.5, with progress counted from step 0.
    assert rate(3_910) == pytest.approx(6e-3 * 0.5**0.5)
    assert round(dict(made.methods)["early_bert"]["search"] * made.steps) == 391


def test_unknown_recipe_is_refused():
    with pytest.raises(BadInput, match=r"recipe='adam'.*bert or recipe=lamb"):
        config_of("recipe=adam")
