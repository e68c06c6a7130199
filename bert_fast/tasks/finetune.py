"""One fine-tuning run: one task, one learning rate, one seed."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bert_fast import BadInput, Interrupted
from bert_fast.tasks.trainer import Trainer
from bert_fast.train import checkpoint
from bert_fast.train.counters import TIMES
from bert_fast.train.description import Description
from bert_fast.train.guard import BadSteps
from bert_fast.train.report import say
from bert_fast.train.signals import StopSignal

UNDER_WAY = "under_way"  # subfolder of an unfinished run's folder, with the checkpoints to resume from


class Finished(NamedTuple):
    """A finished run: its entry in results.json, and its final logits by split."""

    result: dict[str, Any]
    logits: dict[str, np.ndarray]


def train_and_score(
    trainer: Trainer,
    rate: float,
    seed: int,
    folder: pathlib.Path,
    stop: StopSignal,
    progress: Callable[[int, dict[str, float]], None],
) -> Finished:
    """Trains and scores one run. Resumes it if `folder` has a checkpoint.

    After each step, calls `progress` with the step's number and the values to show. If the loss or the weights are no
    longer finite, the run ends and is scored with uninformative logits, so that it counts against its learning rate.
    Raises Interrupted after a signal, once the current step is saved.
    """
    run = FinetuneRun(trainer, rate, seed, folder)
    try:
        while run.advance():
            signum = stop.signum(run.engine.step)
            if run.is_due():  # evaluate before saving, because a resumed run would skip this evaluation
                run.evaluate()
            if signum and run.save():
                raise Interrupted(signum, f"step {run.engine.step} of this run is saved; finished runs are kept")
            run.save_if_due()
            progress(run.engine.step, run.numbers())
        return run.finish()
    finally:
        run.engine.close()


class FinetuneRun:
    """A run in progress. A method may restart the training. Only the training after the last restart is evaluated."""

    def __init__(self, trainer: Trainer, rate: float, seed: int, folder: pathlib.Path):
        """Resumes from the newest checkpoint in `folder`, or starts a new run."""
        self.trainer, self.folder, self.root = trainer, folder, folder / UNDER_WAY / "checkpoints"
        self.about = {"task": trainer.task.name, "learning_rate": rate, "seed": seed}
        self.engine = trainer.engine(rate, seed)
        self.curve: list[dict[str, Any]] = []
        self.logits: dict[str, np.ndarray] = {}
        self.diverged = False
        found = checkpoint.newest(self.root, say)
        if found is None:
            self.engine.begin(trainer.first_params(seed))
        else:
            about = checkpoint.about(found)
            self.engine.resume(found, [*about.earlier_stages, about.stage], about.counters)
            self.curve = [dict(row) for row in about.scored]
            if trainer.settings.keep == "best" and self.curve and not checkpoint.steps(folder / "checkpoints"):
                raise BadInput(
                    f"{folder} was started with another --config.keep, so its best weights were not saved: continue it "
                    "with --config.keep=last, or delete the folder"
                )
        self.engine.counters.start_clock()

    @property
    def at(self) -> int:
        """Steps since the training began, or since its last restart."""
        return self.engine.step - self.engine.counters.training_began

    def advance(self) -> bool:
        """Takes one step. Returns False at the end of the run, or once the loss or gradient is not finite."""
        if self.diverged:
            return False
        engine, before = self.engine, self.engine.counters.training_began
        try:
            going = engine.advance()
        except BadSteps:
            self.diverged = True
            return False
        if engine.counters.training_began > before:  # a restart: the curve leaves out the losses before it
            engine.counters.since = {}
        return going

    def is_due(self) -> bool:
        """Whether an evaluation is due.

        An evaluation is due every `eval.every` steps, or after each epoch if `eval.every` is 0. None is due before the
        last restart, nor after the last step, which `finish` evaluates.
        """
        engine, every = self.engine, self.trainer.settings.eval.every or self.trainer.per_epoch
        last = all(stage.data != "restart" for stage in engine.timeline[engine.counters.stage + 1 :])
        return last and self.at % every == 0 and not engine.is_over()

    def evaluate(self):
        """Adds a row to the curve: held-out metrics, and the mean training loss since the previous row.

        A diverged run is scored without running the model.
        """
        engine, task, trainer = self.engine, self.trainer.task, self.trainer
        self.settle()
        params = engine.whole_params()
        self.logits = {split: self.logits_of(params, rows) for split, rows in task.held_out.items()}
        since = engine.counters.take_sums()
        loss = None if self.diverged or not since else (since["loss"] - since["penalty"]) / since["steps"]
        row = {"step": self.at, "epoch": self.at / trainer.per_epoch, "train_loss": loss, **task.score(self.logits)}
        best = not self.curve or row["score"] > max(row["score"] for row in self.curve)
        self.curve.append(row)
        engine.counters.lap("eval_seconds")
        if best and trainer.settings.keep == "best" and not self.diverged:
            self.keep_weights()

    def settle(self):
        """Waits for the step in flight, then checks whether the run has diverged."""
        try:
            self.engine.settle()
        except BadSteps:
            self.diverged = True
        self.engine.counters.lap("seconds")
        self.diverged = self.diverged or bool(checkpoint.any_not_finite(self.engine.state))

    def logits_of(self, params, rows) -> np.ndarray:
        if self.diverged:
            return self.trainer.no_logits(rows)
        return self.trainer.logits(params, rows, self.engine.stage.program)

    def description(self) -> Description:
        engine, trainer = self.engine, self.trainer
        return Description(
            step=engine.step,
            stage=engine.stage,
            vocab=trainer.start.vocab,
            earlier_stages=tuple(engine.timeline[: engine.counters.stage]),
            counters=engine.counters,
            methods=trainer.settings.methods,
            init="" if trainer.settings.random_weights else trainer.start.origin,
            task=trainer.task.about,
            scored=tuple(self.curve),
        )

    def save(self) -> bool:
        """Writes a checkpoint to resume from. Returns False, writing nothing, if the run has diverged."""
        self.settle()
        if not self.diverged:
            checkpoint.save(self.root, self.engine.state, self.description(), set())
            self.engine.counters.lap("save_seconds")
        return not self.diverged

    def save_if_due(self):
        every = self.trainer.settings.checkpoint.every
        if every and self.engine.step % every == 0 and not self.engine.is_over():
            self.save()

    def keep_weights(self):
        """Writes a checkpoint of the weights alone, without the state of the optimizer and the methods."""
        self.engine.counters.lap("seconds")
        state = self.engine.state._replace(opt_state=(), method=())
        checkpoint.save(self.folder / "checkpoints", state, self.description(), set())
        self.engine.counters.lap("save_seconds")

    def numbers(self) -> dict[str, float]:
        """Values for the progress line."""
        last = self.curve[-1] if self.curve else {}
        return {key: last[key] for key in ("train_loss", "score") if last.get(key) is not None}

    def stages(self) -> list[dict[str, Any]]:
        """Steps, seconds, heads and neurons of each stage so far."""
        engine, counters = self.engine, self.engine.counters
        ends, seconds = [*counters.ends, engine.step], [*counters.end_seconds, counters.times["seconds"]]
        return [
            {
                "stage": stage.name,
                "steps": end - began,
                "seconds": round(until - since, 3),
                "heads": list(stage.program.model.heads_L),
                "neurons": list(stage.program.model.mlp_dim_L),
            }
            for stage, began, end, since, until in zip(
                engine.timeline, [0, *ends], ends, [0.0, *seconds], seconds, strict=False
            )
        ]

    def finish(self) -> Finished:
        """Evaluates a last time, predicts on the test files, and returns the run's results."""
        engine, trainer = self.engine, self.trainer
        if self.curve and self.curve[-1]["step"] == self.at:
            self.curve.pop()  # this step was evaluated before the divergence was noticed
        self.evaluate()
        for split, rows in trainer.task.test.items():
            self.logits[split] = self.logits_of(engine.whole_params(), rows)
        engine.counters.lap("eval_seconds")
        if trainer.settings.keep == "last" and not self.diverged:
            self.keep_weights()
        counters = engine.counters
        result = self.about | {"diverged_at": engine.step if self.diverged else None, "steps": engine.step}
        result |= {**counters.counts, **{key: round(counters.times[key], 3) for key in TIMES}, "stages": self.stages()}
        result["baseline"] = {"prediction": trainer.task.baseline.prediction, **trainer.task.baseline.metrics}
        best = max(self.curve, key=lambda row: row["score"])
        return Finished(result | {"last": self.curve[-1], "best": best, "curve": self.curve}, self.logits)
