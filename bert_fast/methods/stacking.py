"""Progressive stacking (Gong et al., ICML 2019) and multi-stage layerwise training, MSLT (Yang et al. 2020,
arXiv 2011.13635): train few layers, copy them on top of each other, go on.

`variant="stacking"` copies the whole stack, and every layer trains in every stage. `variant="mslt"` copies
the topmost layers; only the copies and the head train, until a last, joint stage trains everything.
What does not learn takes part in the forward pass alone: no gradient, no moments, no all-reduce.

Of MSLT only the abstract could be read: each default that is marked unverified is from memory or from
others' re-implementations. Of stacking, numbers are those of gonglinyuan/StackingBERT, `reproduce_bert.sh`.
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

SHARES = (50 / 400, 70 / 400, 280 / 400)  # reproduce_bert.sh: `--max-update`; the last as released, of 800,000 planned
LAST_RATE = 0.375  # of the peak, with which the last stage begins: 3e-4 of 8e-4, after equal falls (5.5e-4 between)
LAST_SCHEDULE = 800 / 280  # of the last stage's steps: the linear decay to 0 of which it is the beginning
JOINT_SHARE = 0.2  # unverified
WARM_AGAIN = 0.01  # unverified
OUTPUTS = ("attention_output", "mlp_output")  # `out_proj` and `fc2` of gonglinyuan/StackingBERT, identity.py

# What does not learn beside the lower layers, by what becomes of the table that embeds words and predicts them. Which
# of the three the paper has is unknown; a re-implementation (of the authors of G_stack) freezes the embeddings.
FROZEN = {
    "A": ("^embed/(?!word$)",),  # the table learns through the head, so what the frozen layers read drifts
    "B": ("^embed/",),  # it does not learn: what the frozen layers compute is fixed
    "C": ("^embed/",),  # the head has a copy of its own, which learns and is given up in the joint stage
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
    """A model that begins with few layers and grows to its depth in stages.

    variant: "stacking" or "mslt".
    depths: layers of each stage, as "3,6,12". Empty: in stacking L/4, L/2 and L, or L/2 and L where 4 does not divide
        L; in MSLT the quarters of L, rounded up (unverified), so that fewer than 4 layers take a stage each.
    shares: of the training's steps, one a stage, in MSLT one more for the joint stage (0: none), as "0.2,0.3,0.5".
        Empty: in stacking as released, where a stage less gives its steps to the next; in MSLT a fifth for the joint
        stage and equal parts of the rest (unverified).
    init: what new layers are. "copy": of the topmost, in order (unverified for MSLT), and where more are added than
        there are, of all of them again and again, which in stacking is the whole stack; "random"; "identity": copies
        whose output matrices are zero, so that a pre-LN model computes what it did (as a baseline of stacking,
        identity.py, which draws the other matrices anew).
    embedding: the tied table while layers are frozen, "A", "B" or "C": see FROZEN.
    frozen_dropout: whether there is dropout in the frozen layers and below (unverified).
    learning_rate: "segments": linear falls, stage by stage, from the warm-up's peak to .375 of it at the beginning of
        the last stage, which goes on towards 0; "run": the one schedule of the run. Empty: segments in stacking.
    warm_again: over this share of the training's steps the rate climbs once more after each growth. Negative: 0 in
        stacking, .01 in MSLT (unverified).
    optimizer: "fresh" moments whenever the model grows or more of it learns (`--reset-optimizer`), or "carry": copied
        with copied layers in stacking (`double.py --double-optimizer`; but Adam's count of steps goes on here), zero
        for new layers in MSLT.

    Raises BadInput, here and in `stages`.
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
            f"--config.stacking.embedding={embedding} and frozen_dropout={frozen_dropout} say what frozen layers do, "
            "but in stacking nothing is frozen: leave them as they are, or set --config.stacking.variant=mslt"
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
                "--config.stacking.init=identity: a post-LN layer normalises its input even where it adds nothing; "
                "set --config.model.norm=pre, or copy"
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
                raise BadInput(f"{total} steps leave none for the stage of {name}: set more --config.steps")
            if share and name != names_G[0] and steps < again:
                raise BadInput(
                    f"--config.stacking.warm_again={warm_again} is {again} steps, and the stage of {name} has {steps}: "
                    "make it smaller"
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
                skipped=step - begins_G[g],  # a phase that begins inside goes on with this stage's rates
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
            return params, same, state, new  # a phase of the data, or another method's stage
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
    """Of which layer each layer of the deeper model is a copy, [L]: the lower ones of themselves, and those that are
    added of the topmost, in order; of all of them, again and again, where they are fewer.

    With twice the depth it is `double.py`, with four times `quadruple.py` of gonglinyuan/StackingBERT; with less than
    twice, layer i of the added ones copies 2 before - after + i, as the `MsltModel` of the authors of G_stack.
    """
    layer_L = np.arange(after)
    return np.where(layer_L < before, layer_L, (2 * before - after + layer_L) % before)


def grow(tree, source_L: np.ndarray, before: Config, after: Config, new_layers: Callable):
    """Parameters, or moments, of the old model as those of the new one; `new_layers` makes the added ones of copies."""
    layers = tree["layers"]
    if after.depth > before.depth:
        copies = jax.tree.map(lambda leaf: leaf[source_L[before.depth :]], layers)
        layers = jax.tree.map(lambda low, high: jnp.concatenate([low, high]), layers, new_layers(copies))
    head = {name: leaf for name, leaf in tree["mlm"].items() if name != "word" or not after.tied}
    if before.tied and not after.tied:
        head["word"] = jnp.copy(tree["embed"]["word"])  # each is donated to the step: they must not share a buffer
    return {**tree, "layers": layers, "mlm": head}


def _what_learns(program: Program):
    return program.model.depth, program.model.tied, frozen_depth(program.plan), program.frozen_paths


def _overlay(copies, fresh, first: int):
    """The fresh layers from `first` on, and copies of what a method has added to the layers."""
    if not isinstance(copies, dict):
        return fresh[first:]
    return {k: _overlay(copy, fresh[k], first) if k in fresh else copy for k, copy in copies.items()}


def _segments(schedule: Schedule, steps_G: Sequence[int]) -> list[Schedule]:
    """The rate of each stage, counted from its beginning (`--lr`, `--end-lr` of reproduce_bert.sh; the scheduler
    `linear` of its fairseq decays from the end of the warm-up).
    """
    if schedule.decay != "linear":
        raise BadInput(
            f"--config.learning_rate.decay={schedule.decay}: the falls of stacking's segments are linear; leave it so, "
            "or set --config.stacking.learning_rate=run"
        )
    if schedule.warmup_steps > steps_G[0]:
        raise BadInput(
            f"--config.learning_rate.warmup_steps={schedule.warmup_steps} does not end within the first stage, of "
            f"{steps_G[0]} steps: shorten it, or set --config.stacking.learning_rate=run"
        )
    rates_G = np.linspace(schedule.peak, LAST_RATE * schedule.peak, len(steps_G)).tolist()
    long_G = [*steps_G[:-1], round(LAST_SCHEDULE * steps_G[-1])]
    segments = [
        dataclasses.replace(schedule, peak=peak, end=end, steps=steps, warmup_steps=0, decay_from="warmup")
        for peak, end, steps in zip(rates_G, [*rates_G[1:], schedule.end], long_G, strict=True)
    ]
    return [dataclasses.replace(segments[0], warmup_steps=schedule.warmup_steps), *segments[1:]]


def _numbers(argument: str, text: str, kind: type, example: str) -> tuple:
    """Numbers between commas. Raises BadInput."""
    try:
        return tuple(kind(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise BadInput(
            f'--config.stacking.{argument}={text!r}: expected numbers with commas between, as "{example}"'
        ) from None


def _default_shares(stacking: bool, count: int) -> tuple[float, ...]:
    if not stacking:
        return (*[(1 - JOINT_SHARE) / (count - 1)] * (count - 1), JOINT_SHARE)
    if count > len(SHARES):
        raise BadInput(f"--config.stacking.shares: there is no default for {count} stages: give one share for each")
    return (sum(SHARES[: len(SHARES) - count + 1]), *SHARES[len(SHARES) - count + 1 :])


def _check_plain(timeline: Sequence[Stage]):
    """Raises BadInput where another method has changed the timeline already."""
    for stage in timeline:
        model, plan, frozen = stage.program.model, stage.program.plan, stage.program.frozen_paths
        same_model = model == timeline[0].program.model
        if not same_model or plan != whole(model.depth) or frozen or stage.data == "restart" or stage.ask_every:
            raise BadInput(
                f"stage {stage.name} comes from a method that changes layers, tokens or stages before they have "
                "grown: write stacking first, and once, in --config.methods"
            )


def _growth(stacking: bool, given_G: tuple[int, ...], depth: int) -> tuple[list[str], list[int], list[int]]:
    """Names, depths and numbers of frozen layers of all stages.

    Raises BadInput where the stages do not grow to the model's depth, or cannot by copying whole stacks.
    """
    halves = [depth // parts for parts in (4, 2, 1) if depth % parts == 0]
    quarters = sorted({-(-depth * quarter // 4) for quarter in (1, 2, 3, 4)})
    depths_G = list(given_G) or (halves if stacking else quarters)
    text = ",".join(map(str, depths_G))
    strictly = all(low < high for low, high in itertools.pairwise(depths_G))
    if len(depths_G) < 2 or not strictly or depths_G[0] < 1 or depths_G[-1] != depth:
        raise BadInput(
            f"--config.stacking.depths={text}: expected at least two depths, each above the one before, that end with "
            f"the model's {depth} layers, as {max(depth // 3, 1)},{depth}"
        )
    if stacking and any(high % low for low, high in itertools.pairwise(depths_G)):
        raise BadInput(
            f"--config.stacking.depths={text}: whole stacks are copied, so each depth must be a multiple of the one "
            "before; or set --config.stacking.variant=mslt, which copies the topmost layers"
        )
    names_G = [f"{depth}-layers" for depth in depths_G]
    if stacking:
        return names_G, depths_G, [0] * len(depths_G)
    return [*names_G, "joint"], [*depths_G, depth], [0, *depths_G[:-1], 0]


def _check_shares(shares_G: Sequence[float], names_G: Sequence[str]):
    """Raises BadInput where shares are not one a stage, or no shares of the whole."""
    least_G = [-1e-9 if name == "joint" else 1e-9 for name in names_G]
    positive = all(share > least for share, least in zip(shares_G, least_G, strict=False))
    if len(shares_G) != len(names_G) or not positive or abs(sum(shares_G) - 1) > 1e-6:
        text = ",".join(f"{share:g}" for share in shares_G)
        raise BadInput(
            f"--config.stacking.shares={text}: expected shares of the steps above 0 that sum to 1, one for each of "
            f"{', '.join(names_G)}"
        )
