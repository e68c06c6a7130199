"""Token dropping: its scores, its report and bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_fast import BadInput, bert, methods
from bert_fast.configs import token_drop as token_drop_config
from bert_fast.method import Clock, Method, Program, chain
from bert_fast.methods import token_drop
from bert_fast.plan import Route, edit, whole
from bert_fast.train import optim
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.step import TrainState, make_step
from helpers import reference
from helpers.token_drop_cases import (
    BATCH,
    CLS,
    KEPT,
    MASK,
    PAD,
    POST,
    REAL_BS,
    SCORE_V,
    SEP,
    UNK,
    ordered,
    packed_batch,
    planned,
    reference_dropped,
    stage_of,
)

# The scores


def learned(score_V, losses_BP, batch=BATCH, **arguments):
    """The table of scores, after one batch with these losses."""
    losses = bert.Losses(jnp.asarray(losses_BP, jnp.float32), None, None, None)
    return np.asarray(token_drop.make(**arguments).update(score_V, {}, batch, losses))


LOSSES_BP = np.array([[2, 3, 4], [5, 6, 7], [8, 9, 10.5]])


def test_scores_start_high_and_special_ids_are_pinned():
    params = {"any": 0}
    same, score_V = token_drop.make().init(params, POST)
    assert same is params
    assert score_V.shape == (POST.table_rows,)
    assert score_V.dtype == jnp.float32
    pinned = {PAD: -1e4, UNK: 1e4, CLS: 1e4, SEP: 1e4, MASK: 1e4}
    assert {v: float(score_V[v]) for v in pinned} == pinned
    assert set(np.delete(np.asarray(score_V), list(pinned)).tolist()) == {10.0}
    other = dataclasses.replace(POST, special_ids=(7, 8, 9, 10, 11))
    assert float(token_drop.make().init({}, other)[1][7]) == -1e4


def test_one_loss_moves_a_score_by_their_difference_times_one_minus_beta():
    _, score_V = token_drop.make().init({}, POST)
    batch = {**BATCH, "labels": np.array([[5]]), "weights": np.ones((1, 1))}
    assert learned(score_V, [[2.0]], batch)[5] == pytest.approx(9.96, abs=1e-6)
    assert learned(score_V, [[2.0]], batch, repeats="last_write")[5] == pytest.approx(9.96, abs=1e-6)
    assert learned(score_V, [[2.0]], batch, beta=0.9)[5] == pytest.approx(9.2, abs=1e-6)


def test_scores_are_learned_by_label_and_only_from_filled_slots():
    _, score_V = token_drop.make().init({}, POST)
    after_V = learned(score_V, LOSSES_BP)
    # Ids 5, 6, 7 and 9 are labels. The ids at these positions in the input, such as [MASK], are not. Label 0 stands for
    # an unfilled slot.
    assert np.flatnonzero(after_V != np.asarray(score_V)).tolist() == [5, 6, 7, 9]
    without = {**BATCH, "weights": np.zeros((3, 3), np.float32)}
    with jax.debug_nans(True):
        np.testing.assert_array_equal(learned(score_V, LOSSES_BP, without), score_V)


def random_slots(seed, slots=40):
    """Losses, labels (some special) and weights of 3 examples with many duplicates and some unfilled slots."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 5, 6, 7, 8, 149, UNK, MASK], (3, slots))
    weights = rng.choice([0, 0.5, 1, 2], (3, slots))
    labels[:, -5:], weights[:, -5:] = 0, 0
    return rng.uniform(0, 12, (3, slots)).astype(np.float32), {**BATCH, "labels": labels, "weights": weights}


@pytest.mark.parametrize("seed", range(3))
def test_a_score_moves_once_towards_the_weighted_mean_of_its_losses(seed):
    losses_BP, batch = random_slots(seed)
    expected_V = np.asarray(SCORE_V, np.float64).copy()
    for v in np.unique(batch["labels"]):
        of_v = (batch["labels"] == v) * batch["weights"]
        if of_v.sum() and v not in POST.special_ids:
            expected_V[v] = 0.995 * expected_V[v] + 0.005 * (of_v * losses_BP).sum() / of_v.sum()
    after_V = learned(SCORE_V, losses_BP, batch)
    np.testing.assert_allclose(after_V, expected_V, rtol=1e-6)
    rest = np.setdiff1d(np.arange(POST.table_rows), batch["labels"])
    np.testing.assert_array_equal(after_V[rest], np.asarray(SCORE_V)[rest])
    special = np.array(POST.special_ids)
    np.testing.assert_array_equal(after_V[special], np.asarray(SCORE_V)[special])


