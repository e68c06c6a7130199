"""The beginning of a run: its timeline of stages, and its state - resumed, warm-started, or fresh."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bert_fast import BadInput, bert, methods
from bert_fast.bert import Params
from bert_fast.data import batches, masking, shards
from bert_fast.method import Clock, Method, Program, Stage
from bert_fast.plan import Plan, frozen_depth, whole
from bert_fast.settings import Settings
from bert_fast.train import checkpoint
from bert_fast.train.compile import state_shardings
from bert_fast.train.evaluate import row_settings
from bert_fast.train.optim import Optimizer, change_moments
from bert_fast.train.sharding import path_of, shard, tensor_crosses
from bert_fast.train.step import SURGERY, TrainState, join, partition


def stages(settings: Settings, method: Method) -> tuple[Stage, ...]:
    """The timeline: one stage a phase, then what the methods make of it.

    Raises BadInput where the methods leave a stage without steps.
    """
    plain, done, share = [], 0, 0.0
    for seq_len, part in settings.phases:
        share += part
        end = round(settings.steps * share)
        program = Program(
            model=settings.model,
            plan=whole(settings.model.depth),
            batch_size=settings.batch_size,
            micro_batches=settings.micro_batches,
            seq_len=seq_len,
            slots=masking.prediction_slots(seq_len, settings.data.masked_share),
            objective=settings.data.objective,
        )
        plain.append(Stage(f"{seq_len}-tokens", program, end - done, settings.schedule))
        done = end
    timeline = method.stages(tuple(stage for stage in plain if stage.steps))
    empty = [stage.name for stage in timeline if stage.steps < 1]
    if empty or not timeline:
        raise BadInput(f"{settings.steps} steps leave none for {', '.join(empty)}: set more --config.steps")
    for stage in timeline:
        if frozen_depth(stage.program.plan) == stage.program.model.depth:
            raise BadInput(f"no layer learns in stage {stage.name}: leave the topmost one out of what is frozen")
    return timeline


def clock_of(timeline: Sequence[Stage], index: int, step: int, began: int) -> Clock:
    """How far the training of which a stage is a part has come, at `step` of the run, when it began at `began`."""
    first, last = index, index
    while first and timeline[first].data != "restart":
        first -= 1
    while last + 1 < len(timeline) and timeline[last + 1].data != "restart":
        last += 1
    return Clock(step - began, sum(stage.steps for stage in timeline[first : last + 1]))


def train_rows(settings: Settings, stage: Stage) -> batches.Rows:
    """The training rows of a stage's length. Raises BadInput where the shards do not fill one batch."""
    data, seq_len = settings.data, stage.program.seq_len
    split, vocab = shards.Split(data.dir, "train"), masking.read_vocab_info(data.dir)
    rows = batches.make_rows(split, vocab, row_settings(data, seq_len), settings.seed)
    batches.check_batch(rows, stage.program.batch_size)
    return rows


def order_of(stage: Stage) -> str:
    """Name of the order of rows that a stage reads; stages of one length and objective share theirs."""
    return f"{stage.program.objective}/{stage.program.seq_len}"


def with_plan(program: Program, plan: Plan) -> Program:
    """The program with its plan packed: the key of a compiled step."""
    return dataclasses.replace(program, plan=plan)


def check_devices(settings: Settings, expected: Sequence[Stage], mesh: Mesh):
    """Raises BadInput where a micro-batch, an evaluation batch or a stage's parameter does not divide over the devices
    that share it, or where the tensor axis reaches over processes: each of them reads only its own examples.
    """
    if tensor_crosses(mesh):
        raise BadInput(
            f"--config.mesh.tensor={mesh.shape['tensor']} reaches over several of {jax.process_count()} processes: "
            "make it a divisor of the number of devices that each of them has"
        )
    sharing = mesh.shape["data"] * mesh.shape["fsdp"]
    micro = settings.batch_size // settings.micro_batches
    for name, size in (("batch_size / micro_batches", micro), ("eval.batch_size", settings.eval.batch_size)):
        if size % sharing:
            raise BadInput(
                f"--config.{name} is {size}, which does not divide over the {sharing} devices of the mesh's data and "
                f"fsdp axes: make it a multiple of {sharing}"
            )
    for stage in expected:
        try:
            shard(jax.eval_shape(functools.partial(bert.init, stage.program.model), jax.random.key(0)), mesh)
        except BadInput as error:
            raise BadInput(f"stage {stage.name}: {error}") from None


