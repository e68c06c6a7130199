"""Progressive layer dropping: schedules, draws and configs.

Axes: as in layer_drop.py and bert.py, except for N, the number of draws.
"""

import collections
import dataclasses
import itertools
import math

import numpy as np
import pytest

from bert_fast import BadInput, methods
from bert_fast.method import Clock, chain
from bert_fast.methods.layer_drop import independent, keep_and_scale, make, systematic, theta_at
from bert_fast.plan import Span, edit, pack, whole
from bert_fast.train import optim, settings
from helpers.config_files import CONFIGS, VOCAB, get_config
from helpers.layer_drop_cases import LATE, drawn, stage_of
from helpers.trunk import close, equal

# The plan of token dropping.
TOKENS = (Span(0, 5), Span(5, 6, queries=64), Span(6, 11, queries=64, keys=64), Span(11, 12))
both_samplings = pytest.mark.parametrize("sampling", ["independent", "systematic"])
both_variants = pytest.mark.parametrize("variant", ["paper", "deepspeed"])


def reference_draw(depth, theta):
    """(keep, scale) of each layer, by the loop of the released code.

    A layer is kept with probability p. Its scale is 1 over the p of the next layer.
    """
    keep_L, scale_L, p = [], [], 1.0
    for _ in range(depth):
        keep_L.append(p)
        p -= (1 - theta) / depth
        scale_L.append(1 / p)
    return np.array(keep_L), np.array(scale_L)


def test_theta_falls_from_1_as_published():
    for gamma, values in {
        1e-3: {0: 1, 100: 0.9524, 1000: 0.68394, 2000: 0.5677, 5000: 0.5034, 10_000: 0.5},
        5e-4: {0: 1, 100: 0.9756, 1000: 0.8033, 2000: 0.6839, 5000: 0.54104, 10_000: 0.5034, 20_000: 0.5},
    }.items():
        for step, value in values.items():
            assert theta_at(step, 123, 0.5, gamma, "paper") == pytest.approx(value, abs=5.1e-5)
    assert theta_at(LATE, 1, 0.9, 1e-3, "paper") == 0.9
    for theta in (0.1, 0.3, 0.7, 1.0):
        assert theta_at(0, 1, theta, 0.0, "paper") == 1


def test_gamma_is_100_over_the_number_of_steps_unless_given():
    assert theta_at(1000, 200_000, 0.5, 0.0, "paper") == theta_at(1000, 1, 0.5, 5e-4, "paper")
    assert theta_at(10, 2000, 0.5, 0.0, "paper") == theta_at(20, 4000, 0.5, 0.0, "paper")
    mean = np.mean([theta_at(step, 2000, 0.5, 0.0, "paper") for step in range(2000)])
    assert mean == pytest.approx(0.505, abs=5e-4)


def test_released_code_uses_the_theta_of_the_previous_step():
    thetas = [theta_at(step, 1000, 0.5, 1e-3, "deepspeed") for step in range(4)]
    assert thetas == [1, *(theta_at(step, 1000, 0.5, 1e-3, "paper") for step in range(3))]


def test_keep_probabilities_are_the_published_ones():
    keep_L, scale_L = keep_and_scale(12, 0.5, "paper")
    published = [0.9583, 0.9167, 0.875, 0.8333, 0.7917, 0.75, 0.7083, 0.6667, 0.625, 0.5833, 0.5417, 0.5]
    np.testing.assert_allclose(keep_L, published, atol=5e-5)
    assert keep_L.sum() == pytest.approx(8.75)
    assert keep_L[-1] == 0.5
    np.testing.assert_allclose(keep_L * scale_L, 1, rtol=1e-15)
    equal(keep_and_scale(12, 1.0, "paper"), (np.ones(12), np.ones(12)))


