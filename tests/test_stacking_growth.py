"""What stacking and MSLT copy, carry over and freeze."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import bert
from bert_fast.dropout import draws
from bert_fast.method import Clock, Method
from bert_fast.methods import stacking
from bert_fast.plan import Route, Span, whole
from bert_fast.train import initial_params, optim
from bert_fast.train import state as states
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import make_mesh
from bert_fast.train.step import TrainState, join, make_step, partition
from helpers import reference
from helpers.reference import random_batch, random_params
from helpers.stacking_cases import TINY, of_depth, plain
from helpers.steps import dots

ADAMW = optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, True, 1.0)


# Copies


def entered(method, params, before, after, key=None):
    """(new parameters, new stage, function for the moments), as the engine gets them between two stages."""
    key = jax.random.key(1) if key is None else key
    params, moments, _, new = method.enter(params, (), before, after, None, key)
    return params, new, moments


def layers_of(params, *indices):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[list(indices)], params["layers"])


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (3, 6, [0, 1, 2]),  # as double.py in gonglinyuan/StackingBERT
        (3, 12, [0, 1, 2] * 3),  # as quadruple.py there
        (6, 9, [3, 4, 5]),  # the top 3
        (9, 12, [6, 7, 8]),
        (3, 5, [1, 2]),
        (2, 5, [1, 0, 1]),  # three layers on top of two: a copy of the top layer, then copies of both layers
    ],
)
def test_added_layers_are_copies_of_the_topmost(before, after, expected):
    np.testing.assert_array_equal(stacking.sources(before, after), [*range(before), *expected])


@pytest.mark.parametrize(
    ("variant", "depths"), [("stacking", "3,6"), ("stacking", "2,6"), ("mslt", "3,5"), ("mslt", "2,3")]
)
def test_growth_copies_every_leaf_and_keeps_the_old_layers(variant, depths):
    low, high = map(int, depths.split(","))
    method = stacking.make(variant, depths=depths)
    before, after, *_ = method.stages(plain(of_depth(high)))
    params = random_params(of_depth(low))
    params["layers"]["gain"] = np.arange(low, dtype=np.float32)  # a leaf of another method
    grown, new, _ = entered(method, params, before, after)
    states.check_model("grown", grown, new.program.model)
    added = high - low
    copied = range(low - added, low) if added <= low else [i % low for i in range(added)]
    assert same(layers_of(grown, *range(low)), params["layers"])
    assert same(layers_of(grown, *range(low, high)), layers_of(params, *copied))
    assert same({k: v for k, v in grown.items() if k != "layers"}, {k: v for k, v in params.items() if k != "layers"})


def test_layers_of_uneven_width_are_copied_with_their_widths():
    method = stacking.make("mslt", depths="3,5")
    before, after, joint = method.stages(plain(of_depth(5)))
    slim = of_depth(3, heads=(2, 1, 1), mlp_dim=(32, 16, 24))
    before = dataclasses.replace(before, program=dataclasses.replace(before.program, model=slim))
    grown, new, _ = entered(method, random_params(slim), before, after)
    assert (new.program.model.heads, new.program.model.mlp_dim) == ((2, 1, 1, 1, 1), (32, 16, 24, 16, 24))
    states.check_model("grown", grown, new.program.model)
    _, joint, _ = entered(method, grown, new, joint)
    assert joint.program.model.heads == (2, 1, 1, 1, 1)
    even = dataclasses.replace(slim, heads=(1, 1, 1), mlp_dim=16)
    before = dataclasses.replace(before, program=dataclasses.replace(before.program, model=even))
    assert entered(method, random_params(even), before, after)[1].program.model.heads == 1


def test_random_layers_equal_the_fresh_layers_of_the_deeper_model():
    method = stacking.make("mslt", depths="1,3", init="random")
    before, after, _ = method.stages(plain())
    params = random_params(of_depth(1))
    params["layers"]["gain"] = np.full(1, 7, np.float32)
    grown, _, _ = entered(method, params, before, after)
    fresh = initial_params.fresh(TINY, 1, make_mesh(1, 1, 1, jax.devices()[:1]))
    assert same(layers_of(grown, 0), params["layers"])
    assert grown["layers"].pop("gain").tolist() == [7, 7, 7]
    assert same(layers_of(grown, 1, 2), layers_of(fresh, 1, 2))
    kernels = grown["layers"]["qkv"]["kernel"]
    assert (kernels[1] != kernels[2]).any()
    assert (kernels[1] != kernels[0]).any()


@pytest.mark.parametrize(("variant", "depths"), [("stacking", "2,4"), ("mslt", "2,3")])
def test_identity_layers_change_nothing_in_a_pre_ln_model(variant, depths):
    low, high = map(int, depths.split(","))
    method = stacking.make(variant, depths=depths, init="identity")
    before, after, *_ = method.stages(plain(of_depth(high)))
    params = random_params(of_depth(low))
    grown, _, _ = entered(method, params, before, after)
    batch = random_batch(TINY, 3, 12, 2)
    x_BSD, y_BSD = (
        bert.encode(of_depth(depth), tree, {}, batch, whole(depth), Route(), None)
        for depth, tree in ((low, params), (high, grown))
    )
    np.testing.assert_array_equal(x_BSD, y_BSD)
    # Only the output matrices are zero. The other weights are copies, so the new layers can learn.
    assert same(layers_of(grown, high - 1)["qkv"], layers_of(params, low - 1)["qkv"])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_doubled_model_equals_the_reference_equations(norm):
    method = stacking.make(depths="2,4", learning_rate="run")
    before, after = method.stages(plain(of_depth(4, norm=norm)))
    params = random_params(of_depth(2, norm=norm))
    grown, new, _ = entered(method, params, before, after)
    twice = {**params, "layers": jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), params["layers"])}
    batch = random_batch(TINY, 2, 12, 2)
    x_BSD = bert.encode(new.program.model, grown, {}, batch, new.program.plan, Route(), None)
    logits_BPV = bert.predict(new.program.model, grown, {}, x_BSD, batch["slots"])
    expected_BSD, expected_BPV = reference.forward(new.program.model, twice, batch, whole(4))
    np.testing.assert_allclose(x_BSD, expected_BSD, atol=2e-5)
    np.testing.assert_allclose(logits_BPV[..., : TINY.vocab_size], expected_BPV, atol=2e-5)


# Moments


def test_optimizer_is_fresh_only_if_the_model_grows_or_more_of_it_is_trained():
    method = stacking.make("mslt", depths="1,3")
    stages = method.stages(plain(phases=((16, 0.1), (8, 0.8), (16, 0.1))))
    names = [stage.name for stage in stages]
    assert names == [
        "1-layers/16-tokens", "1-layers/8-tokens", "3-layers/8-tokens", "joint/8-tokens", "joint/16-tokens",
    ]  # fmt: skip
    params = {1: random_params(of_depth(1)), 3: random_params(TINY)}
    fresh = []
    for before, after in itertools.pairwise(stages):
        tree = params[before.program.model.depth]
        params_after, moments, _, new = method.enter(tree, (), before, after, None, jax.random.key(0))
        fresh.append(moments is None)
        assert new == after
        if not fresh[-1]:
            assert params_after is tree
            assert moments(tree) is tree
    assert fresh == [False, True, True, False]


def test_stacking_changes_nothing_where_another_method_slims_the_model():
    method = stacking.make(depths="1,3")
    *_, stage = method.stages(plain())
    slim = dataclasses.replace(stage.program.model, heads=(2, 1, 1), mlp_dim=(32, 8, 8))
    after = dataclasses.replace(stage, program=dataclasses.replace(stage.program, model=slim))
    params = random_params(TINY)
    grown, new, moments = entered(method, params, stage, after)
    assert grown is params
    assert new == after
    assert moments(params) is params


def test_carried_moments_of_new_layers_are_copies_in_stacking_but_zeros_in_mslt_and_for_random_layers():
    for variant, init, expected in (
        ("stacking", "copy", "copies"), ("stacking", "random", "zeros"), ("mslt", "copy", "zeros"),
    ):  # fmt: skip
        method = stacking.make(variant, depths="2,4", optimizer="carry", init=init)
        before, after, *_ = method.stages(plain(of_depth(4)))
        moments = random_params(of_depth(2))
        _, _, of_moments = entered(method, moments, before, after)
        carried = of_moments(moments)
        assert same(layers_of(carried, 0, 1), moments["layers"])
        top = layers_of(carried, 2, 3)
        assert same(top, moments["layers"] if expected == "copies" else jax.tree.map(np.zeros_like, top))
        assert same(carried["mlm"], moments["mlm"])


# What is trained: the program


def of_stage(variant="mslt", index=1, model=TINY, **arguments):
    """(train step, state, program) of one stage."""
    method = stacking.make(variant, **arguments)
    program = method.stages(plain(model))[index].program
    optimizer = optim.make(ADAMW)
    learns, frozen = partition(random_params(program.model), program)
    state = TrainState(jnp.zeros((), jnp.int32), learns, frozen, optimizer.init(learns), ())
    return (
        lambda state, batch: make_step(Method(), optimizer, PRETRAINING)(
            state, batch, Route(), 0.1, np.uint32(0), program
        ),
        state,
        program,
    )


def paths(tree):
    return {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def leaf_at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


@pytest.mark.parametrize("embedding", ["A", "B", "C"])
def test_compiled_steps_change_no_byte_of_frozen_leaves_and_have_no_backward_pass_for_them(embedding):
    step, state, program = of_stage(depths="1,3", embedding=embedding)
    before = join(state.params, state.frozen)
    compiled = jax.jit(step).lower(state, random_batch(TINY, 4, 16, 2)).compile()
    for seed in range(3):
        state, _ = compiled(state, random_batch(TINY, 4, 16, 2, seed))
    after = join(state.params, state.frozen)
    moved = {path for path in paths(before) if not same(leaf_at(before, path), leaf_at(after, path))}
    learning = {path for path in paths(before) if not path.startswith("embed/")}
    learning |= {"embed/word"} if embedding == "A" else set()
    assert moved == learning
    assert ("mlm/word" in learning) == (embedding == "C") == (not program.model.tied)
    # Neither gradients nor weight decay nor moments move the lowest layer.
    assert same(layers_of(before, 0), layers_of(after, 0))
    assert not same(layers_of(before, 1)["qkv"], layers_of(after, 1)["qkv"])
    assert not same(layers_of(before, 2)["qkv"], layers_of(after, 2)["qkv"])
    # Each of the 3 layers has 6 products. The backward pass of the 2 trainable layers has two for each product.
    # The heads have four products, with two each in the backward pass, except that a frozen table gets no gradient.
    assert compiled_dots(compiled) == 3 * 6 + 2 * 12 + 3 * 4 - (embedding == "B")


def compiled_dots(compiled) -> int:
    return len(re.findall(r" = \S+ dot\(", compiled.as_text()))


@pytest.mark.parametrize("embedding", ["A", "B", "C"])
def test_frozen_parameters_have_no_gradient_and_no_moments(embedding):
    step, state, _ = of_stage(depths="1,3", embedding=embedding)
    expected = {path for path in paths(join(state.params, state.frozen)) if not path.startswith("embed/")}
    expected |= {"embed/word"} if embedding == "A" else set()
    assert paths(state.params) == expected
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state.params["layers"])} == {2}
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(state.params)])
    # No array in the program is as large as the whole stack.
    text = str(jax.make_jaxpr(step)(state, random_batch(TINY, 4, 16, 2)))
    assert "f32[2,16,32]" in text
    assert "f32[3,16,32]" not in text


def test_a_frozen_layer_saves_12_matrix_products():
    def written(depths, index, norm="pre"):
        step, state, _ = of_stage(model=of_depth(4, norm=norm), depths=depths, index=index)
        return dots(jax.make_jaxpr(step)(state, random_batch(TINY, 4, 16, 2)).jaxpr)

    # A layer has 6 products (qkv, scores, values, output, two of the feed-forward network). Its backward pass has two
    # for each product. In a pre-LN model, the lowest trainable layer needs all 12, because its LayerNorm learns. In a
    # post-LN model, this layer does not need the product for the gradient of its input. The heads have four products,
    # and the frozen table gets no gradient.
    counts = [written(f"{frozen},4", 1) for frozen in (3, 2, 1)]
    assert counts == [24 + 12 + 11, 24 + 24 + 11, 24 + 36 + 11]
    assert written("2,4", 2) == 24 + 48 + 12
    assert written("2,4", 1, "post") == 24 + 24 + 11 - 1


@pytest.mark.parametrize("frozen_dropout", [True, False])
def test_frozen_layers_and_embeddings_have_dropout_only_if_asked(frozen_dropout):
    model = of_depth(3, dropout=0.3, attention_dropout=0.3)
    method = stacking.make("mslt", depths="2,3", init="identity", frozen_dropout=frozen_dropout)
    before, after, joint = method.stages(plain(model))
    grown, new, _ = entered(method, random_params(of_depth(2)), before, after)
    batch, (learns, frozen) = random_batch(TINY, 3, 12, 2), partition(grown, new.program)

    # The new layer adds nothing, so this is the output of the frozen layers.
    def trunk(seed):
        found = draws(jax.random.key(seed), 3)
        return np.asarray(bert.encode(model, learns, frozen, batch, new.program.plan, Route(), found))

    assert (trunk(0) == trunk(1)).all() != frozen_dropout
    assert new.program.plan == (Span(0, 2, frozen=True, dropout=frozen_dropout), Span(2, 3))
    assert before.program.plan == whole(2)
    assert joint.program.plan == whole(3)


# The state of a run that grows


def test_untied_table_starts_from_the_embeddings_and_is_discarded_in_the_joint_stage():
    mesh, optimizer = make_mesh(1, 1, 1, jax.devices()[:1]), optim.make(ADAMW)
    for carry in ("fresh", "carry"):
        method = stacking.make("mslt", depths="1,3", embedding="C", optimizer=carry)
        first, grown, joint = method.stages(plain())
        assert [stage.program.model.tied for stage in (first, grown, joint)] == [True, False, True]
        state = states.first_state(random_params(first.program.model), method, first, optimizer, mesh)
        noisy = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim else leaf, state.opt_state)
        state = state._replace(opt_state=noisy)
        word_VD = np.asarray(state.params["embed"]["word"])
        state, _ = states.next_state(state, method, first, grown, None, optimizer, 0, mesh)
        np.testing.assert_array_equal(state.params["mlm"]["word"], word_VD)
        mu = next(node.mu for node in state.opt_state if hasattr(node, "mu"))
        assert mu["mlm"]["word"].max() == mu["mlm"]["dense"]["kernel"].max() == float(carry == "carry")
        assert mu["layers"]["qkv"]["kernel"].max() == 0
        learned = {**state.params, "mlm": {**state.params["mlm"], "word": state.params["mlm"]["word"] + 1}}
        state, _ = states.next_state(state._replace(params=learned), method, grown, joint, None, optimizer, 0, mesh)
        assert "word" not in state.params["mlm"]
        np.testing.assert_array_equal(state.params["embed"]["word"], word_VD)
        assert state.frozen == {}
        mu = next(node.mu for node in state.opt_state if hasattr(node, "mu"))
        assert mu["embed"]["word"].max() == 0
        assert mu["mlm"]["dense"]["kernel"].max() == float(carry == "carry")


def test_report_gives_depth_and_number_of_learning_layers():
    method = stacking.make("mslt", depths="1,3")
    _, stage, _ = method.stages(plain())
    report = method.report((), stage, Clock(0, 1), ())
    assert report == {"depth": 3, "learning_layers": 2}
