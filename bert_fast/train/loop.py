"""Pre-training: log rows, evaluations and checkpoints around the engine. It refers to no method by name."""

import contextlib
import functools
import pathlib
from collections.abc import Sequence

import jax

from bert_fast import BadInput, Interrupted, methods
from bert_fast.cost.accelerators import measured_peak, peak_of
from bert_fast.cost.utilisation import utilisation
from bert_fast.data import batches, masking, shards
from bert_fast.data.files import atomic_json, check_output, hold
from bert_fast.method import Stage
from bert_fast.plan import drops_tokens
from bert_fast.train import (
    budget,
    checkpoint,
    initial_params,
    inputs,
    optim,
    report,
    resume,
    sharding,
    sinks,
    step_costs,
    timeline,
)
from bert_fast.train.compile import Programs
from bert_fast.train.counters import COUNTS
from bert_fast.train.description import Description, stage_to_json
from bert_fast.train.engine import BatchSource, Engine, NotFinite
from bert_fast.train.evaluate import Evaluator, eval_batches, fingerprint
from bert_fast.train.log import MetricWriter, Progress, read_rows
from bert_fast.train.objective import PRETRAINING, make_eval_step, row_of
from bert_fast.train.profile import Profile
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.sharding import make_mesh
from bert_fast.train.signals import StopSignal
from bert_fast.train.step import make_step


def pretrain(settings: PretrainSettings, config: dict, workdir: pathlib.Path) -> dict:
    """Starts or continues a run in `workdir`; returns its summary.

    `config` is what `settings` were made from. It is saved in the folder, and must be the same when
    the run continues. Raises BadInput before any training if the settings, the shards or the folder
    cannot be used. Raises it later if the loss or the weights are no longer finite, or a checkpoint
    cannot be written. Raises Interrupted after a signal, once the step is saved.
    """
    with contextlib.closing(PretrainRun(settings, config, workdir)) as run, StopSignal() as stop:
        while run.advance():
            over, final = run.engine.stage_is_over(), run.engine.is_over()
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


