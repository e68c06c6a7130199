"""The train loop: stages of steps, rows, evaluations and checkpoints. It knows no method by name."""

import contextlib
import dataclasses
import math
import pathlib

import jax
import numpy as np

from bert_fast import BadInput, Interrupted, __version__, methods
from bert_fast.bert import Params
from bert_fast.cost.accelerators import measured_peak, peak_of
from bert_fast.cost.flops import dense_equivalent, step_flops
from bert_fast.cost.utilisation import utilisation
from bert_fast.data import batches, shards
from bert_fast.data.files import atomic_json, hold
from bert_fast.method import Clock, Program, Stage
from bert_fast.plan import Route, pack
from bert_fast.settings import Settings
from bert_fast.train import begin, checkpoint, optim, report
from bert_fast.train.book import COUNTS, Book
from bert_fast.train.compile import Programs, place
from bert_fast.train.evaluate import Evaluator, eval_batches, fingerprint
from bert_fast.train.log import Progress, Rows, read_rows
from bert_fast.train.sharding import global_batch, make_mesh
from bert_fast.train.step import join, make_eval_step, make_step
from bert_fast.train.stop import Stop

LOOK_AHEAD = 100  # steps over which coming programs are looked for, to be compiled in the background
DRAW = 103  # use of the seed on the host; those on the device stand in step.py


def pretrain(settings: Settings, config: dict, workdir: pathlib.Path) -> dict:
    """Runs, or continues, a run in `workdir`; returns its summary.

    `config` is what `settings` were made from: it is kept in the folder, and must be the same when a
    run continues. Raises BadInput before any training where something is wrong, and Interrupted
    once the step at which a signal came is saved.
    """
    with contextlib.closing(Run(settings, config, workdir)) as run, Stop() as stop:
        while True:
            if run.stage_is_over():
                if run.is_last_stage():
                    break
                run.enter_next_stage()
                continue
            run.train_step()
            run.observe()
            over = run.stage_is_over()
            final = over and run.is_last_stage()
            signum = stop.signum(run.step)
            if over or run.every(settings.log_every):
                run.write_train_row()
            if final or run.every(settings.eval.every):
                run.evaluate()
            if final or signum or run.every(settings.checkpoint.every):
                run.save()
            if signum and not final:
                raise Interrupted(signum, f"step {run.step} is saved in {run.root}")
        return run.finish()


