"""What the runs of one task and encoder share: widths, stages, and all that is compiled."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bert_fast import BadInput, methods
from bert_fast.bert import Params
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.tasks import batches, encoder, model
from bert_fast.tasks.batches import Rows
from bert_fast.tasks.data import Task
from bert_fast.tasks.encoder import Encoder
from bert_fast.tasks.settings import Settings
from bert_fast.train import optim
from bert_fast.train.compile import state_shardings
from bert_fast.train.optim import change_moments
from bert_fast.train.sharding import global_batch, make_mesh
from bert_fast.train.step import SURGERY, TrainState


class Trainer:
    """Fine-tunes one encoder on one task, any number of times."""

    def __init__(self, task: Task, start: Encoder, settings: Settings):
        """Checks all that can be wrong; no device is touched."""
        self.task, self.start, self.settings = task, start, settings
        self.method = methods.make(settings.methods)
        self.optimizer = optim.make(settings.optimizer)
        widths = batches.choose_widths(task.lengths_N(), settings.widths)
        self.widths = tuple(min(width, settings.data.seq_len) for width in widths)  # which is no multiple, perhaps
        self.per_epoch = len(batches.epoch(task.train.lengths_N, self.widths, settings.batch_size, None))
        self.compiled: dict[Any, Callable] = {}
        self.predict = jax.jit(model.make_predict(self.method, task.head), static_argnames="program")
        self.timeline(1.0)  # refuses what cannot be, at any rate

    def timeline(self, rate: float) -> list[Stage]:
        """The stages of a run: one, and what the methods make of it. Raises BadInput where they grow or leave out."""
        settings, start = self.settings, self.start
        steps = max(round(settings.epochs * self.per_epoch), 1)
        program = Program(
            start.model, whole(start.model.depth), settings.batch_size, 1, settings.data.seq_len, 0, "finetune"
        )
        stage = Stage(self.task.name, program, steps, settings.rate.schedule(rate, steps))
        stages = list(self.method.stages((stage,)))
        for stage in stages:
            if stage.program.plan != program.plan or stage.program.model.depth != start.model.depth:
                raise BadInput(
                    f"--config.methods={','.join(name for name, _ in settings.methods)}: they grow the model or leave "
                    "layers or tokens out, and fine-tuning does neither"
                )
        restarts = [index for index, stage in enumerate(stages) if stage.data == "restart"]
        for index in range(max(restarts, default=0)):  # what only searches has a schedule of its own
            searching = max(round(settings.search.epochs * self.per_epoch), stages[index].steps)
            schedule = settings.rate.schedule(settings.search.learning_rate, searching)
            stages[index] = dataclasses.replace(stages[index], schedule=schedule)
        return stages

    @property
    def steps(self) -> int:
        """Of a run, at most."""
        return sum(stage.steps for stage in self.timeline(1.0))

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Of all devices. Raises BadInput where the batches do not divide over them."""
        mesh = make_mesh(self.settings.mesh.data, self.settings.mesh.fsdp, self.settings.mesh.tensor)
        sharing = mesh.shape["data"] * mesh.shape["fsdp"]
        sizes = {"batch_size": self.settings.batch_size, "eval.batch_size": self.settings.eval.batch_size}
        for name, size in sizes.items():
            if size % sharing:
                raise BadInput(f"--config.{name}={size} does not divide over {sharing} devices: make it a multiple")
        return mesh

    def place(self, state: TrainState) -> TrainState:
        return jax.tree.map(jax.device_put, state, state_shardings(state, self.mesh))

    def first_state(self, seed: int) -> TrainState:
        """The encoder with a fresh head, which the seed decides, and what the methods add."""
        key = jax.random.key(seed)
        params = encoder.weights(self.start, self.settings, key)
        params = model.init(self.start.model, self.task.head, params, jax.random.fold_in(key, model.HEAD))
        params, state = self.method.init(params, self.start.model)
        return self.place(TrainState(jnp.zeros((), jnp.int32), params, {}, self.optimizer.init(params), state))

    def next_state(self, state: TrainState, old: Stage, new: Stage, initial: Params, seed: int):
        """The state with which the next stage begins, after the methods' surgery, and that stage as they settled it."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), SURGERY), state.step)
        surgery, kept, new = self.method.enter(state.params, state.method, old, new, lambda: initial, key)
        params = surgery.params(state.params)
        if surgery.moments is None:
            opt_state = self.optimizer.init(params)
        else:
            opt_state = change_moments(state.opt_state, state.params, surgery.moments)
        return self.place(TrainState(state.step, params, {}, opt_state, kept)), new

    def train_step(self, state: TrainState, batch, seed: int, rate: float, program: Program):
        """(state, loss) after one step; compiled once for each program and width."""
        shape = jax.tree.structure(state)
        if shape not in self.compiled:
            step = model.make_step(self.method, self.optimizer, self.task.head)
            shardings = jax.tree.map(lambda x: x.sharding, state)
            self.compiled[shape] = jax.jit(
                step, static_argnames="program", donate_argnums=0, out_shardings=(shardings, None)
            )
        batch = global_batch(batch, self.mesh)
        return self.compiled[shape](state, batch, np.uint32(seed), np.float32(rate), program=program)

    def logits(self, params: Params, rows: Rows, program: Program) -> np.ndarray:
        """Of every row, in their order: [N, C], or [N, S, 2] of spans, padded with what cannot be chosen."""
        size, pad = self.settings.eval.batch_size, self.start.vocab.pad
        span = self.task.head.kind == "span"
        shape = (self.settings.data.seq_len, 2) if span else (self.task.head.outputs,)
        found = np.full((len(rows.ids_N), *shape), model.NEVER if span else 0, np.float32)
        pending = None
        for batch in [*batches.epoch(rows.lengths_N, self.widths, size, None), None]:
            coming = None
            if batch is not None:
                arrays = batches.fill(rows._replace(labels=None), batch, size, pad)
                coming = (batch, self.predict(params, global_batch(arrays, self.mesh), program=program))
            if pending is not None:  # fetched when the next one is under way
                done, logits = pending
                logits = np.asarray(logits, np.float32)[: len(done.rows_B)]
                if span:
                    found[done.rows_B, : logits.shape[1]] = logits
                else:
                    found[done.rows_B] = logits
            pending = coming
        return found