def test_released_code_divides_by_the_keep_probability_of_the_next_layer():
    keep_L, scale_L = keep_and_scale(12, 0.5, "deepspeed")
    published = [1.0435, 1.0909, 1.1429, 1.2, 1.2632, 1.3333, 1.4118, 1.5, 1.6, 1.7143, 1.8462, 2.0]
    np.testing.assert_allclose(scale_L, published, atol=5e-5)
    assert keep_L.sum() == pytest.approx(9.25)
    assert keep_L[0] == 1
    np.testing.assert_allclose((keep_L * scale_L)[[0, -1]], [1.0435, 1.0833], atol=5e-5)
    for depth, theta in ((12, 0.5), (3, 0.7), (24, 1.0)):
        close(keep_and_scale(depth, theta, "deepspeed"), reference_draw(depth, theta))


def drawn_at(step, **arguments):
    """(share of draws in which each layer runs, largest scale of each layer), for 12 layers at `step` of 1000 steps."""
    method, stage = make(gamma=0.0, theta=0.5, sampling="independent", **arguments), stage_of()
    scale_NL = np.stack([
        method.draw(stage, Clock(step, stage.steps), np.random.default_rng((step, n)))[0] for n in range(2000)
    ])  # fmt: skip
    assert all(len(np.unique(scale_L)) <= 2 for scale_L in scale_NL.T)
    return (scale_NL != 0).mean(0), scale_NL.max(0)


DEPTH_L = np.arange(1, 13) / 12
SEEN = 5 * np.sqrt(0.25 / 2000)  # five standard deviations of a share of 2000 draws


@both_variants
@pytest.mark.parametrize("step", [0, 5, 900])
def test_time_schedule_alone_gives_every_layer_the_same_keep_probability(step, variant):
    theta = theta_at(step, 1000, 0.5, 0.0, variant)
    equal(keep_and_scale(12, theta, variant, depth_schedule=False), (np.full(12, theta), np.full(12, 1 / theta)))
    ran_L, scale_L = drawn_at(step, depth_schedule=False, variant=variant)
    assert np.all(np.abs(ran_L - theta) <= SEEN)
    close(scale_L, np.full(12, 1 / theta))


@pytest.mark.parametrize("step", [0, 900])
def test_depth_schedule_alone_uses_the_final_theta_in_every_step(step):
    keep_L = 1 - DEPTH_L * 0.5
    ran_L, scale_L = drawn_at(step, time_schedule=False)
    assert np.all(np.abs(ran_L - keep_L) <= SEEN)
    close(scale_L, 1 / keep_L)
    assert make(time_schedule=False).report(None, stage_of(), Clock(step, 1000), ()) == {"theta": 0.5}


@pytest.mark.parametrize("step", [0, 900])
def test_without_schedules_theta_is_the_keep_probability_of_every_layer_in_every_step(step):
    ran_L, scale_L = drawn_at(step, time_schedule=False, depth_schedule=False)
    assert np.all(np.abs(ran_L - 0.5) <= SEEN)
    close(scale_L, np.full(12, 2.0))


@both_variants
def test_layers_are_not_scaled_if_rescale_is_off(variant):
    keep_L, scale_L = keep_and_scale(12, 0.5, variant, rescale=False)
    equal((keep_L, scale_L), (keep_and_scale(12, 0.5, variant)[0], np.ones(12)))
    scale_L = drawn_at(900, rescale=False, variant=variant)[1]
    equal(scale_L, np.ones(12))


@both_samplings
@both_variants
def test_layers_run_as_often_as_expected_and_have_the_expected_mean_scale(sampling, variant):
    method, stage, count = make(sampling=sampling, variant=variant), stage_of(micro_batches=2), 4000
    scale_NML = np.stack([drawn(method, stage, LATE + n) for n in range(count)])
    keep_L, scale_L = reference_draw(12, 0.5)
    if variant == "paper":
        keep_L = 1 / scale_L
    equal(np.unique(scale_NML[..., 2]), np.array([0, scale_L[2]]))
    deviation_L = np.sqrt(keep_L * (1 - keep_L) / count)
    assert np.all(np.abs((scale_NML != 0).mean(0) - keep_L) <= 5 * deviation_L)  # in each micro-batch
    gain_L = keep_L * scale_L  # 1 in the paper's variant
    assert np.all(np.abs(scale_NML.mean(0) - gain_L) <= 5 * deviation_L * scale_L + 1e-12)


