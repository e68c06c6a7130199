"""EarlyBERT (Chen et al., ACL-IJCNLP 2021, arXiv 2101.00063): a short search finds the heads and neurons that matter.
The others are pruned, and the smaller model is trained from its initial weights.

Every unit (head or feed-forward neuron) has a coefficient that multiplies its output. Coefficients start at 1 and are
trained with an L1 penalty. Units with the lowest coefficients are pruned; the units that remain are the ticket. The
model is then physically smaller. It returns to the weights of step 0 and is trained without coefficients, as if the
search had not happened. The run's totals still include the search: steps, examples, FLOPs, seconds.

Heads are multiplied after softmax and dropout, neurons after GELU (`slimming_coef` in finetune/modeling_bert.py of
VITA-Group/EarlyBERT). Multiplying the matching rows of the output matrices is equivalent. So the coefficients
are applied to the parameters, and the trunk needs no code for them. The authors released code for fine-tuning
only: everything here about pre-training from scratch is unverified.

Axes: L layers, H heads, E size of a head, D width, F neurons, U units (heads or neurons), G groups of units that share
a threshold (one per layer, or one for all), N units of a group, W masks of the window.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import BadInput, qkv
from bert_fast.bert import Params
from bert_fast.method import Clock, Method, Stage, same
from bert_fast.plan import frozen_depth

NAMES = ("head_scale", "neuron_scale")  # leaves of the layers that hold the coefficients, [L, H] and [L, F]

# Leaves with an axis of heads or neurons, and the index of that axis in a single layer.
OF_HEADS = (
    ("attention_output", "kernel", 0),
    *((name, "kernel", 1) for name in qkv.NAMES),
    *((name, "bias", 0) for name in qkv.NAMES),
)
OF_NEURONS = (("mlp_output", "kernel", 0), ("mlp_hidden", "kernel", 1), ("mlp_hidden", "bias", 0))

KEYS = {
    "heads": "Heads that the newest mask keeps; after the search, the ticket's heads.",
    "neurons": "Neurons that the newest mask keeps; after the search, the ticket's neurons.",
    "head_penalty": "L1 penalty of the heads at the newest mask.",
    "neuron_penalty": "L1 penalty of the neurons at the newest mask.",
    "head_distance": "Share of the heads in which the newest mask differs from the one before.",
    "head_distance_max": "Largest share of the heads in which the newest mask differs from any mask of the window.",
    "neuron_distance": "Share of the neurons in which the newest mask differs from the one before.",
    "neuron_distance_max": "Largest share of the neurons in which the newest mask differs from any mask of the window.",
}


class Units(NamedTuple):
    """The heads of a model, or its neurons, as candidates for pruning."""

    real_LU: np.ndarray  # False for the padding of layers narrower than the widest
    pruned_G: np.ndarray  # units pruned from each group if no two coefficients are equal


class Masks(NamedTuple):
    """The units that the most recent masks keep, newest first, and the L1 penalty at the time of the newest mask."""

    kept_WLU: Any
    penalty: Any


class SearchState(NamedTuple):
    """State of the search. `count` is the number of masks taken. It is reset to 0 when the ticket is drawn."""

    count: Any
    heads: Masks
    neurons: Masks


def make_units(counts_L: Sequence[int], ratio: float, together: bool) -> Units:
    """The units of layers with `counts_L` units each. `together`: one threshold for all layers, else one per layer."""
    real_LU = np.arange(max(counts_L)) < np.array(counts_L)[:, None]
    sizes_G = np.array([sum(counts_L)] if together else counts_L)
    pruned_G = np.floor(ratio * (sizes_G - 1)) + (ratio > 0)  # see keep
    return Units(real_LU, pruned_G.astype(np.int32))


def keep(c_LU: np.ndarray, units: Units) -> np.ndarray:
    """Which units are kept, bool [L, U]: `c > np.quantile(c, ratio)`, the rule of
    finetune/run_glue_earlybert_draw_and_train.py. Signed values are compared, and ties with the threshold are pruned.

    The quantile lies between two neighbours in sorted order, so units up to the lower neighbour are pruned. Quantiles
    in float32 would often equal one of the two, because many of 36,864 coefficients near 1 are adjacent floats.
    """
    values_GN = np.where(units.real_LU, c_LU, np.inf).reshape(len(units.pruned_G), -1)
    ranked_GN = np.pad(np.sort(values_GN, axis=1), ((0, 0), (1, 0)), constant_values=-np.inf)
    threshold_G1 = np.take_along_axis(ranked_GN, units.pruned_G[:, None], axis=1)
    return units.real_LU & (values_GN > threshold_G1).reshape(c_LU.shape)


def with_mask(masks: Masks, c_LU: np.ndarray, units: Units, factor: float) -> Masks:
    """`masks` with a new mask in front; the oldest is dropped."""
    kept_WLU = np.concatenate([keep(c_LU, units)[None], masks.kept_WLU[:-1]])
    return Masks(kept_WLU, np.float32(factor * np.abs(c_LU).sum()))


def distances(kept_WLU: np.ndarray, units: Units) -> np.ndarray:
    """Share of units in which each older mask differs from the newest one; the second newest comes first."""
    return (kept_WLU[1:] != kept_WLU[0]).sum((1, 2)) / units.real_LU.sum()


def aligned(counts_L: np.ndarray, real_L: np.ndarray, align: int) -> np.ndarray:
    """The counts rounded to multiples of `align`: at least `align` itself, but never more than the layer's units."""
    return np.minimum(np.maximum(np.round(counts_L / align), 1).astype(int) * align, real_L)


