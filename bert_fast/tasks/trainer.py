"""What the runs of one task and encoder share: batch widths, stages, and compiled programs."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast import BadInput, methods
from bert_fast.bert import Params
from bert_fast.encoder import Encoder
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.tasks import batches, encoder, model
from bert_fast.tasks.batches import TaskExamples
from bert_fast.tasks.settings import FinetuneSettings
from bert_fast.tasks.task import Task
from bert_fast.train import optim, sharding
from bert_fast.train.compile import Programs
from bert_fast.train.engine import BatchSource, Engine
from bert_fast.train.sharding import global_batch, make_mesh
from bert_fast.train.step import make_step


class Trainer:
    """Fine-tunes one encoder on one task, any number of times."""

    def __init__(self, task: Task, start: Encoder, settings: FinetuneSettings):
        """Checks the settings against the task and the encoder. Touches no device."""
        self.task, self.start, self.settings = task, start, settings
        self.model = settings.model(start.model)
        self.method = methods.make(settings.methods)
        self.optimizer = optim.make(settings.optimizer)
        widths = batches.choose_widths(task.lengths_N(), settings.widths)
        # Widths are multiples of batches.STEP, so the widest may exceed seq_len.
        self.widths = tuple(min(width, settings.data.seq_len) for width in widths)
        self.per_epoch = len(batches.epoch(task.train.lengths_N, self.widths, settings.batch_size, None))
        self.timeline(1.0)  # raises BadInput for bad stages; any rate would do

    def timeline(self, rate: float) -> list[Stage]:
        """The stages of a run with this peak learning rate: one stage, as changed by the methods.

        Raises BadInput if a method grows the model, or drops layers or tokens.
        """
        settings, head = self.settings, self.task.head
        steps = max(round(settings.epochs * self.per_epoch), 1)
        program = Program(
            model=self.model,
            plan=whole(self.model.depth),
            batch_size=settings.batch_size,
            micro_batches=settings.micro_batches,
            seq_len=max(self.widths),
            slots=0,
            objective=f"{head.kind}:{head.outputs}",
        )
        stage = Stage(self.task.name, program, steps, settings.rate.schedule(rate, steps))
        stages = list(self.method.stages((stage,)))
        for stage in stages:
            if stage.program.plan != program.plan or stage.program.model.depth != self.model.depth:
                raise BadInput(
                    f"--config.methods={','.join(name for name, _ in settings.methods)}: fine-tuning cannot grow the "
                    "model, or drop layers or tokens: give methods that prune, or none"
                )
        restarts = [index for index, stage in enumerate(stages) if stage.data == "restart"]
        for index in range(max(restarts, default=0)):  # the stages of a search have their own schedule
            searching = max(round(settings.search.epochs * self.per_epoch), stages[index].steps)
            schedule = settings.rate.schedule(settings.search.learning_rate, searching)
            stages[index] = dataclasses.replace(stages[index], schedule=schedule)
        return stages

    @property
    def steps(self) -> int:
        """Maximum steps in one run."""
        return sum(stage.steps for stage in self.timeline(1.0))

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh of all devices. Raises BadInput if the batches or the model do not divide evenly over them."""
        settings = self.settings
        mesh = make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor)
        sharding.check_stages(settings.eval.batch_size, self.timeline(1.0), mesh)
        return mesh

    @functools.cached_property
    def programs(self) -> Programs:
        """The compiled train steps. All seeds and learning rates share them."""
        return Programs(make_step(self.method, self.optimizer, model.objective(self.task.head)), self.mesh)

    @functools.cached_property
    def predict(self):
        step = model.make_predict(self.method, self.task.head)
        return jax.jit(step, static_argnames="program", out_shardings=NamedSharding(self.mesh, P()))

    def close(self):
        """Cancels the programs that wait to be compiled."""
        self.programs.close()

    def first_params(self, seed: int) -> Params:
        """A run's initial parameters: the encoder's, and a fresh head drawn from the seed."""
        key = jax.random.key(seed)
        params = encoder.weights(self.start, self.model, self.settings, key)
        return model.init(self.model, self.task.head, params, jax.random.fold_in(key, model.HEAD))

    def engine(self, rate: float, seed: int) -> Engine:
        """A run's engine, before its first step."""

        def initial() -> Params:
            params, _ = self.method.init(self.first_params(seed), self.model)
            return jax.tree.map(np.asarray, params)

        source = BatchSource(
            batches=lambda stage, index: self.batches(seed, index),
            order=lambda stage: "train",
            lengths=lambda stage: sorted({*self.widths}),
        )
        timeline = self.timeline(rate)
        return Engine(self.method, self.optimizer, self.programs, source, timeline, self.model, seed, initial)

    def batches(self, seed: int, index: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Training batches from number `index` on, as (next number, batch), with only this process's examples."""
        rows, size, pad = self.task.train, self.settings.batch_size, self.start.vocab.pad
        found = batches.train_batches(rows, self.widths, size, pad, seed, index)
        for number, batch in enumerate(found, index + 1):
            yield number, mine(batch)

    def logits(self, params: Params, rows: TaskExamples, program: Program) -> np.ndarray:
        """Logits of every example, in order: [N, C], or [N, S, C] for tags and spans.

        For spans, padding has the logit `model.NEVER` up to the width of its batch, and -inf after that.
        """

        def step(arrays: dict[str, np.ndarray]):
            with jax.set_mesh(self.mesh):  # kernels look it up: see attention/
                return self.predict(params, global_batch(mine(arrays), self.mesh), program=program)

        size, pad = self.settings.eval.batch_size, self.start.vocab.pad
        return model.all_logits(step, rows, self.widths, size, pad, self.no_logits(rows))

    def no_logits(self, rows: TaskExamples) -> np.ndarray:
        """Uninformative logits for every example: see `model.no_logits`."""
        return model.no_logits(self.task.head, len(rows.ids_N), self.settings.data.seq_len)


def mine(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This process's examples of a batch: a contiguous part, of equal size for each process."""
    count, index = jax.process_count(), jax.process_index()
    return {name: array[index * len(array) // count :][: len(array) // count] for name, array in batch.items()}