def test_independent_sampling_draws_each_layer_independently_in_every_micro_batch():
    keep_L, count = np.array([0.9, 0.75, 0.6, 0.3]), 10_000
    rng, plan = np.random.default_rng(0), (Span(0, 3), Span(3, 4))
    draws = [independent(keep_L, plan, 3, rng) for _ in range(count)]
    for m in range(3):
        seen = collections.Counter(tuple(runs_ML[m]) for runs_ML in draws)
        for runs_L in itertools.product([False, True], repeat=4):
            p = np.where(runs_L, keep_L, 1 - keep_L).prod()
            assert abs(seen[runs_L] / count - p) <= 5 * math.sqrt(p * (1 - p) / count)


def test_later_micro_batches_have_the_distribution_conditional_on_the_number_of_layers_in_the_first():
    keep_L, micro_batches = np.array([1, 0.9, 0.6, 0.2, 0.5]), 20_000
    chance_of = {runs_L: np.where(runs_L, keep_L, 1 - keep_L).prod() for runs_L in np.ndindex(*(2,) * 5)}
    counts = set()
    for seed in range(300):
        runs_ML = independent(keep_L, whole(5), micro_batches + 1, np.random.default_rng(seed))
        count = int(runs_ML[0].sum())
        if count in counts:
            continue
        counts.add(count)
        total = sum(p for runs_L, p in chance_of.items() if sum(runs_L) == count)
        seen = collections.Counter(map(tuple, runs_ML[1:].astype(int)))
        for runs_L, p in chance_of.items():
            p = p / total if sum(runs_L) == count else 0
            assert abs(seen[runs_L] / micro_batches - p) <= 5 * math.sqrt(p * (1 - p) / micro_batches)
    assert counts == {1, 2, 3, 4, 5}


def test_systematic_sampling_runs_the_mean_number_of_layers_rounded_up_or_down():
    keep_L, _ = keep_and_scale(12, 0.5, "paper")
    rng = np.random.default_rng(0)
    for plan in (whole(12), TOKENS, edit(whole(12), 0, 9, frozen=True)):
        runs_NL = np.concatenate([systematic(keep_L, plan, 1, rng) for _ in range(1000)])
        for start, stop in [(0, 12), *((span.start, span.stop) for span in plan)]:
            mean, counts_N = keep_L[start:stop].sum(), runs_NL[:, start:stop].sum(1)
            assert set(counts_N) == {math.floor(mean), math.ceil(mean)}
            assert abs(counts_N.mean() - mean) < 5 * math.sqrt(0.25 / 1000)


def test_systematic_sampling_shuffles_the_layers():
    # Without the shuffle, only 11 subsets of the 12 layers occur, and correlations of neighbours reach -0.92.
    keep_L, _ = keep_and_scale(12, 0.5, "paper")
    rng = np.random.default_rng(0)
    runs_NL = np.concatenate([systematic(keep_L, whole(12), 2, rng) for _ in range(3000)])
    correlation_LL = np.corrcoef(runs_NL.T.astype(float)) - np.eye(12)
    assert np.abs(correlation_LL).max() < 0.2
    keep_L = keep_and_scale(4, 0.5, "paper")[0]  # 2.75 layers on average
    seen = {tuple(runs_L) for _ in range(2000) for runs_L in systematic(keep_L, whole(4), 2, rng)}
    assert seen == {runs_L for runs_L in itertools.product([False, True], repeat=4) if sum(runs_L) in (2, 3)}


