"""Pre-training: log rows, evaluations and checkpoints around the engine. It refers to no method by name."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Sequence

import jax

from bert_fast import BadInput, Interrupted, methods
from bert_fast.cost.accelerators import peak_of_all
from bert_fast.cost.utilisation import utilisation
from bert_fast.data import masking, sealed, shards
from bert_fast.data.files import check_output, hold
from bert_fast.method import Stage
from bert_fast.train import (
    budget,
    checkpoint,
    goodput,
    initial_params,
    inputs,
    optim,
    replay,
    report,
    resume,
    rollback,
    sharding,
    sinks,
    step_costs,
    timeline,
)
from bert_fast.train.agreement import agree, checksums
from bert_fast.train.compile import Programs
from bert_fast.train.counters import COUNTS
from bert_fast.train.description import Description, stage_to_json
from bert_fast.train.engine import BatchSource, Engine
from bert_fast.train.evaluate import Evaluator, eval_batches, fingerprint
from bert_fast.train.guard import BadSteps
from bert_fast.train.log import MetricWriter, Progress, rows_until
from bert_fast.train.objective import PRETRAINING, make_eval_step, row_of
from bert_fast.train.profile import Profile
from bert_fast.train.saver import ALONE, Mirror, Saver
from bert_fast.train.settings import PretrainSettings
from bert_fast.train.sharding import make_mesh
from bert_fast.train.signals import Break
from bert_fast.train.step import make_step
from bert_fast.train.waiting import Waiting


def pretrain(
    settings: PretrainSettings, config: dict, workdir: pathlib.Path, began: float | None = None, mirror: Mirror = ALONE
) -> dict:
    """Starts or continues a run in `workdir`; returns its summary.

    `settings` were made from `config`, which is saved in the folder. A continued run may change only what resume.py
    lists. Raises BadInput before training if the settings, the shards or the folder cannot be used, and later if saving
    fails or a weight is not finite. Raises Diverged if the guard stops the run, and Interrupted if a signal stops it.

    began: when the process began, on the monotonic clock; None: now. mirror: copies each save elsewhere.
    """
    signum, began = 0, time.monotonic() if began is None else began
    with contextlib.closing(PretrainRun(settings, config, workdir, began)) as run, run.waiting, run.saver:
        run.saver.mirror = mirror
        while True:
            try:
                if signum:
                    run.stop(signum)
                while run.advance():
                    run.work(*run.waiting.asked(run.step, run.is_main and run.saver.due()))
                return run.finish()
            except BadSteps as error:
                run.roll_back(error)
            except Break as signal:
                signum = signal.signum


class PretrainRun:
    """A pre-training run in progress, and the operations that the loop calls."""

    def __init__(self, settings: PretrainSettings, config: dict, workdir: pathlib.Path, began: float):
        """Checks settings, shards and folder. Then resumes the newest checkpoint, or begins at step 0 without one."""
        self.workdir, self.root, self.began = workdir, workdir / "checkpoints", began
        self.sign, self.is_main = 0.0, jax.process_index() == 0
        check_output(workdir, "--workdir")
        sinks.check(settings.sinks)
        self.manifest = shards.verify(settings.data.dir)
        agree("shards", lambda: {**self.manifest["vocab"], "fingerprint": self.manifest["fingerprint"]})
        self.method = methods.make(settings.methods)
        self.settings = settings = budget.resolved(settings, self.method)
        optimizer = optim.make(settings.optimizer)
        stages = timeline.stages(settings, self.method)
        self.rows_of = {inputs.order_of(stage): inputs.training_examples(settings, stage) for stage in stages}
        self.fingerprint = fingerprint(self.manifest, settings.data, settings.eval)
        held_out = eval_batches(settings.data, settings.eval)
        self.mesh = make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor)
        sharding.check_stages(settings.eval.batch_size, stages, self.mesh)
        if checkpoint.steps(self.root):  # a folder without checkpoints accepts any config
            resume.refuse_changed(workdir, config, settings.extend, self.say)
            keys = [step_costs.key_of(stage, settings.methods, settings.optimizer.name) for stage in stages]
            resume.refuse_other_costs(workdir, settings.costs, keys)
        self.peak = peak_of_all(self.mesh, settings.measure_peak)

        self.programs = Programs(make_step(self.method, optimizer, PRETRAINING), self.mesh)
        self.meter = budget.Meter(settings, self.method) if settings.budget else None
        if self.is_main:  # lock before reading the state, which another run may be changing
            workdir.mkdir(parents=True, exist_ok=True)
            busy = f"another run is writing to {workdir}: wait for it to finish, or choose another --workdir"
            self.sign = goodput.last_sign(workdir / ".lock")
            self.lock = hold(workdir / ".lock", busy)
        try:
            self.evaluator = Evaluator(make_eval_step(self.method), held_out, self.mesh)
            self.new_engine = functools.partial(self.engine_of, optimizer, stages)
            self.start(config)
        except BaseException:
            if self.is_main:
                self.lock.close()
            raise

    def engine_of(self, optimizer, stages: Sequence[Stage]) -> Engine:
        """An engine for these stages, still without a state."""
        settings = self.settings
        batches = functools.partial(inputs.batches_of, self.rows_of, settings.data.workers)
        source = BatchSource(batches, inputs.order_of, lambda stage: [stage.program.seq_len])
        about = (settings.model, settings.seed, self.initial, settings.guard, lambda line: self.progress.say(line))
        engine = Engine(self.method, optimizer, self.programs, source, stages, *about)
        engine.waits = self.waits
        again = functools.partial(inputs.batch_again, self.rows_of)
        engine.replay = replay.make(settings.replay_every, self.method, optimizer, PRETRAINING, self.programs, again)
        if self.meter:
            engine.replan = functools.partial(budget.replanned, self.meter, stages)
        return engine

    def load(self, folder: pathlib.Path | None):
        """Makes an engine with the state of a checkpoint, or with the state of step 0."""
        settings, self.engine = self.settings, self.new_engine()
        agree("newest checkpoint", lambda: checkpoint.identity(folder))
        if folder is not None:
            about = checkpoint.about(folder)
            resume.check_shards(settings, about, self.fingerprint)
            self.vocab, self.expected = about.vocab, about.rows
            self.engine.resume(folder, resume.stages_of(about, settings.model), about.counters)
            self.engine.timeline = resume.extended(self.engine.timeline, about, settings.steps, settings.extend)
            resume.say_mesh(about, self.mesh.shape, self.say)
            if self.method.needs_initial and not self.engine.is_last_stage():
                checkpoint.find(self.root / "0")  # a later stage needs it: report damage now
        else:
            self.vocab, self.expected = masking.read_vocab(settings.data.dir), None
            self.engine.begin(initial_params.first(settings, self.stage.program.model, self.manifest, self.mesh))
        agree("parameters", lambda: checksums(self.engine.state.params))
        # The newest row of each split, including rows from before a resume.
        self.last = {row["split"]: row for row in rows_until(self.workdir / "metrics.jsonl", self.step)}

    def start(self, config: dict):
        """Makes the state, prints the plan, and opens the files."""
        settings, workdir = self.settings, self.workdir
        folder, loading = checkpoint.newest(self.root, report.say), time.monotonic()
        self.load(folder)
        restored = time.monotonic() - loading if folder else 0.0
        self.pieces = self.vocab.content.decode().split("\n")
        if self.is_main:
            sealed.write(workdir / "config.json", config)
            if not self.engine.is_over():
                (workdir / "summary.json").unlink(missing_ok=True)  # written before the run was extended
            if settings.costs:
                step_costs.write(settings.costs, workdir / "costs.json")
            report.plan(settings, self.method, self.engine, self.manifest, workdir)
        self.first = self.step
        self.progress = Progress(self.engine.planned_steps(), self.step, self.is_main)
        self.progress.follow(report.course(self.method, self.engine))
        self.profile = Profile(workdir / "profile", settings.profile if self.is_main else None)
        to = sinks.begin(settings.sinks, sinks.Tracked(workdir, config, self.step), self.progress.say)
        self.rows = MetricWriter(workdir, self.step, to, self.expected) if self.is_main else None
        self.write_stages()
        self.waiting = Waiting(settings.watchdog, workdir / ".lock" if self.is_main else None)
        self.saver = Saver(self.root, settings.checkpoint, self.method.needs_initial, self.waits, self.progress.say)
        if self.engine.is_over():  # the run only writes its summary again
            self.engine.counters.start_clock()
        else:
            goodput.begin(self.engine.counters, self.began, folder, self.sign, restored)
        if self.step == 0 and self.method.needs_initial and folder is None:
            self.save()

    def roll_back(self, error: BadSteps):
        """Continues at the last good checkpoint, with data that has not been read yet. Raises Diverged."""
        before, at = self.engine.counters, self.step
        self.engine.close()
        self.saver.forget()
        folder = rollback.target(self.root, self.settings.guard, before, error, self.progress.say)
        self.load(folder)
        rollback.carry(before, at, self.engine.counters, self.step)
        if self.rows is not None:  # the main process
            self.saver.go_back(self.step)
            self.rows.go_back(self.step)
        self.write_stages()
        self.progress.say(f"{error}: back to step {self.step}, skipping the data read up to step {at}")
        self.engine.counters.lap("restore_seconds")

    def say(self, line: str):
        """Prints a line, once for all processes."""
        if self.is_main:
            report.say(line)

    @property
    def step(self) -> int:
        return self.engine.step

    @property
    def stage(self) -> Stage:
        return self.engine.stage

    def waits(self, kind: str):
        return self.waiting.until(kind, self.step + 1)

    def stop(self, signum: int):
        """Saves the run and raises Interrupted."""
        self.save(wait=True)
        raise Interrupted(signum, f"step {self.step} is saved in {self.root}")

    def every(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    def advance(self) -> bool:
        """Takes one step. Returns False at the end of the run. Raises BadSteps."""
        before = self.engine.counters.stage
        if self.profile.at(self.step) and not self.engine.is_over():
            self.settle()
            self.profile.switch()
        going = self.engine.advance()
        if self.engine.counters.stage > before:
            self.write_stages()
            self.progress.follow(report.course(self.method, self.engine))
        if self.step == self.first + 2:  # the second step waited for the first
            self.progress.say(report.first_step())
        shown = self.last.get("train", {})
        keys = ("mlm_loss", "mlm_accuracy", "utilisation")
        self.progress.update(self.step, {key: shown[key] for key in keys if key in shown})
        return going

    def work(self, signum: int, due: bool):
        """Does the work due after a step: a row, an evaluation, a checkpoint. Raises Interrupted after a signal."""
        self.saver.check()
        settings, over, final = self.settings, self.engine.stage_is_over(), self.engine.is_over()
        if over or self.every(settings.log_every):
            self.write_train_row()
        if final or self.every(settings.eval.every):
            self.evaluate()
        if signum and not final:
            self.stop(signum)
        if final or due or self.every(settings.checkpoint.every):
            self.save(wait=final)

    def settle(self, name: str = "seconds"):
        """Waits for the step in flight, and counts the time since the last lap as `name`. Raises BadSteps."""
        self.engine.settle()
        self.engine.counters.lap(name)

    def write_train_row(self):
        """Writes the means over the steps since the last train row. Writes nothing if every one was skipped."""
        self.settle()
        engine, counters, last = self.engine, self.engine.counters, self.step - 1
        if not counters.since:
            return
        report_of = self.method.report(engine.state.method, self.stage, engine.clock(last), self.pieces)
        before = self.last.get("train", dict.fromkeys((*COUNTS, "seconds"), 0))
        counted = {key: count - before.get(key, 0) for key, count in counters.counts.items()}
        used = utilisation(counted, counters.times["seconds"] - before["seconds"], self.peak)
        self.write("train", row_of(counters.take_sums()), learning_rate=engine.learning_rate(last), **used, **report_of)

    def evaluate(self):
        """Writes held-out losses. Raises BadInput if the weights are not finite."""
        self.settle()
        state, counters = self.engine.state, self.engine.counters
        self.check_weights()
        arguments = (state.params, state.frozen, state.method, self.stage.program)
        with self.waits("evaluate"):
            means = self.evaluator.full_and_dropping(*arguments)
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

    def save(self, wait: bool = False):
        """Starts to save this step. With `wait`, returns when the save has ended. Raises the error of a failed save."""
        self.settle()
        self.saver.save(self.engine, self.description, self.rows, wait)

    def description(self) -> Description:
        """The description of a checkpoint of this step."""
        settings, engine = self.settings, self.engine
        return Description(
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
            mesh=dict(self.mesh.shape),
            planned=settings.steps,
            rows=self.rows.count if self.rows is not None else None,
        )

    def initial(self):
        """The parameters of step 0."""
        self.saver.wait()
        return checkpoint.restore_params(checkpoint.find(self.root / "0"))

    def write_stages(self):
        if self.is_main:
            sealed.write(self.workdir / "stages.json", {"stages": [*map(stage_to_json, self.engine.timeline)]})

    def close(self):
        for part in (self.engine, self.programs, self.profile, self.progress):
            part.close()
        if self.rows is not None:
            self.rows.close()
            self.lock.close()
            self.rows = None

    def finish(self) -> dict:
        """Closes the files, writes `summary.json`, and returns the summary."""
        self.close()
        self.engine.counters.lap("idle_seconds")
        summary = report.summary(self.settings, self.last, self.engine.counters, self.step, self.mesh, self.peak)
        if self.meter:
            spent = self.meter.spent(self.engine.timeline, [*self.engine.counters.ends, self.step])
            summary["budget"] = {"asked": str(self.meter.budget), "spent": spent}
        if self.is_main:
            self.profile.explain(self.first, self.step)
            report.farewell(summary, self.workdir, self.settings.data.dir)
            sealed.write(self.workdir / "summary.json", summary)
        return summary
