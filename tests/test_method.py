"""The hooks of a method: the loop runs a method that uses all of them, and `chain` composes methods."""

import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import BadInput, encoder, methods
from bert_fast.method import Method, chain, same
from bert_fast.plan import edit, whole
from bert_fast.train import checkpoint
from bert_fast.train.log import read_rows
from helpers.interruption import interrupted
from helpers.small_runs import rows_without_clock, run, small_config


def grow(params):
    """Adds a copy of the top layer."""
    more = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[-1:]]), params["layers"])
    return {**params, "layers": more}


def make(begin=1, rewind=False, fresh=False):
    """A method that uses every hook of a run: it grows the model by a layer, freezes the lower layers, drops a layer
    in every other step, orders tokens, scales attention by its own parameter, and counts steps.
    """

    def init(params, config):
        gain = jnp.ones((config.depth,))
        return {**params, "layers": {**params["layers"], "gain": gain}}, {
            "count": jnp.zeros((), jnp.int32),
            "seen": jnp.zeros((), jnp.int32),
        }

    def stages(stages):
        first = stages[0]
        small = dataclasses.replace(first.program.model, depth=begin)
        low = dataclasses.replace(first.program, model=small, plan=whole(begin))
        high_model = dataclasses.replace(small, depth=begin + 1)
        high = dataclasses.replace(first.program, model=high_model, plan=edit(whole(begin + 1), 0, begin, frozen=True))
        kept = edit(high.plan, begin, begin + 1, queries=8, keys=None)
        return (
            dataclasses.replace(first, name="low", program=low, steps=30, ask_every=5),
            dataclasses.replace(first, name="high", program=dataclasses.replace(high, plan=kept), steps=10),
            dataclasses.replace(
                first,
                name="joint",
                program=dataclasses.replace(high, plan=whole(begin + 1), frozen_paths=()),
                steps=10,
                data="restart",
                schedule_from="stage",
            ),
        )

    def enter(params, state, old, new, initial, key):
        if new.name == "joint":
            return params, None if fresh else same, state, new
        source = initial() if rewind else params
        return grow({**params, "layers": source["layers"]}), grow, state, new

    def draw(stage, clock, rng):
        if stage.program.model.depth == begin:
            return None
        scale_ML = np.ones((stage.program.micro_batches, begin + 1), np.float32)
        if clock.step % 2:
            scale_ML[:, 0] = 0
        return scale_ML

    def order(state, batch, program, key):
        return {**batch, "ids": batch["ids"] + 0 * state["count"]}

    def weights(params):
        layers = dict(params.get("layers", {}))
        if "gain" not in layers:
            return params, 0.0
        gain_L = layers.pop("gain")
        output = layers["attention_output"]
        scaled = {**output, "kernel": output["kernel"] * gain_L[:, None, None, None]}
        return {**params, "layers": {**layers, "attention_output": scaled}}, 0.01 * jnp.abs(gain_L).sum()

    def update(state, params, batch, losses):
        return {**state, "count": state["count"] + 1}

    def report(state, stage, clock, pieces):
        return {
            "count": int(state["count"]),
            "seen": int(state["seen"]),
            "clock": clock.step,
            "of": clock.steps,
            "pieces": len(pieces),
        }

    def observe(params, state, stage, step):
        assert jax.tree.leaves(params["layers"])[0].shape[0] == stage.program.model.depth
        assert step == int(state["count"])
        return {**state, "seen": state["seen"] + 1}, int(state["count"]) >= 10

    return Method(
        name="dummy",
        needs_initial=True,
        init=init,
        stages=stages,
        observe=observe,
        enter=enter,
        draw=draw,
        order=order,
        weights=weights,
        update=update,
        report=report,
    )


@pytest.fixture
def dummy(monkeypatch):
    """Registers the method above as if it were a file in methods/."""
    module = types.ModuleType("dummy")
    module.make = make
    known = methods.known
    monkeypatch.setattr(methods, "known", lambda: {**known(), "dummy": make})
    monkeypatch.setitem(sys.modules, "bert_fast.methods.dummy", module)


def dummy_config(small_shards, **changes):
    return small_config(
        small_shards, methods="dummy", phases="16:1", log_every=5, checkpoint__every=0, checkpoint__keep=100, **changes
    )


