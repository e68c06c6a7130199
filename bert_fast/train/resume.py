"""What must stay the same when a run continues, what may change, and how steps are added."""

import contextlib
import dataclasses
import json
import math
import pathlib
import types
from collections.abc import Callable, Collection, Mapping, Sequence

from bert_fast import BadInput, activations, methods
from bert_fast.data import sealed, shards
from bert_fast.layers import Config
from bert_fast.method import Stage
from bert_fast.train import step_costs
from bert_fast.train.description import Description
from bert_fast.train.guard import Guard
from bert_fast.train.optim import Optimizer
from bert_fast.train.settings import Checkpoints, Data, PretrainSettings, current_keys, flat
from bert_fast.train.step_costs import StepCosts
from bert_fast.train.timeline import clock_of

# Settings that a continued run may change. They decide what is logged, evaluated and kept, and how the input is read.
# They do not affect weights, except that `model.attention` and `model.recompute` may change how sums are rounded.
# Another `data.dir` must hold the same shards: see `check_shards`.
MAY_CHANGE = (
    "data.dir",
    "data.workers",
    "log_every",
    "eval.every",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.minutes",
    "measure_peak",
    "model.attention",
    "model.recompute",
)
# These only change the order in which numbers are added; `say_mesh` warns of a change.
MESH = ("mesh.data", "mesh.fsdp", "mesh.tensor")
EXTEND = ("stretch", "constant")
# These may change without a message. Another file of `costs` must hold the same costs: see `refuse_other_costs`.
FREE = ("costs", "sinks", "profile", "watchdog")

# Keys that older versions did not have, with the values that reproduce what those versions did.
NEWER = {"budget": "", "replay_every": 0}

# Parts of a config whose dataclass has defaults.
KINDS = {"optimizer": Optimizer, "data": Data, "model": Config, "guard": Guard, "checkpoint": Checkpoints}


def differences(workdir: pathlib.Path, config: dict, newer: Mapping = types.MappingProxyType({})) -> dict[str, tuple]:
    """Key -> (value in the folder's run, value in this config) of every setting in which the two differ.

    newer: keys that older versions did not have, with the values that reproduce what those versions did.
    Raises BadInput if the folder's `config.json` is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return {}

    def filled(tree: dict) -> dict:
        """The config with the code's defaults filled in. The default of a newer key is what older versions did."""
        defaults = methods.defaults() | {name: defaults_of(kind) for name, kind in KINDS.items()}
        # The keys of FREE are not compared. Only earlier versions wrote the key `profile`.
        tree = {key: value for key, value in current_keys(tree).items() if key not in FREE}
        if "model" in (encoder := tree.get("encoder", {})):  # a key of fine-tuning
            tree["encoder"] = {**encoder, "model": defaults_of(Config) | encoder["model"]}
        return {**newer, **tree} | {name: known | tree.get(name, {}) for name, known in defaults.items()}

    there = sealed.read(path, "restore it, or give another --workdir", (None,))
    before, now = (flat(filled(tree)) for tree in (there, json.loads(json.dumps(config))))
    keys = sorted(before.keys() | now.keys())
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def refuse_other(
    workdir: pathlib.Path,
    config: dict,
    newer: Mapping = types.MappingProxyType({}),
    free: Collection[str] = (),
):
    """Raises BadInput if the folder holds a run with another config. newer: see `differences`. free: keys that may
    differ.
    """
    found = differences(workdir, config, newer)
    _refuse(workdir, {key: both for key, both in found.items() if key not in free})


def refuse_changed(workdir: pathlib.Path, config: dict, extend: str, say: Callable[[str], object]):
    """Raises BadInput if the run in the folder cannot be continued with this config. Prints which settings change.

    extend: the argument `how` of `extended`. If it is empty, no steps may be added.
    """
    found = differences(workdir, config, NEWER)
    free = (*MAY_CHANGE, *MESH, *(("steps",) if extend else ()))
    _refuse(workdir, {key: both for key, both in found.items() if key not in free})
    if extend and config.get("budget"):
        raise BadInput(
            f"--extend={extend}: a run with a budget ({config['budget']}) ends when its budget is spent. To train "
            f"its model further, start another run with --config.init={workdir}"
        )
    if found:
        say("changed since this run was last started: " + _listed(found, ", ", "before"))


def _refuse(workdir: pathlib.Path, found: dict[str, tuple]):
    if not found:
        return
    more = ""
    if list(found) == ["steps"] and found["steps"][1] > found["steps"][0]:
        more = f". To add steps to it: --extend={' or --extend='.join(EXTEND)} (docs/pretrain.md)"
    raise BadInput(
        f"{workdir} holds a run with another config:\n  {_listed(found, chr(10) + '  ')}\nGive another --workdir, or "
        f"continue that run with the config that it was started with{more}"
    )


def _listed(found: dict[str, tuple], between: str, where: str = "there") -> str:
    return between.join(f"{key}: {before!r} {where}, {now!r} now" for key, (before, now) in found.items())


