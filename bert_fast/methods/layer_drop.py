"""Progressive layer dropping (Zhang & He, NeurIPS 2020, arXiv 2010.13369): layers are skipped at random, more often
as training progresses and more often towards the top.

If a layer runs, both of its residual branches are divided by its probability of running (the paper's
Switchable-Transformer block), so the expected value does not change. One gate serves both branches and the whole
micro-batch; here, separate gates for branches, examples or tokens would save nothing. Gates are drawn on the host from
the run's seed and the step, so they are the same on every device. Evaluation runs every layer, unscaled. Skipped layers
get a gradient of zero; their moments and weights keep decaying, as in the reference. The paper's recipe, with its two
controls, is configs/layer_drop.py.

Axes: M micro-batches, L layers, N how many layers run (0, 1, 2, ...).
"""

import dataclasses
import math
import warnings

import numpy as np

from bert_fast import BadInput
from bert_fast.method import Clock, Method, Stage
from bert_fast.plan import Plan, edit

POST_LN = (
    "layer dropping on a post-LN model: a skipped layer takes its LayerNorms out of the residual path, so the layers "
    "above see vectors of a different scale. The paper drops layers of pre-LN models only, because post-LN BERT became "
    "worse: set --config.model.norm=pre"
)

KEYS = {"theta": "Probability that the topmost layer runs."}


def theta_at(step: int, steps: int, theta: float, gamma: float, variant: str) -> float:
    """Probability that the topmost layer runs at `step` (counted from 0) of `steps`; it falls from 1 to `theta`.

    theta(t) = (1 - theta) exp(-gamma t) + theta, the paper's temporal schedule. gamma is per step; 0 means the
    paper's 100 / T. With "deepspeed" each step has the value of the previous step, and steps 0 and 1 both have 1: the
    engine (`DeepSpeedEngine.step`) calls `ProgressiveLayerDrop.update_state(global_steps)` after the forward pass.
    """
    if variant == "deepspeed":
        step = max(step - 1, 0)
    return (1 - theta) * math.exp(-(gamma or 100 / steps) * step) + theta