class Edge:
    """A random generator. Its integers are always the smallest or the largest possible."""

    def __init__(self, largest: bool):
        self.largest, self.rng = largest, np.random.default_rng(0)

    def integers(self, high):
        return high - 1 if self.largest else 0

    def permutation(self, x):
        return self.rng.permutation(x)


@pytest.mark.parametrize("largest", [False, True])
def test_rounding_does_not_change_the_number_of_layers_between_micro_batches(largest):
    # An exact sum does not depend on the order of the layers. A sum in floating point does, if probabilities differ.
    for keep_L in (np.array([0.9, 0.8, 0.7, 0.6]), np.full(10, 0.1), np.linspace(1, 0.1, 10)):
        sums = {float(np.cumsum(np.random.default_rng(n).permutation(keep_L))[-1]) for n in range(50)}
        runs_ML = systematic(keep_L, whole(len(keep_L)), 500, Edge(largest))
        assert len(set(runs_ML.sum(1))) == 1
        assert len(sums) > 1 or len(set(keep_L)) == 1


@both_samplings
@both_variants
def test_micro_batches_run_the_same_number_of_layers_but_not_the_same_layers(sampling, variant):
    for plan in (whole(12), TOKENS):
        method, stage = make(sampling=sampling, variant=variant), stage_of(plan=plan, micro_batches=8)
        differ = 0
        for step in (*range(50), *range(LATE, LATE + 100)):
            scale_ML = drawn(method, stage, step)
            assert scale_ML.shape == (8, 12)
            pack(plan, scale_ML)  # raises if the numbers of layers differ
            differ += len(np.unique(scale_ML, axis=0)) > 1
        assert differ > 100


def test_draws_depend_only_on_seed_and_step():
    stage, steps = stage_of(micro_batches=2), [3, LATE, 40, 3]
    for sampling in ("independent", "systematic"):
        one, other = (chain(make(sampling=sampling)) for _ in range(2))
        forwards = [drawn(one, stage, step) for step in steps]
        np.random.seed(7)  # noqa: NPY002
        equal(forwards, [drawn(other, stage, step) for step in reversed(steps)][::-1])
        equal(forwards[0], forwards[3])
        assert any((drawn(one, stage, LATE, seed) != forwards[1]).any() for seed in range(1, 4))
        assert any((drawn(one, stage, LATE + 1 + n) != forwards[1]).any() for n in range(4))


def test_both_executions_draw_the_same_gates_and_keep_the_tokens_of_each_span():
    stage = stage_of(plan=TOKENS, micro_batches=2)
    gather, cond = make(), make(execution="cond")
    assert gather.stages((stage,)) == (stage,)
    (conditional,) = cond.stages((stage,))
    assert conditional.program.plan == tuple(dataclasses.replace(span, cond=True) for span in TOKENS)
    for step in range(LATE, LATE + 20):
        equal(drawn(gather, stage, step), drawn(cond, conditional, step))


def test_automatic_sampling_is_systematic_if_another_method_splits_the_plan():
    split, frozen = stage_of(plan=TOKENS), stage_of(plan=edit(whole(12), 0, 9, frozen=True))
    for stage, sampling in ((stage_of(), "independent"), (split, "systematic"), (frozen, "systematic")):
        for step in range(LATE, LATE + 20):
            equal(drawn(make(), stage, step), drawn(make(sampling=sampling), stage, step))


