"""One run: a task, a learning rate, a seed."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_fast import Interrupted
from bert_fast.method import Clock, Stage
from bert_fast.tasks import batches
from bert_fast.tasks.trainer import Trainer
from bert_fast.train.stop import Stop


class Run(NamedTuple):
    """A finished run: what results.json says of it, and the last logits by split."""

    result: dict[str, Any]
    logits: dict[str, np.ndarray]


def train_and_score(
    trainer: Trainer, rate: float, seed: int, stop: Stop, progress: Callable[[dict[str, float]], None]
) -> Run:
    """Trains and scores; `progress` is called after each step with numbers to show.

    A run whose loss is no longer finite ends there and is scored as it is: it belongs to its learning rate. Raises
    Interrupted after a signal; nothing of this run is then kept.
    """
    live = Live(trainer, rate, seed)
    while not live.diverged:
        if live.stage_is_over():
            if live.index + 1 == len(live.stages):
                break
            live.enter_stage(live.index + 1)
            continue
        live.train_step()
        live.observe()
        if signum := stop.signum(live.step):
            raise Interrupted(signum, "the runs that are finished are kept")
        if live.is_due():
            live.evaluate()
        progress(live.numbers())
    if not live.curve or live.curve[-1]["step"] != live.step - live.began:
        live.evaluate()
    return live.finish()


class Live:
    """A run in progress. A training is what lies between two restarts: only the last one is evaluated."""

    def __init__(self, trainer: Trainer, rate: float, seed: int):
        self.trainer, self.seed = trainer, seed
        self.about = {"task": trainer.task.name, "learning_rate": rate, "seed": seed}
        self.stages: list[Stage] = trainer.timeline(rate)
        self.state = trainer.first_state(seed)
        self.initial = jax.tree.map(np.asarray, self.state.params) if trainer.method.needs_initial else {}
        self.step, self.began, self.diverged, self.ended = 0, 0, False, False
        self.clocks, self.mark = {"seconds": 0.0, "eval_seconds": 0.0}, time.monotonic()
        self.examples, self.tokens = 0, 0
        self.losses: list[Any] = []
        self.curve: list[dict[str, Any]] = []
        self.timed: list[dict[str, Any]] = []
        self.logits: dict[str, np.ndarray] = {}
        self.enter_stage(0)

    @property
    def stage(self) -> Stage:
        return self.stages[self.index]

    def enter_stage(self, index: int):
        """The methods' surgery, and the stage as they settled it; a restart begins the training, and its data, anew."""
        if index:
            self.close_stage()
            old, new = self.stages[index - 1 : index + 1]
            self.state, self.stages[index] = self.trainer.next_state(self.state, old, new, self.initial, self.seed)
        self.index, self.entered, self.ended = index, self.step, False
        if not index or self.stage.data == "restart":
            settings, start = self.trainer.settings, self.trainer.start
            self.began, self.losses = self.step, []
            self.batches = batches.train_batches(
                self.trainer.task.train, self.trainer.widths, settings.batch_size, start.vocab.pad, self.seed
            )
            ends = [i for i in range(index + 1, len(self.stages)) if self.stages[i].data == "restart"]
            self.training_steps = sum(stage.steps for stage in self.stages[index : min(ends, default=None)])

    def close_stage(self):
        """Notes what a stage took."""
        self.lap("seconds")
        model, since = self.stage.program.model, sum(stage["seconds"] for stage in self.timed)
        self.timed.append(
            {
                "stage": self.stage.name,
                "steps": self.step - self.entered,
                "seconds": round(self.clocks["seconds"] - since, 3),
                "heads": list(model.heads_L),
                "neurons": list(model.hidden_L),
            }
        )

    def stage_is_over(self) -> bool:
        return self.ended or self.step - self.entered >= self.stage.steps

    def train_step(self):
        """Dispatches a step; looks at the loss of the one before, whose step it so waits for."""
        batch = next(self.batches)
        self.examples += int(batch["weights"].sum())
        self.tokens += int(batch["segments"].sum())
        clock = Clock(self.step - self.began, self.training_steps)
        rate = self.stage.learning_rate(clock, self.step - self.entered)
        self.state, loss = self.trainer.train_step(self.state, batch, self.seed, rate, self.stage.program)
        if self.losses:
            self.losses[-1] = float(self.losses[-1])
            self.diverged = not math.isfinite(self.losses[-1])
        self.losses.append(loss)
        self.step += 1

    def observe(self):
        """Lets the methods look at the parameters where they have asked to, and end the stage."""
        stage, since = self.stage, self.step - self.entered
        if stage.ask_every and since % stage.ask_every == 0:
            method = self.trainer.method
            seen = method.observe(self.state.params, self.state.method, stage)
            self.state = self.trainer.place(self.state._replace(method=seen))
            self.ended = method.done(self.state.params, self.state.method, stage, self.step)

    def is_due(self) -> bool:
        """After every so many steps, or each epoch, of the last training."""
        every = self.trainer.settings.eval.every or self.trainer.per_epoch
        last = all(stage.data != "restart" for stage in self.stages[self.index + 1 :])
        return last and (self.step - self.began) % every == 0

    def evaluate(self):
        """Metrics on the held-out rows, and the mean loss since the last time."""
        losses = [float(loss) for loss in self.losses]
        self.losses, self.diverged = [], not math.isfinite(sum(losses))
        self.lap("seconds")
        task, trainer = self.trainer.task, self.trainer
        found = {
            split: trainer.logits(self.state.params, rows, self.stage.program) for split, rows in task.held_out.items()
        }
        self.logits = {split: np.nan_to_num(logits) for split, logits in found.items()}
        at = self.step - self.began
        row = {
            "step": at,
            "epoch": at / trainer.per_epoch,
            "train_loss": None if self.diverged else float(np.mean(losses)),
        }
        self.curve.append(row | task.score(self.logits))
        self.lap("eval_seconds")

    def numbers(self) -> dict[str, float]:
        """For the progress line."""
        last = self.curve[-1] if self.curve else {}
        return {key: last[key] for key in ("train_loss", "score") if last.get(key) is not None}

    def lap(self, name: str):
        now = time.monotonic()
        self.clocks[name] += now - self.mark
        self.mark = now

    def finish(self) -> Run:
        """Predictions for the test files, and all that is known."""
        self.close_stage()
        program, trainer = self.stage.program, self.trainer
        for split, rows in trainer.task.test.items():
            self.logits[split] = np.nan_to_num(trainer.logits(self.state.params, rows, program))
        self.lap("eval_seconds")
        result = self.about | {"diverged_at": self.step if self.diverged else None}
        result |= {"steps": self.step, "examples": self.examples, "tokens_real": self.tokens, "stages": self.timed}
        result |= {key: round(value, 3) for key, value in self.clocks.items()}
        best = max(self.curve, key=lambda row: row["score"])
        return Run(result | {"last": self.curve[-1], "best": best, "curve": self.curve}, self.logits)
