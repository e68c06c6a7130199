"""Going back: the checkpoint to which a run returns after bad steps, and the counts that it keeps."""

import pathlib
from collections.abc import Callable

from bert_fast.train import checkpoint, report
from bert_fast.train.counters import GUARDED, Counters, total
from bert_fast.train.guard import BadSteps, Diverged, Guard


def target(
    root: pathlib.Path, guard: Guard, counters: Counters, error: BadSteps, say: Callable[[str], None]
) -> pathlib.Path | None:
    """The newest undamaged checkpoint whose last step was not skipped. None if the run has no checkpoints:
    it then goes back to its first step.

    Raises Diverged if the run has skipped too many steps in total, has gone back as often as it may, or has
    checkpoints but none that qualifies.
    """
    skipped, backs = counters.counts["skipped_steps"], counters.counts["rollbacks"]
    spent = f"{error}. The run has skipped {skipped} steps and gone back {backs} times"
    if skipped > guard.most:
        raise Diverged(report.advice(f"{spent}: --config.guard.most={guard.most}", root))
    if backs >= guard.rollbacks:
        limit = f": --config.guard.rollbacks={guard.rollbacks}" if backs else ""
        raise Diverged(report.advice((spent if backs else str(error)) + limit, root))
    saved = checkpoint.steps(root)
    for step in reversed(saved):
        folder = root / str(step)
        if problem := checkpoint.damage(folder):
            say(f"checkpoint {folder} is damaged: {problem}")
        elif checkpoint.about(folder).counters.streak == 0:
            return folder
    if saved:
        raise Diverged(report.advice(f"{error}, and there is no checkpoint from before the skipped steps", root))
    return None


def discard_later(root: pathlib.Path, step: int):
    """Deletes the checkpoints after `step`, to which a run goes back. They are from the bad steps, or damaged.

    If the run is then killed before its next save, it continues from `step`, where its log rows end.
    """
    for later in checkpoint.steps(root):
        if later > step:
            checkpoint.discard(root / str(later))


def carry(before: Counters, at: int, now: Counters, step: int):
    """Carries counts over when a run goes back from step `at` to a checkpoint at `step`.

    before: the run's counters at step `at`. now: the checkpoint's counters, which this function changes. Data that was
    read since the checkpoint is avoided from now on; if the data has begun again in the meantime, only what was read
    after that. The time since the checkpoint counts as wasted.
    """
    began_again = before.training_began != now.training_began
    for order, end in before.data.items():
        begin = 0 if began_again else now.data.get(order, 0)
        if end > begin:
            now.avoided.append([order, begin, end])
    now.avoided += [part for part in before.avoided if part not in now.avoided]
    for name in GUARDED:
        now.counts[name] = before.counts[name]
    now.count(rollbacks=1, wasted_steps=at - step)
    now.times["wasted_seconds"] += total(before.times) - total(now.times)
    now.mark = before.mark
