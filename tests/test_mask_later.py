"""3ML, in which [MASK] tokens skip the lower layers: plan, order of tokens, runs, and a comparison with NumPy."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_fast import BadInput, bert
from bert_fast.methods import mask_later
from bert_fast.plan import Route, Span, edit, whole
from helpers import reference
from helpers.interruption import interrupted
from helpers.small_runs import rows_without_clock, run, small_config
from helpers.token_drop_cases import BATCH, CLS, MASK, POST, SEP, reference_layer, stage_of


def planned(model=POST, **arguments):
    (stage,) = mask_later.make(**arguments).stages((stage_of(model),))
    return stage.program


def ordered(batch=BATCH):
    return mask_later.make().order((), batch, planned(), None)


def test_lower_layers_see_a_prefix_and_upper_layers_see_everything():
    assert planned().plan == (Span(0, 2, queries=10, keys=10), Span(2, 4))
    assert planned(layers=0.75, left_out=1.0).plan == (Span(0, 3, queries=9, keys=9), Span(3, 4))


def masked_batch():
    """Three examples, with two, two and no [MASK] tokens. The second and the third have padding."""
    ids_BS = np.array(BATCH["ids"])
    ids_BS[ids_BS == MASK] = 7
    ids_BS[0, [2, 7]], ids_BS[1, [6, 9]], ids_BS[:, 4] = MASK, MASK, SEP
    return {**BATCH, "ids": ids_BS}


def test_mask_tokens_come_last_and_cls_and_sep_first():
    batch = masked_batch()
    found = ordered(batch)
    assert np.asarray(found["ids"])[0, -2:].tolist() == [MASK, MASK]
    framing = {CLS, SEP}
    for ids_S, segments_S, before_S in zip(found["ids"], found["segments"], batch["ids"], strict=True):
        count = sum(int(i) in framing for i in before_S)
        assert all(int(i) in framing for i in ids_S[:count])
        assert np.all(np.diff(np.asarray(segments_S == 0).astype(int)) >= 0)  # padding is last
    for name in ("slots", "cls"):
        before = np.take_along_axis(batch["ids"], batch[name].reshape(3, -1), 1)
        after = np.take_along_axis(np.asarray(found["ids"]), np.asarray(found[name]).reshape(3, -1), 1)
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("norm", [pytest.param("post", marks=pytest.mark.slow), "pre"])
def test_hidden_states_equal_numpy(norm):
    model = dataclasses.replace(POST, norm=norm)
    params = bert.init(model, jax.random.key(0))
    batch = masked_batch()
    found = ordered(batch)
    x_BSD = bert.encode(model, params, {}, found, planned(model).plan, Route(), None)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for b in range(3):
        one = {name: np.asarray(x[b]) for name, x in found.items()}
        embed, segments_S = exact["embed"], one["segments"]
        x_SD = embed["word"][one["ids"]] + embed["position"][one["positions"]] + embed["type"][one["types"]]
        x_SD = reference.norm(x_SD, embed["norm"], model.norm_eps)
        for i in range(4):
            layer, end = jax.tree.map(lambda leaf, i=i: leaf[i], exact["layers"]), 10 if i < 2 else 12
            low = x_SD[:end]
            allowed = segments_S[:end, None] == segments_S[:end]
            x_SD = np.concatenate([reference_layer(model, layer, low, low, allowed), x_SD[end:]])
        if norm == "pre":
            x_SD = reference.norm(x_SD, exact["final_norm"], model.norm_eps)
        np.testing.assert_allclose(x_BSD[b], x_SD, atol=2e-5)


def test_lower_layers_do_not_depend_on_the_embedding_of_the_mask_token():
    """The first example has two [MASK] tokens. The lower layers leave out both of them."""
    params = bert.init(POST, jax.random.key(0))
    other = {**params, "embed": {**params["embed"], "word": params["embed"]["word"].at[MASK].add(1.0)}}
    model, batch = dataclasses.replace(POST, depth=2), ordered(masked_batch())
    two = [
        bert.encode(
            model,
            {**p, "layers": jax.tree.map(lambda x: x[:2], p["layers"])},
            {},
            batch,
            planned().plan[:1],
            Route(),
            None,
        )
        for p in (params, other)
    ]
    np.testing.assert_array_equal(two[0][0, :10], two[1][0, :10])
    assert not np.array_equal(two[0][0, 10:], two[1][0, 10:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0.0}, "mask_later.layers=0.0: expected a share"),
        ({"left_out": 1.5}, "mask_later.left_out=1.5: expected a share"),
        ({"layers": 1.0}, "leaves out 2 positions in 4 of 4 layers"),
        ({"left_out": 0.1}, "leaves out 0 positions in 2 of 4 layers"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        planned(**arguments)


def test_stage_of_one_layer_leaves_nothing_out():
    stage = stage_of()
    model = dataclasses.replace(stage.program.model, depth=1)
    program = dataclasses.replace(stage.program, model=model, plan=whole(1))
    one = dataclasses.replace(stage, program=program)
    assert mask_later.make().stages((one,))[0].program.plan == whole(1)


def test_tokens_are_not_left_out_twice():
    stage = stage_of()
    program = dataclasses.replace(stage.program, plan=edit(whole(4), 1, 3, queries=6))
    with pytest.raises(BadInput, match="another method already leaves out tokens"):
        mask_later.make().stages((dataclasses.replace(stage, program=program),))


@pytest.mark.slow
def test_run_learns_and_resumes_exactly(small_shards, tmp_path, monkeypatch):
    config = small_config(small_shards, methods="mask_later", phases="32:1", steps=10, data__masked_share=0.3)
    config |= {"log_every": 5, "eval": {**config["eval"], "every": 5}}
    config["checkpoint"]["every"] = 4
    summary = run(config, tmp_path / "whole")
    assert summary["flops"] < summary["flops_dense"]
    interrupted(config, tmp_path / "parts", 6, monkeypatch)
    run(config, tmp_path / "parts")
    assert rows_without_clock(tmp_path / "parts") == rows_without_clock(tmp_path / "whole")