def draw_ticket(c_LU: np.ndarray, units: Units, name: str, align: int, rng=None) -> list[np.ndarray]:
    """Ascending indices of each layer's kept units: those of the highest coefficients, or as many at random with `rng`.

    Raises BadInput if a layer would lose all of its units.
    """
    real_L, counts_L = units.real_LU.sum(1), keep(c_LU, units).sum(1)
    for layer in np.flatnonzero(counts_L == 0):
        c_U, ratio = c_LU[layer, : real_L[layer]], f"--config.early_bert.{name}_ratio"
        why, remedy = f"its coefficients are {c_U.min()} to {c_U.max()}, none above the threshold", f"lower {ratio}"
        if len(c_U) == 1:
            why, remedy = "it has only one", f"set {ratio}=0"
        elif c_U.min() == c_U.max():  # choosing among equal coefficients would be arbitrary
            why = f"all of its coefficients are {c_U[0]}, so the search was too short or its learning rate too low"
            remedy = "search longer (--config.early_bert.search), well beyond the warm-up"
        elif len(units.pruned_G) < len(real_L):
            remedy += f", or set --config.early_bert.{name}s=layer"
        raise BadInput(f"the ticket leaves layer {layer} without {name}s: {why}. Use another --workdir and {remedy}")
    counts_L = aligned(counts_L, real_L, align)
    score_LU = c_LU if rng is None else rng.random(c_LU.shape)
    ranked_L = [np.argsort(-score_U[:real], kind="stable") for score_U, real in zip(score_LU, real_L, strict=True)]
    return [np.sort(ranked[:count]) for ranked, count in zip(ranked_L, counts_L, strict=True)]


def gather(leaf_L, axis: int, kept_L: Sequence[np.ndarray]) -> np.ndarray:
    """A stacked leaf with only the kept indices of one axis in each layer, zero-padded to the widest layer."""
    layers, widest = [], max(map(len, kept_L))
    for leaf, kept in zip(leaf_L, kept_L, strict=True):
        padding = [(0, 0)] * leaf.ndim
        padding[axis] = (0, widest - len(kept))
        layers.append(np.pad(np.take(leaf, kept, axis), padding))
    return np.stack(layers)


