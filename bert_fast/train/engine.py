"""The training engine: stages, steps, surgery, compiled programs and counts. It writes no files and prints nothing.

Pre-training (loop.py) and fine-tuning (tasks/) drive it. They differ in their objective, in where their batches come
from, and in what they report.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_fast.bert import Params
from bert_fast.cost.flops import dense_equivalent, step_flops
from bert_fast.method import Clock, Method, Program, Stage
from bert_fast.plan import Route
from bert_fast.train import state as states
from bert_fast.train import timeline as timelines
from bert_fast.train.compile import Programs, place
from bert_fast.train.counters import Counters
from bert_fast.train.guard import STRICT, BadSteps, Guard, past
from bert_fast.train.replay import Replay
from bert_fast.train.sharding import global_batch
from bert_fast.train.step import TrainState, join

LOOK_AHEAD = 100  # upcoming steps whose programs are compiled in the background
ROWS = ("ids", "types", "positions", "segments", "tags")  # arrays of a batch with shape [B, S]

# (the timeline with the model widths known so far, steps at which stages ended) -> the timeline to follow from here.
Replan = Callable[[Sequence[Stage], Sequence[int]], list[Stage]]

Waits = Callable[[str], contextlib.AbstractContextManager]


class BatchSource(NamedTuple):
    """Where batches come from.

    batches: (stage, index) -> endless iterator of (index after the batch, batch), starting at `index`. An index counts
        examples in pre-training, and batches in fine-tuning. A batch holds this process's examples as NumPy arrays.
        The examples may be shorter than the `seq_len` of the stage's program.
    order: name of the order in which a stage reads examples. Stages with the same order share one position in it.
    lengths: every example length that a stage's batches may have.
    """

    batches: Callable[[Stage, int], Iterator[tuple[int, Any]]]
    order: Callable[[Stage], str]
    lengths: Callable[[Stage], Sequence[int]]


class Engine:
    """A run in progress: pre-training or fine-tuning.

    timeline: the run's stages. If the model widths of a stage are a guess, they are settled when the stage is entered.
    state, counters: what a checkpoint holds.
    """

    def __init__(
        self,
        method: Method,
        optimizer,
        programs: Programs,
        source: BatchSource,
        timeline: Sequence[Stage],
        dense_model,
        seed: int,
        initial: Callable[[], Params],
        guard: Guard = STRICT,
        say: Callable[[str], None] = lambda line: None,
    ):
        """Sets up all but the state; call `begin` or `resume` next. `initial()` returns the parameters of step 0.

        say: called with a line about each step that is skipped.
        """
        self.method, self.optimizer, self.programs, self.source = method, optimizer, programs, source
        self.timeline, self.dense_model = list(timeline), dense_model
        self.seed, self.initial, self.mesh = seed, initial, programs.mesh
        self.waits: Waits = lambda kind: contextlib.nullcontext()  # wraps each wait: input, compile or step
        self.replay: Replay | None = None
        self.replan: Replan = lambda stages, ends: list(stages)  # a run with a budget replaces it
        self.counters, self.step, self.looked = Counters(), 0, 0
        self.guard, self.say, self.loader = guard, say, None
        self.pending: tuple[Program, Sequence[float], Any] | None = None

    def begin(self, params: Params):
        """Starts at step 0 with these parameters."""
        self.state = states.first_state(params, self.method, self.stage, self.optimizer, self.mesh)

    def resume(self, folder: pathlib.Path, settled: Sequence[Stage], counters: Counters):
        """Continues from a checkpoint. `settled`: the stages in it, up to and including the current stage."""
        self.counters = counters
        for index, stage in enumerate(settled):  # as if the stages were entered one after the other
            self.timeline[index] = stage
            self.timeline = self.replan(self.timeline, counters.ends[:index])
            self.timeline[index] = stage
        self.state = states.resumed(folder, self.method, self.optimizer, self.mesh)
        self.step = self.looked = int(self.state.step)

    state: TrainState

    @property
    def stage(self) -> Stage:
        return self.timeline[self.counters.stage]

    def is_last_stage(self) -> bool:
        return self.counters.stage + 1 == len(self.timeline)

    def planned_steps(self) -> int:
        """The step at which the run ends, as planned so far."""
        return self.counters.stage_began + sum(stage.steps for stage in self.timeline[self.counters.stage :])

    def stage_is_over(self) -> bool:
        """Whether the stage has taken its last step, or a method has ended it."""
        return self.counters.over or self.step - self.counters.stage_began >= self.stage.steps

    def is_over(self) -> bool:
        return self.is_last_stage() and self.stage_is_over()

    def whole_params(self) -> Params:
        return join(self.state.params, self.state.frozen)

    def clock(self, step: int) -> Clock:
        return timelines.clock_of(self.timeline, self.counters.stage, step, self.counters.training_began)

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step of the current stage."""
        return self.stage.learning_rate(self.clock(step), step - self.counters.stage_began)

    def advance(self) -> bool:
        """Takes one step. If the stage is over, enters the next one first. Returns False at the end of the last
        stage.
        """
        while self.stage_is_over():
            if self.is_last_stage():
                return False
            self.enter_next_stage()
        self.train_step()
        self.observe()
        return True

    def train_step(self):
        """Dispatches a step, then waits for the previous step and counts it."""
        counters, order = self.counters, self.source.order(self.stage)
        begin = past(counters.avoided, order, index := counters.data.setdefault(order, 0))
        if begin > index:
            self.close()
        if self.loader is None:
            self.loader = self.source.batches(self.stage, begin)
        began = time.monotonic()
        with self.waits("input"):
            next_index, arrays = next(self.loader)
        counters.times["input_seconds"] += time.monotonic() - began
        batch = global_batch(arrays, self.mesh)
        if self.step >= self.looked:
            self.look_ahead(batch)
        program, route, on_L = self.drawn(self.step, batch["ids"].shape[1])
        limit = counters.limits[self.pending is not None]
        arguments = (self.state, batch, route, self.learning_rate(self.step), self.seed, limit)
        if self.replay is not None and self.replay.due(self.step):
            metrics = self.replayed(self.replay, next_index, program, *arguments)
        else:
            metrics = self.dispatched(program, *arguments)
        self.settle()
        self.pending = (program, on_L, metrics)
        self.step += 1
        counters.data[order] = next_index
        if self.replay is not None and self.replay.due(self.step):
            self.replay.carry(self.state)

    def dispatched(self, program: Program, *arguments):
        """Takes a step without waiting for it; returns its metrics."""
        if not self.programs.has(program, self.state, arguments[2]):
            with self.compiling():
                self.programs.add(program, *arguments)
        with self.waits("step"):  # some devices block here until the previous step is done
            self.state, metrics = self.programs(program, *arguments)
        return metrics

    def replayed(self, replay: Replay, next_index: int, program: Program, *arguments):
        """Takes a step and checks it: see replay.py. Returns its metrics. Raises Corrupted."""
        self.settle()
        key = self.programs.key_of(program, self.state, arguments[2])
        placed = self.programs.placed(*arguments)
        if not replay.has(key):
            with self.compiling():
                replay.add(key, program, placed)
        with self.waits("step"):
            self.state, metrics = replay.step(key, self.step + 1, placed, self.stage, next_index)
        return metrics

    @contextlib.contextmanager
    def compiling(self):
        """Counts the block as time spent on compiling."""
        self.settle()
        self.counters.lap("seconds")
        try:
            with self.waits("compile"):
                yield
        finally:
            self.counters.lap("compile_seconds")

    def drawn(self, step: int, seq_len: int) -> tuple[Program, Route, list[float]]:
        """The draw for a step of the current stage, with examples of length `seq_len`: the program, the route, and for
        each layer the share of micro-batches that run the layer.
        """
        rng = timelines.rng_of(self.seed, step)
        program, route, on_L = timelines.drawn(self.method, self.stage, self.clock(step), rng)
        return dataclasses.replace(program, seq_len=seq_len), route, on_L.tolist()

    def look_ahead(self, batch):
        """Starts compiling the programs of the stage's next steps, in the background. Programs for examples of this
        batch's length come first.
        """
        here = batch["ids"].shape[1]
        others = [length for length in self.source.lengths(self.stage) if length != here]
        end = min(self.step + LOOK_AHEAD, self.counters.stage_began + self.stage.steps)
        for seq_len in (here, *others):
            like = {name: as_long(x, seq_len) if name in ROWS else x for name, x in batch.items()}
            for step in range(self.step, end):
                program, route, _ = self.drawn(step, seq_len)
                self.programs.begin(program, self.state, like, route, 0.0, self.seed)
        self.looked = end

    def settle(self):
        """Waits for the step in flight, if any, and counts it.

        Raises BadSteps after too many skipped steps, or if a parameter is not finite.
        """
        if self.pending is None:
            return
        (program, on_L, metrics), self.pending = self.pending, None
        with self.waits("step"):
            sums = {key: float(value) for key, value in jax.device_get(metrics).items()}
        weights, kept, norm = sums.pop("parameter_norm"), sums.pop("kept"), sums["gradient_norm"]
        if not math.isfinite(weights):
            raise BadSteps(f"the norm of the parameters is not finite ({weights}) after step {self.step}")
        if kept:
            self.counters.add({**sums, "layers_run": sum(on_L)}, norm)
        else:
            self.skip(sums["loss"], norm)
        self.counters.set_limit(self.guard)
        self.counters.count(
            examples=int(sums.get("examples", program.batch_size)),
            tokens_real=int(sums["tokens_real"]),
            tokens_padded=program.batch_size * program.seq_len,
            flops=step_flops(program, on_L).executed,
            flops_dense=dense_equivalent(program, self.dense_model),
        )

    def skip(self, loss: float, norm: float):
        """Counts a step that was not kept. Raises BadSteps after too many."""
        counters, guard = self.counters, self.guard
        counters.streak += 1
        counters.count(skipped_steps=1)
        if math.isfinite(loss + norm):
            why = f"the gradient norm of step {self.step} is {norm:.4g}, far above the recent ones"
        else:
            why = f"the loss or gradient of step {self.step} is not finite (loss {loss}, gradient norm {norm})"
        if counters.streak >= guard.in_a_row or counters.counts["skipped_steps"] > guard.most:
            row = f", the last of {counters.streak} such steps in a row" if counters.streak > 1 else ""
            raise BadSteps(why + row)
        self.say(f"{why}: the step is skipped")

    def observe(self):
        """Calls the methods' `observe` every `ask_every` steps of the stage. A method may then end the stage."""
        done, every = self.step - self.counters.stage_began, self.stage.ask_every
        if every and done % every == 0:
            seen, over = self.method.observe(self.whole_params(), self.state.method, self.stage, self.step)
            self.state = self.state._replace(method=place(jax.tree.map(np.asarray, seen), self.mesh))
            self.counters.over = over

    def enter_next_stage(self):
        """Enters the next stage. The methods change the state for it (surgery), and settle its program."""
        old, new = self.stage, self.timeline[self.counters.stage + 1]
        self.settle()
        self.counters.lap("seconds")
        self.state, new = states.next_state(
            self.state, self.method, old, new, self.initial, self.optimizer, self.seed, self.mesh
        )
        self.timeline[self.counters.stage + 1] = new
        if self.replay is not None:
            self.replay.carried = None  # the surgery has changed the parameters
        self.counters.end_stage(self.step, new.data == "restart")
        self.timeline = self.replan(self.timeline, self.counters.ends)
        self.close()
        self.programs.cancel()
        self.looked = self.step
        self.counters.lap("compile_seconds")

    def close(self):
        """Stops reading batches."""
        if self.loader is not None:
            self.loader.close()
        self.loader = None


def as_long(x, seq_len: int) -> jax.ShapeDtypeStruct:
    """The shape of an array [B, S] with S changed to `seq_len`."""
    return jax.ShapeDtypeStruct((x.shape[0], seq_len), x.dtype, sharding=x.sharding)