def stages_of(about: Description, model: Config) -> list[Stage]:
    """A checkpoint's stages, up to its current one, computed as `model` says. See `model.*` in MAY_CHANGE."""

    def changed(stage: Stage) -> Stage:
        now = dataclasses.replace(stage.program.model, attention=model.attention, recompute=model.recompute)
        return dataclasses.replace(stage, program=dataclasses.replace(stage.program, model=now))

    return [changed(stage) for stage in (*about.earlier_stages, about.stage)]


def extended(timeline: Sequence[Stage], about: Description, steps: int, how: str) -> list[Stage]:
    """The timeline of a run that was planned for fewer than `steps` steps, with the added steps in its last stage.

    how: how the learning rate continues. With "stretch", the rate is as in a run that had `steps` steps from the start,
    so a decaying rate jumps up when the run continues. With "constant", the rate stays as it was in the last step.
    Raises BadInput if steps are to be added and `how` is empty, or if the last stage has not begun.
    """
    if how and about.planned is None:
        raise BadInput(
            f"step {about.step} was saved by an earlier version, which did not store how many steps were planned: "
            "continue without --extend until the next checkpoint, then extend the run"
        )
    more = steps - (about.planned or steps)
    if more == 0:
        return list(timeline)
    if more < 0 or not how:
        raise BadInput(
            f"this run was planned for {about.planned} steps, and --config.steps={steps}: "
            + (f"give --extend={' or --extend='.join(EXTEND)}" if more > 0 else f"expected at least {about.planned}")
        )
    if about.counters.stage + 1 < len(timeline):
        last = timeline[-1].name
        raise BadInput(
            f"--extend adds steps to the last stage, {last}, but step {about.step} is in stage {about.stage.name}: "
            f"continue with --config.steps={about.planned} until stage {last} has begun, then extend it"
        )
    stage, before = timeline[-1], about.step - 1
    longer = stage.schedule.steps + more
    if stage.schedule_from == "stage":  # the schedule may be longer than its stage
        longer = round(stage.schedule.steps * (stage.steps + more) / stage.steps)
    schedule = dataclasses.replace(stage.schedule, steps=longer)
    if how == "constant":
        clock = clock_of(timeline, about.counters.stage, before, about.counters.training_began)
        rate = stage.learning_rate(clock, before - about.counters.stage_began)
        schedule = dataclasses.replace(stage.schedule, peak=rate, warmup_steps=0, decay="constant")
    return [*timeline[:-1], dataclasses.replace(stage, steps=stage.steps + more, schedule=schedule)]


def say_mesh(about: Description, mesh: Mapping[str, int], say: Callable[[str], object]):
    """Warns if the checkpoint was written on a different mesh: the run continues, but not bit for bit."""
    before, now = ({key: size for key, size in axes.items() if size > 1} for axes in (about.mesh, mesh))
    if about.mesh and before != now:
        say(
            f"WARNING: step {about.step} was computed on {_mesh(before)}, and the run continues on "
            f"{_mesh(now)}. It sees the same examples, but sums are rounded differently: in float32, five steps on 8 "
            "devices and on 1 differ by at most 1e-5 (losses and gradients: relative; weights: absolute), and the "
            "difference grows with more steps"
        )


def _mesh(axes: Mapping[str, int]) -> str:
    return f"{math.prod(axes.values())} device(s)" + "".join(f", {key}={size}" for key, size in axes.items())


def settle_activation(workdir: pathlib.Path, config: dict):
    """Replaces the activation "auto" in a config by the activation of the folder's run or, without one, of a new run.

    This way, the run's config.json names the activation, and continuing the run cannot change it.
    """
    path, model = workdir / "config.json", config.get("model", {})
    if model.get("activation") == "auto":
        found = sealed.read(path, "restore it, or give another --workdir", (None,)) if path.is_file() else config
        recorded = found["model"]["activation"]
        with contextlib.suppress(KeyError):  # an unknown dtype, which settings.make refuses
            model["activation"] = activations.resolved(recorded, model["dtype"])


def defaults_of(kind) -> dict:
    """The defaults of a dataclass's fields. The default of a newer field reproduces older runs."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: default for name, default in defaults.items() if default is not dataclasses.MISSING}


def refuse_other_costs(workdir: pathlib.Path, costs: StepCosts | None, keys: Sequence[str]):
    """Raises BadInput if the run in the folder was planned with different step costs. keys: the keys of the run's
    stages.
    """
    path = workdir / "costs.json"
    if costs is None or not path.is_file():
        return
    before = step_costs.read(path)
    if [before.curves.get(key) for key in keys] != [costs.curves.get(key) for key in keys]:
        raise BadInput(
            f"{workdir} holds a run that was planned with other step costs: continue it with --config.costs={path}, "
            "or give another --workdir"
        )


def check_shards(settings: PretrainSettings, about: Description, evaluation: str):
    """Raises BadInput if the run to continue was made with different shards."""
    sha256 = shards.read_manifest(settings.data.dir)["vocab"]["sha256"]
    if about.vocab.fingerprint != sha256 or about.fingerprint != evaluation:
        raise BadInput(
            f"{settings.data.dir} no longer holds the shards of this run (the fingerprint is now {evaluation}; the "
            f"run started with {about.fingerprint}): restore the shards, or start a new run in another --workdir"
        )