@pytest.mark.slow
def test_method_that_uses_every_hook_runs_through_the_loop_and_resumes(dummy, small_shards, tmp_path, monkeypatch):
    config = dummy_config(small_shards, eval__every=0)
    summary = run(config, tmp_path / "whole")
    rows = read_rows(tmp_path / "whole/metrics.jsonl")
    train = [row for row in rows if row["split"] == "train"]
    # The first stage ends early: `observe` sees a count of 10 at its second call.
    assert [(row["step"], row["stage"]) for row in train] == [
        (5, "low"), (10, "low"), (15, "high"), (20, "high"), (25, "joint"), (30, "joint"),
    ]  # fmt: skip
    assert summary["steps"] == 30
    assert train[-1]["dummy/count"] == 30
    assert train[-1]["dummy/seen"] == 2
    # The clock restarts with the data. Its total includes all planned steps of a stage that ended early.
    assert [(row["dummy/clock"], row["dummy/of"]) for row in train] == [
        (4, 40), (9, 40), (14, 40), (19, 40), (4, 10), (9, 10),
    ]  # fmt: skip
    assert train[0]["loss"] > train[0]["mlm_loss"] + train[0]["nsp_loss"] + 0.009  # the penalty
    assert summary["flops"] < summary["flops_dense"]
    assert (tmp_path / "whole/checkpoints/0").is_dir()
    # "restart" reads the data from its first example again; "continue" reads the examples that come next.
    assert checkpoint.about(tmp_path / "whole/checkpoints/30").counters.data == {"mlm+nsp/16": 10 * 8}
    # One run is interrupted inside the stage with a frozen layer, another where this stage begins.
    for at_step in (13, 10):
        workdir = tmp_path / f"stopped-{at_step}"
        interrupted(config, workdir, at_step, monkeypatch)
        run(config, workdir)
        assert rows_without_clock(workdir) == rows_without_clock(tmp_path / "whole")
        a, b = (checkpoint.restore_params(folder / "checkpoints/30") for folder in (workdir, tmp_path / "whole"))
        assert jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), a, b))


# The run is not stopped, or stops between the two calls of `observe`, or stops at both calls.
@pytest.mark.parametrize(
    "stops", [pytest.param((), marks=pytest.mark.slow), pytest.param((7,), marks=pytest.mark.slow), (5, 10)]
)
def test_observe_is_called_exactly_once_at_each_requested_step(dummy, small_shards, tmp_path, monkeypatch, stops):
    asked, known = [], methods.known

    @functools.wraps(make)
    def asking(**arguments):
        method = make(**arguments)

        def observe(params, state, stage, step):
            asked.append((stage.name, step))
            return method.observe(params, state, stage, step)

        return method._replace(observe=observe)

    monkeypatch.setattr(methods, "known", lambda: {**known(), "dummy": asking})
    config = dummy_config(small_shards, eval__every=0)
    for at_step in stops:
        interrupted(config, tmp_path, at_step, monkeypatch)
    run(config, tmp_path)
    assert asked == [("low", 5), ("low", 10)]


def test_frozen_layers_do_not_change_and_have_no_optimizer_state(dummy, small_shards, tmp_path, monkeypatch):
    config = dummy_config(small_shards, eval__every=0)
    interrupted(config, tmp_path, 10, monkeypatch)
    before = checkpoint.restore_params(tmp_path / "checkpoints/10")["layers"]
    interrupted(config, tmp_path, 19, monkeypatch)
    kept = checkpoint.shapes(tmp_path / "checkpoints/19")
    learns, frozen = kept["params"], kept["frozen"]
    after = checkpoint.restore_params(tmp_path / "checkpoints/19")["layers"]
    assert jax.tree.all(jax.tree.map(lambda a, b: a[0].tobytes() == b[0].tobytes(), before, after))
    assert any((a[0] != b[1]).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(frozen["layers"])} == {1}
    assert {leaf.shape[0] for leaf in jax.tree.leaves(learns["layers"])} == {1}


def test_rewinding_restores_the_weights_of_step_0(dummy, small_shards, tmp_path, monkeypatch):
    config = dummy_config(small_shards, eval__every=0, dummy={"rewind": True})
    interrupted(config, tmp_path, 11, monkeypatch)
    learned = checkpoint.restore_params(tmp_path / "checkpoints/11")["layers"]
    first = checkpoint.restore_params(tmp_path / "checkpoints/0")["layers"]
    np.testing.assert_array_equal(learned["qkv"]["kernel"][0], first["qkv"]["kernel"][0])