def keep_and_scale(
    depth: int, theta: float, variant: str, depth_schedule: bool = True, rescale: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(probability that each layer runs, factor of its branches if it does), lowest layer first.

    The paper drops layer i of 1..L with the probability (i / L) (1 - theta), which it calls "p_l(t)".
    `BertEncoder` of DeepSpeedExamples, bing_bert/nvidia/modelingpreln_layerdrop.py, runs a layer with probability p,
    lowers p, and divides the branches by the lowered p. So a layer runs with the probability meant for the layer
    below it (the lowest always runs), and branches are 4 to 8 % too large on average (12 layers, theta 0.5).

    Without the depth schedule, every layer runs with probability theta, in both variants. Without rescaling, the factor
    of the branches is 1.
    """
    layers_L = np.arange(1, depth + 1)
    keep_L = 1 - layers_L / depth * (1 - theta) if depth_schedule else np.full(depth, theta)
    shifted = depth_schedule and variant == "deepspeed"
    drawn_L = 1 - (layers_L - 1) / depth * (1 - theta) if shifted else keep_L
    return drawn_L, 1 / keep_L if rescale else np.ones(depth)


def independent(keep_L: np.ndarray, plan: Plan, micro_batches: int, rng: np.random.Generator) -> np.ndarray:
    """Which layers run, bool [M, L]: each layer is drawn independently, as in the paper.

    The micro-batches of a step must run the same number of layers in each span, since they share one program. The
    first micro-batch decides the number, and the others are drawn given that number. Taken alone, each micro-batch
    has the paper's distribution.
    """
    spans = [independent_in_span(keep_L[span.start : span.stop], micro_batches, rng) for span in plan]
    return np.concatenate(spans, axis=1)


def independent_in_span(keep_L: np.ndarray, micro_batches: int, rng: np.random.Generator) -> np.ndarray:
    """`independent` for the layers of one span."""
    depth = len(keep_L)
    runs_ML = np.zeros((micro_batches, depth), bool)
    runs_ML[0] = rng.random(depth) < keep_L
    count = int(runs_ML[0].sum())
    # Row i: for each n, the probability that n of the layers i and above run (the Poisson binomial distribution).
    chance_LN = np.zeros((depth + 1, count + 1))
    chance_LN[depth, 0] = 1
    for i in reversed(range(depth)):
        chance_LN[i] = (1 - keep_L[i]) * chance_LN[i + 1]
        chance_LN[i, 1:] += keep_L[i] * chance_LN[i + 1, :-1]
    left_M = np.full(micro_batches - 1, count)
    for i in range(depth):
        with_it_M = keep_L[i] * chance_LN[i + 1, left_M - 1]
        # Multiply instead of dividing: rounding must not skip a layer that is needed to reach the count.
        runs_M = (left_M > 0) & (rng.random(micro_batches - 1) * chance_LN[i, left_M] < with_it_M)
        runs_ML[1:, i] = runs_M
        left_M = left_M - runs_M
    return runs_ML


# Systematic sampling counts probabilities in units of 1 / PARTS. Integer sums do not depend on the order of the
# layers, so rounding cannot make micro-batches differ in how many layers run.
PARTS = 2**40


def systematic(keep_L: np.ndarray, plan: Plan, micro_batches: int, rng: np.random.Generator) -> np.ndarray:
    """Which layers run, bool [M, L]. Each layer runs with the same probability as in `independent`, but the number of
    layers that run in a span (and in total) is always its expected value, rounded down or up.

    Let u be uniform in [0, 1), and c the running sum of the layers' probabilities. A layer runs if adding its
    probability takes c + u to the next whole number or beyond. One u serves the whole step, so that all micro-batches
    run the same number of layers. Each micro-batch shuffles the layers within a span. In a fixed order only a few
    subsets would ever occur, and neighbours would exclude each other.
    """
    parts_L = np.round(keep_L * PARTS).astype(np.int64)
    u = rng.integers(PARTS)
    runs_ML = np.zeros((micro_batches, len(keep_L)), bool)
    for runs_L in runs_ML:
        order_L = np.concatenate([rng.permutation(np.arange(span.start, span.stop)) for span in plan])
        runs_L[order_L] = np.diff((u + np.cumsum(parts_L[order_L])) // PARTS, prepend=0) > 0
    return runs_ML


SAMPLERS = {"independent": independent, "systematic": systematic}


def make(
    theta: float = 0.5,
    gamma: float = 0.0,
    variant: str = "paper",
    sampling: str = "auto",
    execution: str = "gather",
    time_schedule: bool = True,
    depth_schedule: bool = True,
    rescale: bool = True,
) -> Method:
    """Progressive layer dropping, with the paper's defaults.

    theta: final probability that the topmost layer runs. The paper uses 0.5 and recommends 0.5 to 0.9. With 1
        nothing is dropped.
    gamma: rate at which theta is approached; the descent takes about 5 / gamma steps. 0 means the paper's
        100 / T, where T is the number of training steps or, during a search, of search steps.
        DeepSpeed's default is 0.001, which suits T of 100,000 and more.
    variant: "paper", or "deepspeed": exactly the released code, which is off by one layer and by one step (see
        `keep_and_scale` and `theta_at`).
    sampling: "independent", as in the paper, or "systematic": the number of layers that run varies by at most one per
        span. Each number (or each combination of numbers, if another method splits the plan into spans) needs its own
        compiled program. Late in training, independent sampling of 12 layers needs 9 programs, or about 80 with token
        dropping's 4 spans. Systematic sampling needs 2, or 5 with these spans. "auto" is independent for a plan of one
        span, and systematic otherwise.
    execution: "gather" computes only the layers that run, with one program for each number of layers. "cond" has all
        layers in one program, each behind a conditional with a checkpointed branch. It needs less memory, but saves
        less time. With equal gates, both compute the same.

    Ablations; with all three False this is LayerDrop (Fan et al., arXiv 1909.11556; unverified):
    time_schedule: False holds theta(t) at `theta` from the first step.
    depth_schedule: False gives every layer theta(t), the lowest included.
    rescale: False does not scale the branches of the layers that run.

    Raises BadInput for invalid values.
    """
    if not 0 < theta <= 1:
        raise BadInput(
            f"--config.layer_drop.theta={theta}: expected a probability above 0 and up to 1, such as 0.5; with 1 "
            "nothing is dropped"
        )
    if not 0 <= gamma < math.inf:
        raise BadInput(
            f"--config.layer_drop.gamma={gamma}: expected a rate per step, such as 0.001, or 0 for 100 / steps"
        )
    if gamma and not time_schedule:
        raise BadInput(
            f"--config.layer_drop.gamma={gamma} is the pace of the time schedule, which "
            "--config.layer_drop.time_schedule=False turns off: leave out one of the two"
        )
    for name, value, known in (
        ("variant", variant, ("paper", "deepspeed")),
        ("sampling", sampling, ("auto", *SAMPLERS)),
        ("execution", execution, ("gather", "cond")),
    ):
        if value not in known:
            raise BadInput(f"--config.layer_drop.{name}={value!r} is unknown: use {' or '.join(known)}")

    def stages(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if any(stage.program.model.norm != "pre" for stage in stages):
            warnings.warn(POST_LN, stacklevel=2)
        return tuple(conditional(stage) for stage in stages) if execution == "cond" else stages

    def theta_of(clock: Clock) -> float:
        return theta_at(clock.step, clock.steps, theta, gamma, variant) if time_schedule else theta

    def draw(stage: Stage, clock: Clock, rng: np.random.Generator) -> np.ndarray:
        program = stage.program
        keep_L, scale_L = keep_and_scale(program.model.depth, theta_of(clock), variant, depth_schedule, rescale)
        automatic = "independent" if len(program.plan) == 1 else "systematic"
        sample = SAMPLERS[automatic if sampling == "auto" else sampling]
        return np.where(sample(keep_L, program.plan, program.micro_batches, rng), scale_L, 0)

    def report(state, stage: Stage, clock: Clock, pieces) -> dict:
        return {"theta": theta_of(clock)}

    return Method("layer_drop", stages=stages, draw=draw, report=report)


def conditional(stage: Stage) -> Stage:
    """The stage with every layer behind a conditional."""
    program = stage.program
    plan = edit(program.plan, 0, program.model.depth, cond=True)
    return dataclasses.replace(stage, program=dataclasses.replace(program, plan=plan))
