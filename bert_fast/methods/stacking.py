"""Progressive stacking (Gong et al., ICML 2019) and multi-stage layerwise training, MSLT (Yang et al. 2020,
arXiv 2011.13635): train a few layers, stack copies of them on top, and continue training.

`variant="stacking"` copies the whole stack and trains every layer in every stage. `variant="mslt"` copies
the topmost layers and trains only the copies and the head, until a final, joint stage trains everything.
Frozen layers take part in the forward pass only: no gradient, no moments, no all-reduce.

Only the abstract of MSLT was available: each default marked unverified is from memory or from others'
re-implementations. The numbers for stacking are from gonglinyuan/StackingBERT, `reproduce_bert.sh`.
Axes: G stages of growth, L layers of the deeper model.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import BadInput, bert
from bert_fast.bert import Config
from bert_fast.method import Method, Program, Stage, cut, same
from bert_fast.plan import edit, frozen_depth, whole
from bert_fast.schedule import Schedule

# In reproduce_bert.sh, `--max-update` is 50,000, 70,000 and 800,000. Here the last stage stops after 280,000 of the
# 800,000 steps of its schedule, with a learning rate above 0.
SHARES = (50 / 400, 70 / 400, 280 / 400)
LAST_RATE = 0.375  # the last stage's first learning rate, divided by the peak: 3e-4 / 8e-4 (middle stage: 5.5e-4)
LAST_SCHEDULE = 800 / 280  # steps that the last stage's decay to 0 would take, divided by the steps of that stage
JOINT_SHARE = 0.2  # unverified
WARM_AGAIN = 0.01  # unverified
OUTPUTS = ("attention_output", "mlp_output")  # `out_proj` and `fc2` of gonglinyuan/StackingBERT, identity.py

KEYS = {"depth": "Number of layers.", "learning_layers": "Number of layers that are trained."}

# What is frozen in addition to the lower layers, for each of three designs. They treat the tied word table differently.
# Which design the paper uses is unknown. A re-implementation (by the authors of G_stack) freezes the embeddings.
FROZEN = {
    "A": ("^embed/(?!word$)",),  # the table is trained through the head, so the frozen layers' input drifts
    "B": ("^embed/",),  # the table is frozen, so the frozen layers' output is fixed
    "C": ("^embed/",),  # the head trains its own copy of the table, which is discarded in the joint stage
}


def make(
    variant: str = "stacking",
    depths: str = "",
    shares: str = "",
    init: str = "copy",
    embedding: str = "B",
    frozen_dropout: bool = True,
    learning_rate: str = "",
    warm_again: float = -1.0,
    optimizer: str = "fresh",
) -> Method:
    """A model that starts with few layers and grows to its full depth in stages.

    variant: "stacking" or "mslt".
    depths: layers of each stage, such as "3,6,12". A single number, such as "1": the model starts with this many
        layers, and then grows to all of them. Empty: stacking uses L/4, L/2 and L, or only L/2 and L if 4 does not
        divide L. MSLT uses the quarters of L, rounded up (unverified); with fewer than 4 layers, it has a stage per
        layer.
    shares: shares of all training steps, one per stage, such as "0.2,0.3,0.5". MSLT takes one more, for the joint
        stage (0: none). Empty: stacking uses the released shares of three stages. If it has only two stages, the
        first gets the sum of the first two shares. MSLT uses a fifth for the joint stage and equal parts for the rest
        (unverified).
    init: how new layers start. "copy": as copies of the topmost layers, in order (unverified for MSLT). If more layers
        are added than exist, all layers are copied repeatedly. Stacking therefore always copies the whole stack.
        "random": as in a new model. "identity": as copies with zero output matrices and biases, so that a pre-LN model
        computes the same as before. A baseline in gonglinyuan/StackingBERT, identity.py, is similar, but draws the
        other matrices at random.
    embedding: how the tied table is treated while layers are frozen: "A", "B" or "C", see FROZEN.
    frozen_dropout: whether the frozen layers and the embeddings below them have dropout (unverified).
    learning_rate: "segments": one linear decay per stage. The rate falls from its peak to 0.375 of the peak at the
        start of the last stage, and from there towards 0. "run": the run's single schedule. Empty: segments in
        stacking, run in MSLT.
    warm_again: share of all training steps over which the rate warms up again after each growth. Negative: 0 in
        stacking, 0.01 in MSLT (unverified).
    optimizer: "fresh": moments start at zero whenever the model grows or more of it is trained (`--reset-optimizer`).
        "carry": moments are kept. In stacking with init="copy" they are copied with their layers, as in `double.py
        --double-optimizer`, except that Adam's step count continues here. Otherwise new layers start with zero moments.

    Raises BadInput for a bad value. `stages` raises it for values that do not fit the run.
    """
    stacking = variant == "stacking"
    learning_rate = learning_rate or ("segments" if stacking else "run")
    for argument, value, known in (
        ("variant", variant, ("stacking", "mslt")),
        ("init", init, ("copy", "random", "identity")),
        ("embedding", embedding, tuple(FROZEN)),
        ("learning_rate", learning_rate, ("segments", "run")),
        ("optimizer", optimizer, ("fresh", "carry")),
    ):
        if value not in known:
            raise BadInput(f"--config.stacking.{argument}={value!r} is unknown: expected {', '.join(known)}")
    if stacking and (embedding != "B" or not frozen_dropout):
        raise BadInput(
            f"--config.stacking.embedding={embedding} and frozen_dropout={frozen_dropout} are for frozen layers, but "
            "in stacking nothing is frozen: leave both at their defaults, or set --config.stacking.variant=mslt"
        )
    if warm_again >= 1:
        raise BadInput(f"--config.stacking.warm_again={warm_again}: expected a share of the steps, below 1")
    warm_again = (0.0 if stacking else WARM_AGAIN) if warm_again < 0 else warm_again
    given_depths = _numbers("depths", depths, int, "3,6,12")
    given_shares = _numbers("shares", shares, float, "0.2,0.3,0.5")

    def stages(timeline):
        model, total = timeline[0].program.model, sum(stage.steps for stage in timeline)
        _check_plain(timeline)
        if init == "identity" and model.norm != "pre":
            raise BadInput(
                "--config.stacking.init=identity: a post-LN layer normalises its input even if it adds nothing; "
                "set --config.model.norm=pre, or --config.stacking.init=copy"
            )
        names_G, depths_G, below_G = _growth(stacking, given_depths, model.depth)
        shares_G = given_shares or _default_shares(stacking, len(names_G))
        _check_shares(shares_G, names_G)
        ends_G = [round(total * share) for share in np.cumsum(shares_G) / sum(shares_G)]
        begins_G = [0, *ends_G[:-1]]
        steps_G = [end - begin for begin, end in zip(begins_G, ends_G, strict=True)]
        again = round(total * warm_again)
        for name, steps, share in zip(names_G, steps_G, shares_G, strict=True):
            if share and not steps:
                raise BadInput(f"{total} steps leave none for stage {name}: increase --config.steps")
            if share and name != names_G[0] and steps < again:
                raise BadInput(
                    f"--config.stacking.warm_again={warm_again} is {again} steps, but stage {name} has only {steps}: "
                    "lower it"
                )
        in_segments = learning_rate == "segments"
        schedule = timeline[0].schedule
        schedules_G = _segments(schedule, steps_G) if in_segments else [schedule] * len(steps_G)

        several, result, step = len(timeline) > 1, [], 0
        for end in ends_G:
            timeline = cut(timeline, end)
        for stage in timeline:
            g = bisect.bisect_right(ends_G, step)
            stage = dataclasses.replace(
                stage,
                name=f"{names_G[g]}/{stage.name}" if several else names_G[g],
                program=program_of(stage.program, depths_G[g], below_G[g]),
                schedule=schedules_G[g],
                schedule_from="stage" if in_segments else "run",
                warm_again=again if g else 0,
                skipped=step - begins_G[g],  # a phase that begins inside a stage continues the stage's schedule
            )
            result.append(stage)
            step += stage.steps
        return tuple(result)

    def program_of(program: Program, depth: int, below: int) -> Program:
        model, plan = dataclasses.replace(program.model, depth=depth), whole(depth)
        if not below:
            return dataclasses.replace(program, model=model, plan=plan)
        model = dataclasses.replace(model, tied=model.tied and embedding != "C")
        plan = edit(plan, 0, below, frozen=True, dropout=frozen_dropout)
        return dataclasses.replace(program, model=model, plan=plan, frozen_paths=FROZEN[embedding])

    def enter(params, state, old, new, initial, key):
        before, after = old.program, new.program
        if _what_learns(before) == _what_learns(after):
            return params, same, state, new  # nothing grows: a new phase of the data, or another method's stage
        source_L = sources(before.model.depth, after.model.depth)
        heads_L, mlp_dim_L = (
            [n_L[source] for source in source_L] for n_L in (before.model.heads_L, before.model.mlp_dim_L)
        )
        after = dataclasses.replace(after, model=after.model.with_widths(heads_L, mlp_dim_L))

        def new_layers(copies):
            if init == "random":
                fresh = jax.jit(lambda key: bert.init(after.model, key)["layers"])(key)
                return _overlay(copies, fresh, before.model.depth)
            if init == "identity":
                return {**copies, **{name: jax.tree.map(jnp.zeros_like, copies[name]) for name in OUTPUTS}}
            return copies

        def new_moments(copies):
            return copies if stacking and init == "copy" else jax.tree.map(jnp.zeros_like, copies)

        def moments_of(moments):
            return grow(moments, source_L, before.model, after.model, new_moments)

        params = grow(params, source_L, before.model, after.model, new_layers)
        moments = None if optimizer == "fresh" else moments_of
        return params, moments, state, dataclasses.replace(new, program=after)

    def report(state, stage, clock, pieces):
        depth = stage.program.model.depth
        return {"depth": depth, "learning_layers": depth - frozen_depth(stage.program.plan)}

    return Method(name="stacking", stages=stages, enter=enter, report=report)


def sources(before: int, after: int) -> np.ndarray:
    """The layer that each layer of the deeper model is copied from, [L]. Existing layers keep their place. Added layers
    copy the topmost existing ones, in order. If more are added than exist, all layers are repeated.

    Doubling the depth gives the layers of `double.py` in gonglinyuan/StackingBERT. Quadrupling it gives those of
    `quadruple.py`. If the depth grows to less than twice, the i-th added layer (counted from 0) copies layer
    `2 * before - after + i`, like `MsltModel` of the authors of G_stack.
    """
    layer_L = np.arange(after)
    return np.where(layer_L < before, layer_L, (2 * before - after + layer_L) % before)


def grow(tree, source_L: np.ndarray, before: Config, after: Config, new_layers: Callable):
    """Parameters or moments of the old model, grown to the new one; `new_layers` turns copies into the added layers."""
    layers = tree["layers"]
    if after.depth > before.depth:
        copies = jax.tree.map(lambda leaf: leaf[source_L[before.depth :]], layers)
        layers = jax.tree.map(lambda low, high: jnp.concatenate([low, high]), layers, new_layers(copies))
    head = {name: leaf for name, leaf in tree["mlm"].items() if name != "word" or not after.tied}
    if before.tied and not after.tied:
        head["word"] = jnp.copy(tree["embed"]["word"])  # both are donated to the step, so they must not share a buffer
    return {**tree, "layers": layers, "mlm": head}


def _what_learns(program: Program):
    return program.model.depth, program.model.tied, frozen_depth(program.plan), program.frozen_paths


def _overlay(copies, fresh, first: int):
    """The fresh layers from index `first`. Leaves that other methods added to the layers are taken from `copies`."""
    if not isinstance(copies, dict):
        return fresh[first:]
    return {k: _overlay(copy, fresh[k], first) if k in fresh else copy for k, copy in copies.items()}


def _segments(schedule: Schedule, steps_G: Sequence[int]) -> list[Schedule]:
    """The schedule of each stage, counted from the start of the stage (`--lr` and `--end-lr` of reproduce_bert.sh). The
    `linear` scheduler in that repository's fairseq decays from the end of the warm-up.
    """
    if schedule.decay != "linear":
        raise BadInput(
            f"--config.learning_rate.decay={schedule.decay}: stacking's segments decay linearly; set it to linear, or "
            "set --config.stacking.learning_rate=run"
        )
    if schedule.warmup > steps_G[0]:
        raise BadInput(
            f"--config.learning_rate.warmup_steps={schedule.warmup:,} does not end within the first stage of "
            f"{steps_G[0]} steps: lower it, or set --config.stacking.learning_rate=run"
        )
    rates_G = np.linspace(schedule.peak, LAST_RATE * schedule.peak, len(steps_G)).tolist()
    long_G = [*steps_G[:-1], round(LAST_SCHEDULE * steps_G[-1])]
    segments = [
        dataclasses.replace(schedule, peak=peak, end=end, steps=steps, warmup_steps=0, decay_from="warmup")
        for peak, end, steps in zip(rates_G, [*rates_G[1:], schedule.end], long_G, strict=True)
    ]
    return [dataclasses.replace(segments[0], warmup_steps=schedule.warmup), *segments[1:]]


def _numbers(argument: str, text: str, kind: type, example: str) -> tuple:
    """Parses comma-separated numbers. Raises BadInput."""
    try:
        return tuple(kind(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise BadInput(
            f'--config.stacking.{argument}={text!r}: expected comma-separated numbers, such as "{example}"'
        ) from None


def _default_shares(stacking: bool, count: int) -> tuple[float, ...]:
    if not stacking:
        return (*[(1 - JOINT_SHARE) / (count - 1)] * (count - 1), JOINT_SHARE)
    if count > len(SHARES):
        raise BadInput(f"--config.stacking.shares: there is no default for {count} stages: give one share per stage")
    return (sum(SHARES[: len(SHARES) - count + 1]), *SHARES[len(SHARES) - count + 1 :])


def _check_plain(timeline: Sequence[Stage]):
    """Raises BadInput if another method has already changed the timeline."""
    for stage in timeline:
        model, plan, frozen = stage.program.model, stage.program.plan, stage.program.frozen_paths
        same_model = model == timeline[0].program.model
        if not same_model or plan != whole(model.depth) or frozen or stage.data == "restart" or stage.ask_every:
            raise BadInput(
                f"stage {stage.name} comes from a method that changes layers, tokens or stages before the model has "
                "grown: name stacking first, and only once, in --config.methods"
            )


def _growth(stacking: bool, given_G: tuple[int, ...], depth: int) -> tuple[list[str], list[int], list[int]]:
    """The names of all stages, their depths, and their numbers of frozen layers.

    Raises BadInput if the stages do not grow to the model's depth, or cannot reach it by copying whole stacks.
    """
    halves = [depth // parts for parts in (4, 2, 1) if depth % parts == 0]
    quarters = sorted({-(-depth * quarter // 4) for quarter in (1, 2, 3, 4)})
    depths_G = list(given_G) or (halves if stacking else quarters)
    if len(given_G) == 1 and given_G[0] < depth:
        depths_G.append(depth)
    text = ",".join(map(str, depths_G))
    strictly = all(low < high for low, high in itertools.pairwise(depths_G))
    if len(depths_G) < 2 or not strictly or depths_G[0] < 1 or depths_G[-1] != depth:
        if depth == 1:
            raise BadInput("--config.methods: the model has one layer, so it cannot grow: leave out stacking")
        low = max(part for part in range(1, max(depth // 2, 1) + 1) if depth % part == 0 or not stacking)
        raise BadInput(
            f"--config.stacking.depths={text}: expected at least two increasing depths that end with the model's "
            f"{depth} layers, such as {low},{depth}, or a single smaller depth"
        )
    if stacking and any(high % low for low, high in itertools.pairwise(depths_G)):
        raise BadInput(
            f"--config.stacking.depths={text}: whole stacks are copied, so each depth must be a multiple of the "
            "previous one; or set --config.stacking.variant=mslt, which copies the topmost layers"
        )
    names_G = [f"{depth}-layers" for depth in depths_G]
    if stacking:
        return names_G, depths_G, [0] * len(depths_G)
    return [*names_G, "joint"], [*depths_G, depth], [0, *depths_G[:-1], 0]


def _check_shares(shares_G: Sequence[float], names_G: Sequence[str]):
    """Raises BadInput unless there is one positive share per stage (the joint stage's may be 0) and they sum to 1."""
    least_G = [-1e-9 if name == "joint" else 1e-9 for name in names_G]
    positive = all(share > least for share, least in zip(shares_G, least_G, strict=False))
    if len(shares_G) != len(names_G) or not positive or abs(sum(shares_G) - 1) > 1e-6:
        text = ",".join(f"{share:g}" for share in shares_G)
        raise BadInput(
            f"--config.stacking.shares={text}: expected positive shares of the steps that sum to 1, one for each of "
            f"{', '.join(names_G)}"
        )