def slim(params: Params, heads_L: Sequence[np.ndarray], neurons_L: Sequence[np.ndarray]) -> Params:
    """The parameters with only these heads and neurons, and without coefficients."""
    layers = qkv.separate({name: leaf for name, leaf in params["layers"].items() if name not in NAMES})
    for leaves, kept_L in ((OF_HEADS, heads_L), (OF_NEURONS, neurons_L)):
        for name, leaf, axis in leaves:
            layers[name] = {**layers[name], leaf: gather(layers[name][leaf], axis, kept_L)}
    return {**params, "layers": qkv.join(layers)}


def with_widths(stage: Stage, heads_L: Sequence[int], mlp_dim_L: Sequence[int]) -> Stage:
    """The stage with these numbers of heads and neurons per layer in its model."""
    model = stage.program.model.with_widths(heads_L, mlp_dim_L)
    return dataclasses.replace(stage, program=dataclasses.replace(stage.program, model=model))


def make(
    search: float = 0.05,  # unverified
    stop: str = "steps",
    mask_every: int = 0,
    window: int = 5,
    threshold: float = 0.1,
    min_steps: int = 0,
    head_ratio: float = 0.333333,
    neuron_ratio: float = 0.4,
    neurons: str = "global",
    align: int = 1,
    ticket: str = "early_bird",
    head_penalty: float = 1e-4,  # unverified for pre-training
    neuron_penalty: float = 1e-4,  # unverified for pre-training
    draw_before_update: bool = False,
) -> Method:
    """EarlyBERT, with the ratios and penalties of finetune/launch_earlybert_glue.sh.

    search: search steps or, if below 1, a share of all steps. They use the start of the full learning-rate schedule.
    stop: "steps" runs the whole search, like the released code; "early_bird" ends it once the masks have stabilised
        (`EarlyBird` in main.py of GATECH-EIC/Early-Bird-Tickets, You et al. 2020), or at the last step of the search.
    mask_every: steps between masks; 0: a twentieth of the search. Masks taken close together agree only because no
        coefficient had time to move.
    window, threshold: masks have stabilised when the newest of `window` masks differs from each of the others in at
        most a share `threshold` of the neurons. Heads are ignored: they are few, and agree after a handful of steps.
    min_steps: minimum steps before the search may end; 0: half of the search. At first all coefficients move at the
        pace of the learning rate, so successive masks already agree although they will change later.
    head_ratio: share of each layer's heads to prune; 0: none. The default prunes 4 of 12. At exactly 1/3, a layer of 4
        or 16 heads would lose one more: the head whose coefficient equals the threshold.
    neuron_ratio: share of the neurons to prune; 0: none.
    neurons: "global" compares the neurons of all layers, so layers end up with different widths; "layer" compares
        within each layer.
    align: rounds each layer's number of neurons to a multiple of this; the paper does not. 128 fits the lanes of a
        TPU. A mesh with a tensor axis above 1 needs multiples of that axis's size.
    ticket: "random" is the control: after the same search, as many units per layer are chosen at random. The released
        code's control has no search (`slimming_coef_step` is then 0 or less, in
        finetune/run_glue_earlybert_draw_and_train.py): uniform random numbers replace the coefficients, so layers lose
        nearly equal shares of their neurons. How the paper drew its random tickets for pre-training is unverified.
    head_penalty, neuron_penalty: factors of the L1 penalties (the sums of absolute coefficients) in the loss.
    draw_before_update: draws the ticket from the coefficients before the search's last update, like the released code
        for GLUE (finetune/trainer.py). The update would have no effect, so it is skipped, and the search is one step
        shorter. The released code for SQuAD draws the ticket after the update (run_squad_earlybert_search.py).

    Raises BadInput for invalid values.
    """
    for name, value, known in (
        ("stop", stop, ("steps", "early_bird")),
        ("neurons", neurons, ("global", "layer")),
        ("ticket", ticket, ("early_bird", "random")),
    ):
        if value not in known:
            raise BadInput(f"--config.early_bert.{name}={value!r} is unknown: use {' or '.join(known)}")
    if draw_before_update and stop != "steps":
        raise BadInput(
            f"--config.early_bert.draw_before_update needs a search of fixed length, but with stop={stop} the search "
            "may end at any mask: set draw_before_update=False, or --config.early_bert.stop=steps"
        )
    for name, value, good, expected in (
        ("search", search, 0 < search < 1 or (search >= 1 and search % 1 == 0), "steps, or a share below 1"),
        ("mask_every", mask_every, mask_every >= 0, "steps, or 0 for a twentieth of the search"),
        ("window", window, window >= 2, "at least 2 masks"),
        ("threshold", threshold, 0 <= threshold <= 1, "a share such as 0.1"),
        ("min_steps", min_steps, min_steps >= 0, "steps, or 0 for half of the search"),
        ("head_ratio", head_ratio, 0 <= head_ratio < 1, "a share below 1"),
        ("neuron_ratio", neuron_ratio, 0 <= neuron_ratio < 1, "a share below 1"),
        ("align", align, align >= 1, "at least 1"),
        ("head_penalty", head_penalty, head_penalty >= 0, "0 or more"),
        ("neuron_penalty", neuron_penalty, neuron_penalty >= 0, "0 or more"),
    ):
        if not good:
            raise BadInput(f"--config.early_bert.{name}={value}: expected {expected}")

    def units_of(config):
        """The heads and the neurons of a model."""
        together = neurons == "global"
        return make_units(config.heads_L, head_ratio, False), make_units(config.mlp_dim_L, neuron_ratio, together)

    def init(params, config):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.dtype != jnp.float32:
                raise BadInput(
                    f"{jax.tree_util.keystr(path)} is {leaf.dtype}, but early_bert needs float32: lower precision "
                    "loses small differences between coefficients. Convert the checkpoint of --config.init"
                )
        real = [units.real_LU for units in units_of(config)]
        # Padding gets a coefficient of 0, which adds no penalty and never changes.
        ones = {name: jnp.asarray(real_LU, jnp.float32) for name, real_LU in zip(NAMES, real, strict=True)}
        masks = (Masks(np.zeros((window, *real_LU.shape), bool), np.zeros((), np.float32)) for real_LU in real)
        return {**params, "layers": {**params["layers"], **ones}}, SearchState(np.zeros((), np.int32), *masks)

    def stages(stages):
        first, total = stages[0], sum(stage.steps for stage in stages)
        if any(stage.data == "restart" for stage in stages):
            raise BadInput(
                "early_bert restarts training after its search, but an earlier method already restarts it: there can "
                "be only one search and one training. Name early_bert once, and before that method, in --config.methods"
            )
        if frozen_depth(first.program.plan):
            raise BadInput(
                f"layers of stage {first.name} are frozen, so early_bert cannot learn which of their heads and neurons "
                "matter: name it before the method that freezes them in --config.methods"
            )
        steps = round(search * total) if search < 1 else int(search)
        every = mask_every or max(1, round(steps / 20))
        if steps > total:
            raise BadInput(f"--config.early_bert.search={steps} is more than the {total} steps of training: lower it")
        if not any(first.learning_rate(Clock(step, total), step) for step in range(steps - draw_before_update)):
            raise BadInput(
                f"--config.early_bert.search={search}: the learning rate is 0 in all {steps - draw_before_update} "
                "steps before the draw, so all coefficients stay equal: search longer, well beyond the warm-up"
            )
        if stop == "early_bird" and max(window * every, min_steps) > steps:
            raise BadInput(
                f"--config.early_bert.stop=early_bird: a search of {steps} steps is too short: {window} masks, {every} "
                f"steps apart, take {window * every}, and min_steps is {min_steps}: raise search, or lower window, "
                "mask_every or min_steps"
            )
        steps -= draw_before_update
        searching = dataclasses.replace(first, name="search", steps=steps, ask_every=every)
        return (searching, *map(guessed, (dataclasses.replace(first, data="restart"), *stages[1:])))

    def guessed(stage):
        """The stage with the widths that pruning by random coefficients would leave."""
        model, rng = stage.program.model, np.random.default_rng(0)
        heads_L, neurons_L = (keep(rng.random(units.real_LU.shape), units).sum(1) for units in units_of(model))
        neurons_L = aligned(neurons_L, np.array(model.mlp_dim_L), align)
        stage = with_widths(stage, heads_L.tolist(), neurons_L.tolist())
        return dataclasses.replace(stage, guess=True)

    def weights(params):
        layers = dict(params.get("layers", {}))
        if NAMES[0] not in layers:
            return params, 0.0
        c_LH, c_LF = (layers.pop(name) for name in NAMES)
        attention, mlp = layers["attention_output"], layers["mlp_output"]
        layers["attention_output"] = {**attention, "kernel": attention["kernel"] * c_LH[:, :, None, None]}
        layers["mlp_output"] = {**mlp, "kernel": mlp["kernel"] * c_LF[:, :, None]}
        # Not jnp.abs, whose gradient at 0 is 1: the coefficients of padding would become negative.
        penalty = head_penalty * (c_LH * jnp.sign(c_LH)).sum() + neuron_penalty * (c_LF * jnp.sign(c_LF)).sum()
        return {**params, "layers": layers}, penalty

    def coefficients(params):
        """The coefficients of heads and neurons; None once the ticket is drawn."""
        layers = params["layers"]
        return [np.asarray(layers[name]) for name in NAMES] if NAMES[0] in layers else None

    def observe(params, state, stage, step):
        found, state = coefficients(params), jax.tree.map(np.asarray, state)
        if found is None:
            return state, False
        heads, of_neurons = units_of(stage.program.model)
        state = SearchState(
            state.count + np.int32(1),
            with_mask(state.heads, found[0], heads, head_penalty),
            with_mask(state.neurons, found[1], of_neurons, neuron_penalty),
        )
        least = min_steps or (stage.skipped + stage.steps) // 2
        if stop == "steps" or state.count < window or step < least:
            return state, False
        return state, bool(distances(state.neurons.kept_WLU, of_neurons).max() <= threshold)

    def enter(params, state, old, new, initial, key):
        found, before = coefficients(params), old.program.model
        if found is None:  # the ticket's widths stay, unless the depth changes
            kept = before.depth == new.program.model.depth
            return params, same, state, with_widths(new, before.heads_L, before.mlp_dim_L) if kept else new
        if new.data != "restart":  # the search continues
            return params, same, state, new
        heads, of_neurons = units_of(before)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key))) if ticket == "random" else None
        heads_L = draw_ticket(found[0], heads, "head", 1, rng)
        neurons_L = draw_ticket(found[1], of_neurons, "neuron", align, rng)
        new = with_widths(new, list(map(len, heads_L)), list(map(len, neurons_L)))
        return slim(initial(), heads_L, neurons_L), None, state._replace(count=np.zeros((), np.int32)), new

    def report(state, stage, clock, pieces):
        model, count = stage.program.model, min(int(state.count), window)
        if not count:
            return {"heads": list(model.heads_L), "neurons": list(model.mlp_dim_L)}
        result: dict[str, Any] = {}
        of_names = zip(("head", "neuron"), (state.heads, state.neurons), units_of(model), strict=True)
        for name, masks, units in of_names:
            kept_WLU = np.asarray(masks.kept_WLU)[:count]
            result[f"{name}s"] = kept_WLU[0].sum(1).tolist()
            result[f"{name}_penalty"] = float(masks.penalty)
            if count > 1:
                apart = distances(kept_WLU, units)
                result |= {f"{name}_distance": float(apart[0]), f"{name}_distance_max": float(apart.max())}
        return result

    return Method("early_bert", True, init, stages, observe, enter, weights=weights, report=report)