def test_few_programs_serve_all_steps():
    def programs(method, plan, steps):
        (stage,) = method.stages((stage_of(plan=plan, micro_batches=2),))
        return {pack(stage.program.plan, drawn(method, stage, step))[0] for step in steps}

    ramp, late = range(300), range(LATE, LATE + 300)
    assert len(programs(make(), whole(12), (*ramp, *late))) <= 13
    assert len(programs(make(sampling="systematic"), whole(12), ramp)) <= 5
    assert len(programs(make(sampling="systematic"), whole(12), late)) == 2
    assert len(programs(make(), TOKENS, late)) <= 5  # one more than the number of spans
    assert len(programs(make(sampling="independent"), TOKENS, late)) > 40
    for plan in (whole(12), TOKENS):
        assert len(programs(make(execution="cond"), plan, (*ramp, *late))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"theta": 0.0}, r"layer_drop\.theta=0\.0: expected a probability above 0"),
        ({"theta": 1.5}, "above 0 and up to 1"),
        ({"theta": math.nan}, "above 0 and up to 1"),
        ({"gamma": -1e-3}, r"layer_drop\.gamma=-0\.001: expected a rate"),
        ({"gamma": math.inf}, "expected a rate"),
        ({"variant": "deep"}, r"layer_drop\.variant='deep' is unknown: use paper or deepspeed"),
        ({"sampling": "bernoulli"}, "use auto or independent or systematic"),
        ({"execution": "where"}, "use gather or cond"),
        ({"gamma": 1e-3, "time_schedule": False}, r"gamma=0\.001 is the pace .*time_schedule=False.*leave out one"),
        ({"thete": 0.5}, r"layer_drop\.thete is unknown: did you mean theta"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        methods.make([("layer_drop", arguments)])


def test_post_ln_gets_a_warning_with_the_reason(recwarn):
    make().stages((stage_of(),))
    assert not recwarn
    with pytest.warns(UserWarning, match="LayerNorms out of the residual path.*--config.model.norm=pre"):
        make().stages((stage_of(norm="post"),))


def config_of(text):
    config = get_config(next(path for path in CONFIGS if path.stem == "layer_drop"))(text)
    return config, settings.make(config.to_dict(), VOCAB, tuple(methods.known()))


def test_config_is_the_published_recipe():
    config, made = config_of("")
    assert [name for name, _ in made.methods] == ["layer_drop"]
    assert dict(config.layer_drop) == {
        "theta": 0.5, "gamma": 0.0, "variant": "paper", "sampling": "auto", "execution": "gather",
        "time_schedule": True, "depth_schedule": True, "rescale": True,
    }  # fmt: skip
    assert (made.model.depth, made.model.width, made.model.norm, made.model.embed_norm) == (12, 768, "pre", True)
    assert made.model.residual_init_std == pytest.approx(0.02 / math.sqrt(24))
    assert (made.model.init_std, made.model.dropout, made.model.attention_dropout) == (0.02, 0.1, 0.1)
    assert (made.batch_size, made.steps, made.phases) == (4096, 200_000, ((128, 1.0, None),))
    assert made.batch_size // made.micro_batches == 16 * 64
    assert made.data.objective == "mlm+nsp"
    assert made.optimizer == optim.Optimizer("adamw", 0.9, 0.999, 1e-8, 0.01, False, 1.0)
    rates = {0: 0, 2000: 5e-4, 4000: 1e-3, 50_000: 6.3e-4, 100_000: 3.8e-4, 200_000: 1.39e-4}
    for step, rate in rates.items():
        assert made.schedule(step) == pytest.approx(rate, rel=1e-2)


def test_controls_are_post_ln_and_pre_ln_without_layer_dropping():
    method, post, pre = (config_of(text)[1] for text in ("", "control=post", "control=pre"))
    assert (post.methods, pre.methods) == ((), ())
    assert pre == dataclasses.replace(method, methods=())
    assert (post.model.norm, post.model.residual_init_std, post.schedule.peak) == ("post", 0.02, 1e-4)
    assert post == dataclasses.replace(pre, model=post.model, schedule=post.schedule)
    assert post.schedule == dataclasses.replace(pre.schedule, peak=1e-4)
    with pytest.raises(BadInput, match="control='pree': expected control=post"):
        config_of("control=pree")
    assert config_of("seq=512")[1].phases == ((512, 1.0, None),)