def test_chain_composes_in_order():
    def adds(value):
        return Method(
            name=f"m{value}",
            init=lambda params, config: ({**params, value: value}, value),
            stages=lambda stages: (*stages, value),
            observe=lambda params, state, stage, step: (state + value, state == 2 and step == 3),
            enter=lambda params, state, old, new, initial, key: (
                params + [value],
                lambda m: m + [value],
                state + 10,
                new + [len(params)],
            ),
            draw=lambda stage, clock, rng: np.full((1, 2), float(value)),
            order=lambda state, batch, program, key: batch + [state],
            weights=lambda params: (params * value, 0.5 * value),
            update=lambda state, params, batch, losses: state + 1,
            report=lambda state, stage, clock, pieces: {"seen": state},
        )

    both = chain(adds(2), adds(3), Method())
    assert both.init({}, None) == ({2: 2, 3: 3}, (2, 3, ()))
    assert both.stages(()) == (2, 3)
    assert both.observe(None, (2, 3, ()), None, 3) == ((4, 6, ()), True)
    assert both.observe(None, (2, 3, ()), None, 4) == ((4, 6, ()), False)
    params, moments, states, new = both.enter([], (2, 3, ()), None, [], None, None)
    assert (params, moments([]), states, new) == ([2, 3], [2, 3], (12, 13, ()), [0, 1])
    np.testing.assert_array_equal(both.draw(None, None, np.random.default_rng(0)), np.full((1, 2), 6.0))
    assert both.order((2, 3, ()), [], None, jax.random.key(0)) == [2, 3]
    assert both.weights(1) == (6, 2.5)
    assert both.update((2, 3, ()), None, None, None) == (3, 4, ())
    assert both.report((2, 3, ()), None, None, ()) == {"m2/seen": 2, "m3/seen": 3}


def test_the_chain_gets_a_fresh_optimizer_if_one_method_asks_for_it():
    fresh = Method(enter=lambda params, state, old, new, initial, key: (params, None, state, new))
    for both in (chain(Method(), fresh), chain(fresh, Method())):
        _, moments, _, _ = both.enter({}, ((), ()), None, None, None, None)
        assert moments is None


def test_empty_chain_changes_nothing():
    nothing = chain()
    assert nothing.draw(None, None, np.random.default_rng(0)) is None
    assert nothing.weights("p") == ("p", 0.0)
    assert nothing.stages(("s",)) == ("s",)
    assert nothing.observe("p", (), "s", 1) == ((), False)
    params, moments, state, new = nothing.enter("p", (), "old", "new", None, None)
    assert (params, moments("m"), state, new) == ("p", "m", (), "new")
    assert not nothing.needs_initial


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that makes a package with one method, as if it were installed."""
    monkeypatch.syspath_prepend(tmp_path)
    methods.modules.cache_clear()

    def install(name: str, code: str):
        (tmp_path / f"{name}_package.py").write_text(code)
        about = tmp_path / f"{name}_package-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{methods.GROUP}]\n{name} = {name}_package\n")

    yield install
    methods.modules.cache_clear()


FIFTH = """
from bert_fast.method import Method

RENAMED = {"old": "share"}


def make(share: float = 0.25) -> Method:
    return Method(name="fifth", report=lambda *_: {"share": share})
"""


def test_method_of_another_package_is_found_configured_and_used(installed, small_shards, tmp_path):
    installed("fifth", FIFTH)
    config = small_config(small_shards, methods="fifth,token_drop", fifth__share=0.5, steps=4, log_every=2)
    run(config, tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if row["split"] == "train"]
    assert [row["fifth/share"] for row in rows] == [0.5, 0.5]
    assert methods.renamed()["fifth.old"] == "fifth.share"
    assert encoder.load(tmp_path / "run").about.methods[0] == ("fifth", {"share": 0.5})


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("layer_drop", FIFTH, "the method 'layer_drop' of layer_drop-package has the name of another method"),
        ("sixth", "import nowhere_to_be_found", "sixth-package cannot be imported from sixth_package .*nowhere"),
        ("sixth", "x = 1", "sixth-package: sixth_package has no function `make`"),
    ],
)
def test_broken_method_of_another_package_is_named(installed, name, code, message):
    installed(name, code)
    with pytest.raises(BadInput, match=message):
        methods.known()


def test_method_that_is_not_installed_is_refused_by_name():
    with pytest.raises(BadInput, match="the method 'gone' is not installed: install the package that provides it"):
        methods.make([("gone", {})])