def refuse_other(workdir: pathlib.Path, config: dict):
    """Raises BadInput that shows the difference where the folder holds a run of another config."""
    path = workdir / "config.json"
    if not path.is_file():
        return

    def filled(tree: dict) -> dict:
        """With the defaults of keys that have one in the code: a key that is newer than that run was at it there."""
        optimizer = {field.name: field.default for field in dataclasses.fields(Optimizer)}
        optimizer = {name: default for name, default in optimizer.items() if default is not dataclasses.MISSING}
        defaults = methods.defaults() | {"optimizer": optimizer}
        return tree | {name: known | tree.get(name, {}) for name, known in defaults.items()}

    before, now = (_flat(filled(tree)) for tree in (json.loads(path.read_text()), json.loads(json.dumps(config))))
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if keys:
        lines = "\n".join(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in keys)
        raise BadInput(
            f"{workdir} holds a run of another config:\n{lines}\n"
            "Give another --workdir, or the config that was used there to continue it"
        )


def check_shards(settings: Settings, about: dict, manifest: dict, evaluation: str):
    """Raises BadInput where the run that is to be continued was made with other shards."""
    if about["vocab"]["sha256"] != manifest["vocab"]["sha256"] or about["fingerprint"] != evaluation:
        raise BadInput(
            f"{settings.data.dir} no longer holds the shards of this run (fingerprint {evaluation}, the "
            f"run has {about['fingerprint']}): put them back, or begin a new run in another --workdir"
        )


def _flat(tree, prefix="") -> dict:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}


def fresh_params(model: bert.Config, seed: int, mesh: Mesh) -> Params:
    """Initial parameters, made where they live."""
    make = lambda: bert.init(model, jax.random.key(seed))  # noqa: E731
    return jax.jit(make, out_shardings=shard(jax.eval_shape(make), mesh))()


def warm_params(settings: Settings, model: bert.Config, manifest: dict, mesh: Mesh) -> Params:
    """The parameters of another run (`--config.init`), its next-sentence head left out or made fresh as needed.

    Raises BadInput where its model or its vocabulary is another.
    """
    folder = checkpoint.find(settings.init)
    about = checkpoint.about(folder)
    if about["vocab"]["sha256"] != manifest["vocab"]["sha256"]:
        raise BadInput(
            f"--config.init={settings.init} was trained with another vocabulary than {settings.data.dir} was prepared "
            "with: prepare with the one that it was trained with (--vocab=FILE)"
        )
    theirs = checkpoint.stage_from_json(about["stage"]).program.model
    shape = ("depth", "width", "heads_L", "head_size", "hidden_L", "max_len", "type_count", "norm", "embed_norm")
    shape += ("activation", "norm_eps", "tied")
    differing = [name for name in shape if getattr(theirs, name) != getattr(model, name)]
    if differing:
        lines = "; ".join(f"{name} is {getattr(theirs, name)} there, {getattr(model, name)} here" for name in differing)
        remedy = "set --config.model to match it"
        if len(set(theirs.widths_L)) > 1 or not theirs.tied:
            remedy = "its layers differ in width, or its head has a table of its own: a new run cannot begin with that"
        raise BadInput(f"--config.init={settings.init} holds another model ({lines}): {remedy}")
    # What a method added to the parameters is applied, so that this run begins with a plain model.
    params, _ = methods.make(about["methods"]).weights(checkpoint.restore_params(folder))
    params = {name: leaf for name, leaf in params.items() if name != "next" or model.pooler}
    # A table that came from elsewhere may have rows beyond its vocabulary, or fewer beyond it than ours has.
    params["embed"] = {**params["embed"], "word": with_rows(params["embed"]["word"], model.table_rows)}
    params["mlm"] = {**params["mlm"], "bias": with_rows(params["mlm"]["bias"], model.table_rows)}
    params = jax.tree.map(jax.device_put, params, shard(params, mesh))
    if model.pooler and "next" not in params:
        params["next"] = fresh_params(model, settings.seed, mesh)["next"]
    return params