def test_last_write_is_the_released_update():
    table_V, score_V = np.asarray(SCORE_V, np.float64), SCORE_V
    for seed in range(20):
        losses_BP, batch = random_slots(seed)
        old_V = table_V.copy()
        # The released routing.py calls tensor_scatter_nd_update. This loop writes the same values, one slot at a time.
        # All old scores are read before the first write.
        for loss, v in zip(losses_BP.ravel(), batch["labels"].ravel(), strict=True):
            table_V[v] = 0.995 * old_V[v] + 0.005 * loss
        score_V = learned(score_V, losses_BP, batch, repeats="last_write")
    np.testing.assert_allclose(score_V, table_V, rtol=1e-5)
    # As a consequence, unfilled slots raise the score of [PAD], and the scores of [UNK] and [MASK] fall.
    assert score_V[PAD] == pytest.approx(-1e4 * 0.995**20, abs=2)
    assert score_V[UNK] < 9.5e3 > score_V[MASK]
    assert score_V[CLS] == 1e4


def test_small_steps_are_not_lost_in_a_bfloat16_model():
    _, score_V = token_drop.make().init({}, dataclasses.replace(POST, dtype="bfloat16"))
    batch = {**BATCH, "labels": np.array([[5]]), "weights": np.ones((1, 1))}
    for _ in range(3):
        score_V = learned(score_V, [[9.0]], batch)
        assert score_V.dtype == np.float32
    assert score_V[5] == pytest.approx(9 + 0.995**3, abs=1e-5)


def test_frequency_counts_real_input_ids():
    method = token_drop.make(scores="frequency")
    _, score_V = method.init({}, POST)
    for seed in (0, 1):
        score_V = method.update(score_V, {}, packed_batch(seed), None)
    ids = np.concatenate([packed_batch(seed)["ids"][REAL_BS] for seed in (0, 1)])
    expected_V = -np.bincount(ids, minlength=POST.table_rows).astype(float)
    expected_V[[UNK, CLS, SEP, MASK]], expected_V[PAD] = 1e4, -1e4
    np.testing.assert_array_equal(score_V, expected_V)
    # Counts above 10,000 are not mistaken for pinned scores.
    word, rarer = BATCH["ids"][0, 1], BATCH["ids"][0, 5]
    many_V = method.update(score_V.at[word].set(-1e5).at[rarer].set(-2e4), {}, BATCH, None)
    assert many_V[word] < -1e5 < many_V[rarer] < -2e4
    assert ordered(many_V)["positions"][0, -2:].tolist() == [5, 1]


def test_random_scores_are_not_learned():
    method = token_drop.make(scores="random")
    _, score_V = method.init({}, POST)
    assert method.update(score_V, {}, BATCH, None) is score_V


def test_scores_are_reset_at_a_restart():
    method = token_drop.make()
    _, first_V = method.init({}, POST)
    for data, expected_V in (("continue", SCORE_V), ("restart", first_V)):
        params, moments, score_V, new = method.enter("p", SCORE_V, stage_of(), stage_of(data=data), None, None)
        np.testing.assert_array_equal(score_V, expected_V)
        assert (params, moments("m"), new) == ("p", "m", stage_of(data=data))


@pytest.fixture(scope="module")
def train_step():
    """A function of the number of micro-batches. It returns a batch, and the state after one train step on it."""
    method = chain(token_drop.make(), Method())
    optimizer = optim.make(optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.5, True, 1.0))
    step = jax.jit(make_step(method, optimizer, PRETRAINING), static_argnums=5)
    params = reference.random_params(POST)

    def after(micro_batches):
        program = Program(POST, planned(), 6, micro_batches, 12, 3, "mlm+nsp")
        batch = jax.tree.map(lambda *two: np.concatenate(two), packed_batch(0), packed_batch(1))
        state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), (SCORE_V, ()))
        return batch, step(state, batch, Route(), 0.1, np.uint32(0), program)[0]

    return functools.cache(after)


def test_a_step_learns_from_its_own_losses(train_step):
    batch, state = train_step(1)
    params = reference.random_params(POST)
    _, mlm_BP, _ = reference_dropped(POST, params, batch, SCORE_V, KEPT)
    # The table is not a parameter: the optimizer and its weight decay of 0.5 do not change it.
    np.testing.assert_allclose(state.method[0], learned(SCORE_V, mlm_BP, batch), rtol=1e-6)
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_micro_batches_learn_the_same_as_the_whole_batch(train_step):
    one, two = train_step(1)[1], train_step(2)[1]
    np.testing.assert_allclose(one.method[0], two.method[0], rtol=1e-6)
    assert (np.asarray(one.method[0]) != np.asarray(SCORE_V)).sum() == 4


# The report


def test_report_names_the_words_that_were_learned():
    pieces = [f"w{v}" for v in range(150)]
    method, stage = token_drop.make(), stage_of()
    (dropping,) = method.stages((stage,))
    _, first_V = method.init({}, POST)
    clock = Clock(3, 10)
    assert method.report(first_V, stage, clock, pieces) == {"kept": 1.0, "most_important": [], "least_important": []}
    scored = {v: float(v) / 7 for v in range(40, 65)}
    # Special ids, ids that were never predicted, and ids past the vocabulary are left out.
    score_V = first_V.at[jnp.array([*scored, PAD, 200])].set(jnp.array([*scored.values(), 500.0, 900.0]))
    said = method.report(score_V, dropping, clock, pieces)
    assert said["kept"] == 0.5
    assert said["most_important"] == [f"w{v}" for v in range(64, 54, -1)]
    assert said["least_important"] == [f"w{v}" for v in range(40, 50)]
    random = token_drop.make(scores="random")
    assert random.report(random.init({}, POST)[1], dropping, clock, pieces) == {"kept": 0.5}