class Run:
    """A run in progress: what the loop's verbs act on."""

    def __init__(self, settings: Settings, config: dict, workdir: pathlib.Path):
        """Checks all that can be wrong, then resumes, else warm-starts, else makes fresh parameters."""
        self.settings, self.workdir, self.root = settings, workdir, workdir / "checkpoints"
        self.manifest = shards.verify(settings.data.dir)
        self.vocab = (pathlib.Path(settings.data.dir) / "vocab.txt").read_bytes()
        self.pieces = self.vocab.decode().split("\n")
        self.method = methods.make(settings.methods)
        self.optimizer = optim.make(settings.optimizer)
        self.timeline = list(begin.stages(settings, self.method))
        self.dense_model = self.timeline[-1].program.model
        self.rows_of = {begin.order_of(stage): begin.train_rows(settings, stage) for stage in self.timeline}
        self.fingerprint = fingerprint(self.manifest, settings.data, settings.eval)
        held_out = eval_batches(settings.data, settings.eval)
        self.mesh = make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor)
        begin.check_devices(settings, self.method.expect(tuple(self.timeline)), self.mesh)
        if checkpoint.steps(self.root):  # before, there is nothing that another config could not continue
            begin.refuse_other(workdir, config)
        self.peak = self.peak_of_all()

        self.book, self.pending, self.loader = Book(), None, None
        folder = checkpoint.newest(self.root, report.say)
        if folder is not None:
            about = checkpoint.about(folder)
            begin.check_shards(settings, about, self.manifest, self.fingerprint)
            self.book = Book.from_json(about["book"])
            settled = [checkpoint.stage_from_json(stage) for stage in (*about["earlier_stages"], about["stage"])]
            self.timeline[: len(settled)] = settled
            self.state = begin.resumed(folder, self.method, self.optimizer, self.mesh)
        else:
            model = self.stage.program.model
            if settings.init:
                params = begin.warm_params(settings, model, self.manifest, self.mesh)
            else:
                params = begin.fresh_params(model, settings.seed, self.mesh)
            self.state = begin.first_state(params, self.method, self.stage, self.optimizer, self.mesh)
        self.step = self.looked = int(self.state.step)
        self.programs = Programs(make_step(self.method, self.optimizer, settings.seed), self.mesh)
        self.evaluator = Evaluator(make_eval_step(self.method), held_out, self.mesh)
        self.is_main = jax.process_index() == 0
        # The newest row of each split, of an earlier part of the run too.
        self.last = {row["split"]: row for row in read_rows(workdir / "metrics.jsonl") if row["step"] <= self.step}
        if self.is_main:
            workdir.mkdir(parents=True, exist_ok=True)
            busy = f"another run is writing to {workdir}: wait for it, or choose another --workdir"
            self.lock = hold(workdir / ".lock", busy)
            atomic_json(workdir / "config.json", config)
            report.plan(
                settings, self.timeline, self.dense_model, self.state, self.mesh, self.manifest, self.step, workdir
            )
        total = self.book.stage_began + sum(stage.steps for stage in self.timeline[self.book.stage :])
        self.rows = Rows(workdir, self.step) if self.is_main else None
        self.progress = Progress(total, self.step, self.is_main)
        self.write_stages()
        if self.step == 0 and self.method.needs_initial and folder is None:
            self.save()
        self.book.start_clock()

    def peak_of_all(self) -> float | None:
        """FLOP/s of all devices together, None where it is neither known nor to be measured."""
        device = self.mesh.local_devices[0]
        known = peak_of(device)
        if known is not None:
            return known * self.mesh.size
        if not self.settings.measure_peak:
            return None
        if device.platform != "cpu":
            raise BadInput(f"measure_peak is for CPUs: add {device.device_kind!r} to bert_fast/cost/accelerators.py")
        # One product uses all cores of a machine, however many devices they are made to look like.
        return measured_peak(device) * jax.process_count()

    @property
    def stage(self) -> Stage:
        return self.timeline[self.book.stage]

    def is_last_stage(self) -> bool:
        return self.book.stage + 1 == len(self.timeline)

    def stage_is_over(self) -> bool:
        """At its last step, or earlier where a method says so when it is asked."""
        if self.step - self.book.stage_began >= self.stage.steps:
            return True
        return self.is_asked() and self.method.done(self.whole_params(), self.state.method, self.stage, self.step)

    def is_asked(self) -> bool:
        done, every = self.step - self.book.stage_began, self.stage.ask_every
        return every > 0 and done > 0 and done % every == 0

    def whole_params(self) -> Params:
        return join(self.state.params, self.state.frozen)

    def observe(self):
        """Lets the methods look at the parameters where they have asked to."""
        if self.is_asked():
            seen = self.method.observe(self.whole_params(), self.state.method, self.stage)
            self.state = self.state._replace(method=place(jax.tree.map(np.asarray, seen), self.mesh))

    def every(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    def clock(self, step: int) -> Clock:
        return begin.clock_of(self.timeline, self.book.stage, step, self.book.training_began)

    def learning_rate(self, step: int) -> float:
        return self.stage.learning_rate(self.clock(step), step - self.book.stage_began)

    def drawn(self, step: int) -> tuple[Program, Route, list[float]]:
        """The program of a step of this stage with its plan packed, its route, and the share of the micro-batches
        in which each layer runs.
        """
        program = self.stage.program
        rng = np.random.default_rng((self.settings.seed, DRAW, step))
        scale_ML = self.method.draw(self.stage, self.clock(step), rng)
        plan, route = pack(program.plan, scale_ML, program.model.widths_L)
        on_L = [1.0] * program.model.depth if scale_ML is None else (scale_ML != 0).mean(0).tolist()
        return begin.with_plan(program, plan), route, on_L

    def look_ahead(self, batch):
        """Begins to compile the programs of the next steps of this stage, in the background."""
        end = min(self.step + LOOK_AHEAD, self.book.stage_began + self.stage.steps)
        for step in range(self.step, end):
            program, route, _ = self.drawn(step)
            self.programs.begin(program, self.state, batch, route, 0.0)
        self.looked = end

    def train_step(self):
        """Dispatches one step; its metrics are fetched when the next one has been dispatched."""
        stage, book = self.stage, self.book
        if self.loader is None:
            self.loader = batches.batches(
                self.rows_of[begin.order_of(stage)],
                stage.program.batch_size,
                start=book.data.setdefault(begin.order_of(stage), 0),
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                workers=self.settings.data.workers,
            )
        next_index, batch = next(self.loader)
        batch = global_batch(batch, self.mesh)
        if self.step >= self.looked:
            self.look_ahead(batch)
        program, route, on_L = self.drawn(self.step)
        arguments = (self.state, batch, route, self.learning_rate(self.step))
        if not self.programs.has(program, self.state, route):
            self.settle()
            book.lap("seconds")
            self.programs.add(program, *arguments)
            book.lap("compile_seconds")
        self.state, metrics = self.programs(program, *arguments)
        self.settle()
        self.pending = (program, on_L, metrics)
        self.step += 1
        book.data[begin.order_of(stage)] = next_index
        shown = self.last.get("train", {})
        keys = ("mlm_loss", "mlm_accuracy", "utilisation")
        self.progress.update(self.step, {key: shown[key] for key in keys if key in shown})

    def settle(self):
        """Waits for the step in flight, if there is one, and books it."""
        if self.pending is None:
            return
        (program, on_L, metrics), self.pending = self.pending, None
        sums = {key: float(value) for key, value in jax.device_get(metrics).items()}
        if not math.isfinite(sums["loss"] + sums["gradient_norm"]):
            raise BadInput(report.not_finite(self.step, sums, self.root))
        self.book.add(
            {**sums, "layers_run": sum(on_L)},
            examples=program.batch_size,
            tokens_real=int(sums["tokens_real"]),
            tokens_padded=program.batch_size * program.seq_len,
            flops=step_flops(program, on_L).executed,
            flops_dense=dense_equivalent(program, self.dense_model),
        )

    def write_train_row(self):
        """Means since the last row."""
        self.settle()
        self.book.lap("seconds")
        last = self.step - 1
        report_of = self.method.report(self.state.method, self.stage, self.clock(last), self.pieces)
        before = self.last.get("train", dict.fromkeys((*COUNTS, "seconds"), 0))
        counted = {key: count - before[key] for key, count in self.book.counts.items()}
        used = utilisation(counted, self.book.times["seconds"] - before["seconds"], self.peak)
        self.write("train", self.book.take_means(), learning_rate=self.learning_rate(last), **used, **report_of)

    def evaluate(self):
        self.settle()
        self.book.lap("seconds")
        arguments = (self.state.params, self.state.frozen, self.state.method, self.stage.program)
        means = self.evaluator.full(*arguments)
        if any(span.rows is not None or span.keys is not None for span in self.stage.program.plan):
            restricted = self.evaluator(*arguments)
            means |= {f"{key}_dropping": restricted[key] for key in ("mlm_loss", "mlm_accuracy")}
        self.book.lap("eval_seconds")
        self.write("valid", means)
        self.progress.say(
            f"step {self.step}: held-out MLM loss {means['mlm_loss']:.4f} nats, accuracy {means['mlm_accuracy']:.3f}"
        )

    def write(self, split: str, means: dict, **more):
        times = {key: round(value, 3) for key, value in self.book.times.items()}
        where = {"step": self.step, "stage": self.stage.name, "split": split}
        self.last[split] = {**where, **means, **self.book.counts, **times, **more, "fingerprint": self.fingerprint}
        if self.rows is not None:
            self.rows.write(self.last[split])

    def save(self):
        """Writes a checkpoint of this step."""
        self.settle()
        self.book.lap("seconds")
        about = {
            "version": __version__,
            "stage": checkpoint.stage_to_json(self.stage),
            "earlier_stages": [checkpoint.stage_to_json(stage) for stage in self.timeline[: self.book.stage]],
            "vocab": self.manifest["vocab"],
            "data": dataclasses.asdict(self.settings.data),
            "eval": dataclasses.asdict(self.settings.eval),
            "fingerprint": self.fingerprint,
            "methods": self.settings.methods,
            "init": self.settings.init,
            "book": self.book.to_json(),
        }
        older = [step for step in checkpoint.steps(self.root) if step < self.step]
        keep = older[::-1][: self.settings.checkpoint.keep - 1]
        checkpoint.save(self.root, self.state, about, self.vocab, {*keep, *([0] if self.method.needs_initial else [])})
        self.book.lap("save_seconds")

    def enter_next_stage(self):
        """The methods' surgery on the state, and the next stage as they settled it."""
        old, new = self.stage, self.timeline[self.book.stage + 1]
        self.book.lap("seconds")
        self.state, new = begin.next_state(
            self.state, self.method, old, new, self.initial, self.optimizer, self.settings.seed, self.mesh
        )
        self.book.ends.append(self.step)
        self.timeline[self.book.stage] = new
        self.write_stages()
        if new.data == "restart":
            self.book.data, self.book.training_began = {}, self.step
        self.close_loader()
        self.looked = self.step
        self.book.lap("compile_seconds")

    def initial(self):
        """The parameters of step 0."""
        return checkpoint.restore_params(checkpoint.find(self.root / "0"))

    def write_stages(self):
        if self.is_main:
            stages = [checkpoint.stage_to_json(stage) for stage in self.timeline]
            atomic_json(self.workdir / "stages.json", {"stages": stages})

    def close_loader(self):
        if self.loader is not None:
            self.loader.close()
        self.loader = None

    def close(self):
        self.close_loader()
        self.programs.close()
        self.progress.close()
        if self.rows is not None:
            self.rows.close()
            self.lock.close()
            self.rows = None

    def finish(self) -> dict:
        """Writes `summary.json`."""
        self.close()
        summary = report.summary(self.settings, self.last, self.book, self.step, self.mesh, self.peak)
        if self.is_main:
            report.farewell(summary, self.workdir)
            atomic_json(self.workdir / "summary.json", summary)
        return summary