def with_rows(table, rows: int):
    """A table cut, or filled with zeros, to so many rows."""
    table = np.asarray(table)[:rows]
    return np.pad(table, [(0, rows - len(table))] + [(0, 0)] * (table.ndim - 1))


def first_state(params: Params, method: Method, stage: Stage, optimizer: optax.GradientTransformation, mesh: Mesh):
    """The state at step 0 of a stage."""
    params, method_state = method.init(params, stage.program.model)
    return enter_state(jnp.zeros((), jnp.int32), params, stage.program, optimizer.init, method_state, mesh)


def enter_state(step, params: Params, program: Program, opt_state_of: Callable, method_state, mesh: Mesh) -> TrainState:
    """A state whose whole tree of parameters is split and placed as a program wants it."""
    learns, frozen = partition(params, program)
    state = TrainState(step, learns, frozen, opt_state_of(learns), method_state)
    if jax.process_count() > 1:
        # device_put (jax 0.10.2) makes an unusable array of a process's own where each process has a single device.
        state = jax.tree.map(
            lambda leaf: np.asarray(leaf) if getattr(leaf, "is_fully_addressable", True) else leaf, state
        )
    return jax.tree.map(jax.device_put, state, state_shardings(state, mesh))


def resumed(folder: pathlib.Path, method: Method, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state of a checkpoint, on this mesh, whatever mesh wrote it."""
    stage = checkpoint.stage_from_json(checkpoint.about(folder)["stage"])
    learns, frozen, method_leaves = checkpoint.shapes(folder)

    def like(learns, frozen):
        # Its structure is that of a new one; its shapes may have changed since, between stages.
        _, method_state = method.init(bert.init(stage.program.model, jax.random.key(0)), stage.program.model)
        return TrainState(jnp.zeros((), jnp.int32), learns, frozen, optimizer.init(learns), method_state)

    state = jax.eval_shape(like, learns, frozen)
    state = state._replace(method=jax.tree.unflatten(jax.tree.structure(state.method), method_leaves))
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, mesh),
    )
    return checkpoint.restore(folder, target)


def check_model(name: str, params: Params, model: bert.Config):
    """Raises ValueError where parameters are not those of a model: what methods add is let pass."""
    expected = jax.eval_shape(lambda: bert.init(model, jax.random.key(0)))
    shapes = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        if shapes.get(path_of(path)) != leaf.shape:
            raise ValueError(
                f"stage {name}: {path_of(path)} is {shapes.get(path_of(path))}, its model has {leaf.shape}"
            )


def next_state(
    state: TrainState,
    method: Method,
    old: Stage,
    new: Stage,
    initial: Callable[[], Params],
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
) -> tuple[TrainState, Stage]:
    """The state with which the next stage begins, after the methods' surgery, and that stage as they settled it.

    Moments of what did not learn before begin at zero. Raises ValueError where the parameters are
    not those of the new stage's model.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), SURGERY), state.step)
    params = join(state.params, state.frozen)
    surgery, method_state, new = method.enter(params, state.method, old, new, initial, key)
    params = surgery.params(params)
    model = new.program.model
    check_model(new.name, params, model)

    def opt_state_of(learns):
        of_moments = surgery.moments
        if of_moments is None:
            return optimizer.init(learns)

        def change(moment):
            # Of each moment its own: the step is given both, and may not be given one buffer twice.
            zeros = jax.tree.map(jnp.zeros_like, state.frozen)
            return partition(of_moments(join(moment, zeros)), new.program)[0]

        return change_moments(state.opt_state, state.params, change)

    return enter_state(state.step, params, new.program, opt_state_of, method_state, mesh), new