def test_ids_past_the_vocabulary_never_matter():
    score_V = SCORE_V.at[150:].set(9e3)
    np.testing.assert_array_equal(ordered(score_V)["ids"], ordered()["ids"])
    np.testing.assert_array_equal(learned(score_V, LOSSES_BP)[:150], learned(SCORE_V, LOSSES_BP)[:150])


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0.0}, r"--config\.token_drop\.keep=0\.0: expected a share"),
        ({"keep": 1.5}, "at most 1"),
        ({"beta": 1.0}, r"token_drop\.beta=1\.0.*below 1"),
        ({"beta": -0.1}, "at least 0"),
        ({"start": 1e4}, r"token_drop\.start=10000\.0"),
        ({"start": float("nan")}, r"token_drop\.start=nan"),
        ({"scores": "los"}, r"token_drop\.scores='los'.*loss, random, frequency"),
        ({"repeats": "last"}, r"token_drop\.repeats='last'.*mean, last_write"),
        ({"repeats": "last_write", "scores": "random"}, r"token_drop\.scores=loss"),
        ({"full_tail": 1.0}, r"token_drop\.full_tail=1\.0"),
        ({"full_tail": -0.1}, "expected a share of the steps"),
        ({"boundary": -2}, r"token_drop\.boundary=-2: expected a layer counted from 0, or -1"),
        ({"examples_per_row": 0}, r"token_drop\.examples_per_row=0: expected at least 1"),
        ({"kep": 0.5}, "did you mean keep"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        methods.make([("token_drop", arguments)])


def test_keep_too_small_for_special_and_masked_tokens_is_refused_and_the_minimum_is_named():
    stage = stage_of(dataclasses.replace(POST, max_len=128), 128, 20)
    with pytest.raises(BadInput, match=r"keeps 22 of 128 .* hold 20 .* 3 special.*keep=0\.18,"):
        token_drop.make(keep=0.17).stages((stage,))
    token_drop.make(keep=0.18).stages((stage,))
    shallow = dataclasses.replace(
        stage, program=dataclasses.replace(stage.program, model=dataclasses.replace(POST, depth=1))
    )
    assert token_drop.make(keep=0.1).stages((shallow,)) == (shallow,)


@pytest.mark.parametrize("changes", [{"queries": 8}, {"keys": 8}])
def test_a_second_method_that_leaves_out_tokens_is_refused(changes):
    stage = stage_of()
    program = dataclasses.replace(stage.program, plan=edit(whole(4), 1, 2, **changes))
    with pytest.raises(BadInput, match=r"--config\.methods: .* stage only already leaves out .* token_drop cannot"):
        token_drop.make().stages((dataclasses.replace(stage, program=program),))


def test_config_is_the_released_recipe():
    # tensorflow/models, official/projects/token_dropping: wiki_books_pretrain_sequence_pack.yaml,
    # bert_en_uncased_base_token_drop.yaml, encoder_config.py and experiment_configs.py.
    config = token_drop_config.get_config()
    assert (config.methods, config.phases, config.batch_size, config.steps) == ("token_drop", "512:1", 512, 1_000_000)
    assert config.token_drop.to_dict() == {
        "keep": 0.5, "beta": 0.995, "start": 10.0, "scores": "loss", "repeats": "mean", "full_tail": 0.0,
        "examples_per_row": 1, "boundary": -1, "shortest": 0,
    }  # fmt: skip
    rate = config.learning_rate
    assert (rate.peak, rate.warmup_steps, rate.decay, rate.end) == (1e-4, 0.01, "linear", 0.0)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.eps) == ("adamw", 0.9, 0.999, 1e-7)
    assert (optimizer.weight_decay, optimizer.bias_correction, optimizer.clip_norm) == (0.01, True, 1.0)
    assert optimizer.eps_before_correction
    model = config.model
    assert (model.depth, model.width, model.heads, model.mlp_dim, model.max_len) == (12, 768, 12, 3072, 512)
    assert (model.norm, model.activation, model.pooler) == ("post", "gelu_tanh", False)
    assert (model.dropout, model.attention_dropout, model.init_std) == (0.1, 0.1, 0.02)
    assert (config.data.objective, config.data.masked_share) == ("mlm", 0.15)
    assert token_drop_config.get_config("seq=128").phases == "128:1"
    assert token_drop_config.get_config("objective=mlm+nsp").model.pooler


def test_every_argument_can_be_set_by_a_flag():
    # A flag sets an attribute, so no argument may have the name of one of ConfigDict's own methods.
    config = token_drop_config.get_config()
    for key, default in methods.defaults()["token_drop"].items():
        assert getattr(config.token_drop, key) == default