class PretrainRun:
    """A pre-training run in progress, and the operations that the loop calls."""

    def __init__(self, settings: PretrainSettings, config: dict, workdir: pathlib.Path):
        """Checks settings, shards and folder. Then resumes, else warm-starts, else starts from random parameters."""
        self.workdir, self.root = workdir, workdir / "checkpoints"
        check_output(workdir, "--workdir")
        sinks.check(settings.sinks)
        self.manifest = shards.verify(settings.data.dir)
        self.method = methods.make(settings.methods)
        self.settings = settings = budget.resolved(settings, self.method)
        optimizer = optim.make(settings.optimizer)
        stages = timeline.stages(settings, self.method)
        self.rows_of = {inputs.order_of(stage): inputs.training_examples(settings, stage) for stage in stages}
        self.fingerprint = fingerprint(self.manifest, settings.data, settings.eval)
        held_out = eval_batches(settings.data, settings.eval)
        self.mesh = make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor)
        sharding.check_divides(settings.eval.batch_size, stages, self.mesh)
        if checkpoint.steps(self.root):  # without a checkpoint, another config may use the folder
            resume.refuse_other(workdir, config, {"budget": ""})
            keys = [step_costs.key_of(stage, settings.methods, settings.optimizer.name) for stage in stages]
            resume.refuse_other_costs(workdir, settings.costs, keys)
        self.peak = self.peak_of_all()

        self.programs = Programs(make_step(self.method, optimizer, PRETRAINING), self.mesh)
        source = BatchSource(self.batches, inputs.order_of, lambda stage: [stage.program.seq_len])
        self.engine = Engine(
            self.method, optimizer, self.programs, source, stages, settings.model, settings.seed, self.initial
        )
        self.meter = budget.Meter(settings, self.method) if settings.budget else None
        if self.meter:
            self.engine.replan = functools.partial(budget.replanned, self.meter, stages)
        self.is_main = jax.process_index() == 0
        if self.is_main:  # lock before reading the state, which another run may be changing
            workdir.mkdir(parents=True, exist_ok=True)
            busy = f"another run is writing to {workdir}: wait for it to finish, or choose another --workdir"
            self.lock = hold(workdir / ".lock", busy)
        try:
            self.start(stages, held_out, config)
        except BaseException:
            if self.is_main:
                self.lock.close()
            raise

    def start(self, stages: Sequence[Stage], held_out: list, config: dict):
        """Makes the state, prints the plan, and opens the files."""
        settings, workdir = self.settings, self.workdir
        folder = checkpoint.newest(self.root, report.say)
        if folder is not None:
            about = checkpoint.about(folder)
            resume.check_shards(settings, about, self.fingerprint)
            self.vocab = about.vocab
            self.engine.resume(folder, [*about.earlier_stages, about.stage], about.counters)
            if self.method.needs_initial and not self.engine.is_last_stage():
                checkpoint.find(self.root / "0")  # a later stage needs it: report damage now
        else:
            self.vocab = masking.read_vocab(settings.data.dir)
            model = stages[0].program.model
            if settings.init:
                params = initial_params.warm(settings, model, self.manifest, self.mesh)
            else:
                params = initial_params.fresh(model, settings.seed, self.mesh)
            self.engine.begin(params)
        self.pieces = self.vocab.content.decode().split("\n")
        self.evaluator = Evaluator(make_eval_step(self.method), held_out, self.mesh)
        # The newest row of each split, including rows from before a resume.
        self.last = {row["split"]: row for row in read_rows(workdir / "metrics.jsonl") if row["step"] <= self.step}
        if self.is_main:
            atomic_json(workdir / "config.json", config)
            if settings.costs:
                step_costs.write(settings.costs, workdir / "costs.json")
            report.plan(settings, self.method, self.engine, self.manifest, workdir)
        counters, self.first = self.engine.counters, self.step
        self.progress = Progress(self.planned_steps(), self.step, self.is_main)
        self.profile = Profile(workdir / "profile", self.step, settings.profile if self.is_main else 0)
        tracked = sinks.Tracked(workdir, config, self.step)
        to = [sinks.Sink(name, tracked, self.progress.say) for name in settings.sinks]
        self.rows = MetricWriter(workdir, self.step, to) if self.is_main else None
        self.write_stages()
        if self.step == 0 and self.method.needs_initial and folder is None:
            self.save()
        counters.start_clock()

    @property
    def step(self) -> int:
        return self.engine.step

    @property
    def stage(self) -> Stage:
        return self.engine.stage

    def planned_steps(self) -> int:
        """Steps at the end of the run, as far as is known by now."""
        counters = self.engine.counters
        return counters.stage_began + sum(stage.steps for stage in self.engine.timeline[counters.stage :])

    def peak_of_all(self) -> float | None:
        """Peak FLOP/s of all devices together, or None if it is neither known nor to be measured."""
        device = self.mesh.local_devices[0]
        known = peak_of(device)
        if known is not None:
            return known * self.mesh.size
        if not self.settings.measure_peak:
            return None
        if device.platform != "cpu":
            raise BadInput(
                f"measure_peak is only for CPUs: add {device.device_kind!r} to bert_fast/cost/accelerators.py"
            )
        # One matrix product uses all cores of a host, even if JAX presents them as several devices.
        return measured_peak(device) * jax.process_count()

    def every(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    def batches(self, stage: Stage, index: int):
        """This process's part of each batch of a stage, starting at example `index` of the stage's order."""
        return batches.batches(
            self.rows_of[inputs.order_of(stage)],
            stage.program.batch_size,
            start=index,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.settings.data.workers,
        )

    def advance(self) -> bool:
        """Takes one step. Returns False at the end of the run. Raises BadInput if the loss is not finite."""
        before = self.engine.counters.stage
        if self.profile.at(self.step):
            self.settle()
            self.profile.switch()
        with self.finite():
            going = self.engine.advance()
        if self.engine.counters.stage > before:
            self.write_stages()
            self.progress.total = self.planned_steps()
        if self.step == self.first + 2:  # the second step waited for the first
            self.progress.say(report.first_step())
        shown = self.last.get("train", {})
        keys = ("mlm_loss", "mlm_accuracy", "utilisation")
        self.progress.update(self.step, {key: shown[key] for key in keys if key in shown})
        return going

    @contextlib.contextmanager
    def finite(self):
        """Turns a NotFinite raised inside the `with` block into a BadInput that says what to do."""
        try:
            yield
        except NotFinite as error:
            raise BadInput(report.advice(str(error), self.root)) from error

    def settle(self, name: str = "seconds"):
        """Waits for the step in flight, and counts the time since the last lap as `name`."""
        with self.finite():
            self.engine.settle()
        self.engine.counters.lap(name)

    def write_train_row(self):
        """Writes the means since the last train row."""
        self.settle()
        engine, counters, last = self.engine, self.engine.counters, self.step - 1
        report_of = self.method.report(engine.state.method, self.stage, engine.clock(last), self.pieces)
        before = self.last.get("train", dict.fromkeys((*COUNTS, "seconds"), 0))
        counted = {key: count - before[key] for key, count in counters.counts.items()}
        used = utilisation(counted, counters.times["seconds"] - before["seconds"], self.peak)
        rate = engine.learning_rate(last)
        self.write("train", row_of(counters.take_sums()), learning_rate=rate, **used, **report_of)

    def evaluate(self):
        """Writes held-out losses. Raises BadInput if the weights are not finite."""
        self.settle()
        state, counters = self.engine.state, self.engine.counters
        self.check_weights()
        arguments = (state.params, state.frozen, state.method, self.stage.program)
        means = self.evaluator.full(*arguments)
        if drops_tokens(self.stage.program.plan):
            restricted = self.evaluator(*arguments)
            means |= {f"{key}_dropping": restricted[key] for key in ("mlm_loss", "mlm_accuracy")}
        counters.lap("eval_seconds")
        self.write("valid", means)
        self.progress.say(
            f"step {self.step}: held-out MLM loss {means['mlm_loss']:.4f} nats, accuracy {means['mlm_accuracy']:.3f}"
        )

    def check_weights(self):
        """Raises BadInput if the last step made a weight NaN or infinite, even though its loss was finite."""
        if found := checkpoint.any_not_finite(self.engine.state):
            raise BadInput(report.advice(f"{found} is not finite (NaN or infinity) after step {self.step}", self.root))

    def write(self, split: str, means: dict, **more):
        counters = self.engine.counters
        times = {key: round(value, 3) for key, value in counters.times.items()}
        where = {"step": self.step, "stage": self.stage.name, "split": split}
        self.last[split] = {**where, **means, **counters.counts, **times, **more, "fingerprint": self.fingerprint}
        if self.rows is not None:
            self.rows.write(self.last[split])

    def save(self):
        """Writes a checkpoint of this step. Raises BadInput if the weights are not finite."""
        self.settle()
        settings, engine = self.settings, self.engine
        about = Description(
            step=self.step,
            stage=engine.stage,
            vocab=self.vocab,
            earlier_stages=tuple(engine.timeline[: engine.counters.stage]),
            counters=engine.counters,
            methods=settings.methods,
            data=settings.data,
            eval=settings.eval,
            fingerprint=self.fingerprint,
            init=settings.init,
        )
        older = [step for step in checkpoint.steps(self.root) if step < self.step]
        keep = older[::-1][: settings.checkpoint.keep - 1]
        keep += [0] if self.method.needs_initial else []
        checkpoint.save(self.root, engine.state, about, set(keep), self.progress.say)
        engine.counters.lap("save_seconds")

    def initial(self):
        """The parameters of step 0."""
        return checkpoint.restore_params(checkpoint.find(self.root / "0"))

    def write_stages(self):
        if self.is_main:
            stages = [stage_to_json(stage) for stage in self.engine.timeline]
            atomic_json(self.workdir / "stages.json", {"stages": stages})

    def close(self):
        self.engine.close()
        self.programs.close()
        self.profile.close()
        self.progress.close()
        if self.rows is not None:
            self.rows.close()
            self.lock.close()
            self.rows = None

    def finish(self) -> dict:
        """Closes the files, writes `summary.json`, and returns the summary."""
        self.close()
        summary = report.summary(self.settings, self.last, self.engine.counters, self.step, self.mesh, self.peak)
        if self.meter:
            spent = self.meter.spent(self.engine.timeline, [*self.engine.counters.ends, self.step])
            summary["budget"] = {"asked": str(self.meter.budget), "spent": spent}
        if self.is_main:
            report.farewell(summary, self.workdir)
            atomic_json(self.workdir / "summary.json", summary)
        return summary
