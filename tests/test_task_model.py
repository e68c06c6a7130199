"""The encoder with a head: logits, losses, and the weights that it starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast.plan import Route
from bert_fast.tasks import batches, encoder, model
from bert_fast.train import checkpoint
from bert_fast.train.step import TrainState, make_step
from helpers.made_tasks import (
    make_encoder,
    make_settings,
    make_trainer,
    write_glue,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"), ("mrpc", "stsb"), train=150, dev=40)


@pytest.fixture(scope="module")
def trainer(folder, tmp_path_factory):
    """A trainer for MRPC, with two widths and some dropout."""
    return make_trainer(tmp_path_factory.mktemp("encoder"), folder, dropout=0.1)


@pytest.mark.parametrize("kind", ["classes", "tags", "span"])
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
    if kind != "classes":
        narrow, wide = (np.concatenate([logits[0, :5], logits[1, :4]]) for logits in found)  # without padding
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


def test_loss_of_tags_is_the_mean_over_the_labels_of_the_batch():
    head = model.Head("tags", 2)
    logits_BS2 = jnp.log(jnp.array([[[0.2, 0.8], [0.5, 0.5], [0.6, 0.4]], [[0.1, 0.9], [0.3, 0.7], [0.5, 0.5]]]))
    labels_BS = jnp.array([[1, batches.NO_LABEL, 0], [batches.NO_LABEL, 0, batches.NO_LABEL]])
    wanted = [-np.log(0.8) - np.log(0.6), -np.log(0.3)]
    np.testing.assert_allclose(model.losses(head, logits_BS2, labels_BS), wanted, rtol=1e-6)
    assert model.objective(head).totals(None, {"tags": labels_BS}) == 3


def test_padding_examples_have_no_weight(trainer):
    """A batch of 2 examples and 6 padding examples gives the same step as a batch of 2 examples."""
    rows = trainer.task.train
    engine = trainer.engine(1.0, 0)
    engine.begin(trainer.first_params(0))
    state, program, objective = engine.state, engine.stage.program, model.objective(trainer.task.head)
    step = jax.jit(make_step(trainer.method, trainer.optimizer, objective), static_argnames="program")
    results = []
    for size in (2, 8):
        batch = batches.fill(rows, batches.Batch(trainer.widths[-1], np.array([3, 4])), size, trainer.start.vocab.pad)
        # Dropout is off, because its masks are drawn for the batch size of the program.
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
    trainer = make_trainer(tmp_path, folder, "stsb", shape=changes)
    program = trainer.timeline(1.0)[0].program
    assert all(span.queries is span.keys is None and not span.frozen for span in program.plan)
    params = jax.eval_shape(
        lambda: model.init(trainer.start.model, trainer.task.head, trainer.start.params, jax.random.key(0))
    )
    assert "mlm" not in params
    batch = batches.fill(trainer.task.train, batches.Batch(trainer.widths[-1], np.arange(8)), 8, 0)
    found = jax.eval_shape(
        lambda p: model.logits(trainer.start.model, trainer.task.head, p, batch, program.plan, None), params
    )
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
        ("mlm", {"init": "deleted"}, False),
        ("mlm", {"imported": {"initialised": ["next-sentence head"]}}, True),
        ("mlm+nsp", {"imported": {"initialised": ["pooler", "next-sentence head"]}}, False),
    ],
)
def test_only_a_trained_pooler_is_taken_over(tmp_path, objective, about, learned):
    save_encoder(tmp_path / "run", objective, **about)
    settings, _ = make_settings("glue")
    for path in (tmp_path / "run", save_encoder(tmp_path / "more", "mlm", init=str(tmp_path / "run"))):
        assert ("next" in encoder.load(str(path), "", settings).params) == learned
    save_encoder(tmp_path / "without", "mlm", {"pooler": False})
    fresh = save_encoder(tmp_path / "fresh", "mlm", init=str(tmp_path / "without"))
    assert "next" not in encoder.load(str(fresh), "", settings).params


def save_encoder(root, objective, shape=(), **about):
    """Writes a run folder with a model that was trained for this objective. It has a pooler unless `shape` says
    otherwise.
    """
    root.mkdir()
    made = make_encoder(root, **{"pooler": True, **dict(shape)})
    stage = dataclasses.replace(made.about.stage, program=dataclasses.replace(made.program, objective=objective))
    described = dataclasses.replace(made.about, stage=stage, **about)
    state = TrainState(np.array(0, np.int32), made.params, {}, (), ())
    checkpoint.save(root / "checkpoints", state, described, set())
    return root


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
