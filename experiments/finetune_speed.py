"""Fine-tuning's throughput: the share of real positions, and examples a second against rows that are all full.

    python -m experiments.finetune_speed [--size=mini] [--epochs=5]

MRPC's training set in bucketed batches, and as many rows of random words that all have its mean length; epochs of the
two take turns in one process. Also counts the programs that are compiled after the first epoch. Reads
$BERT_FAST_DATA/{glue,vocab}; writes experiments/finetune_speed.md.
"""

import argparse
import os
import pathlib
import platform
import sys
import time

import jax
import numpy as np

from bert_fast import bert
from bert_fast.data import vocab
from bert_fast.tasks import batches, data, settings
from bert_fast.tasks.encoder import Encoder
from bert_fast.tasks.trainer import Trainer
from configs import common, glue
from experiments.timing import spread


class Epochs:
    """One trainer's steps, epoch by epoch."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.state = trainer, trainer.first_state(0)
        self.batches = batches.train_batches(
            trainer.task.train, trainer.widths, trainer.settings.batch_size, trainer.start.vocab.pad, 0
        )

    def run(self, steps: int) -> float:
        """Examples a second over so many steps."""
        (stage,) = self.trainer.timeline(3e-5)
        began, examples = time.perf_counter(), 0
        for _ in range(steps):
            batch = next(self.batches)
            examples += int(batch["weights"].sum())
            self.state, loss = self.trainer.train_step(self.state, batch, 0, 3e-5, stage.program)
        jax.block_until_ready(loss)
        return examples / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="mini", help="of the model: tiny, mini, small, medium, base or large")
    parser.add_argument("--epochs", type=int, default=5, help="that are timed of each, after a first one")
    parser.add_argument("--steps", type=int, default=0, help="of an epoch; 0: all")
    args = parser.parse_args()
    if "BERT_FAST_DATA" not in os.environ:
        sys.exit("error: set BERT_FAST_DATA to the folder that holds glue/ and vocab/")
    root = pathlib.Path(os.environ["BERT_FAST_DATA"])
    config = glue.get_config("task=mrpc")
    config.data.dir = str(root / "glue")
    made = settings.make(config.to_dict())
    words = vocab.load(root / "vocab/bert-base-uncased.txt")
    model = bert.Config(words.size, special_ids=tuple(words.special_ids.values()), **common.size(args.size))
    start = Encoder(model, jax.tree.map(np.asarray, bert.init(model, jax.random.key(0))), words, {})

    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiles.append(event) if event.endswith("backend_compile_duration") else None
    )
    task = data.make("mrpc", data.read("mrpc", made), words, made)
    mean = round(float(task.train.lengths_N.mean()))
    rng = np.random.default_rng(0)
    ids_N = list(rng.integers(1_000, words.size, (len(task.train.ids_N), mean), np.int32))
    full_rows = batches.Rows(ids_N, [np.zeros(mean, np.int32)] * len(ids_N), task.train.labels)
    bucketed, full = Trainer(task, start, made), Trainer(task._replace(train=full_rows), start, made)
    full.widths = (mean,)
    runs = {"bucketed": Epochs(bucketed), "full": Epochs(full)}
    steps = args.steps or bucketed.per_epoch
    for epochs in runs.values():
        epochs.run(bucketed.per_epoch)
    after_first = len(compiles)
    speeds = [{name: epochs.run(steps) for name, epochs in runs.items()} for _ in range(args.epochs)]
    ratio = spread([speed["bucketed"] / speed["full"] for speed in speeds])
    each = {name: spread([speed[name] for speed in speeds]) for name in runs}
    share = batches.real_share(task.train, bucketed.widths, made.batch_size)
    text = f"""# Fine-tuning: padding and throughput at MRPC's lengths

`python -m experiments.finetune_speed --size={args.size} --epochs={args.epochs} --steps={args.steps}`, {platform.machine()}, jax {jax.__version__}, {jax.devices()[0].device_kind},
batches of {made.batch_size}, {len(ids_N):,} rows of {task.train.lengths_N.mean():.1f} tokens on average, dropout, float32. Medians of
{args.epochs} alternating runs of {steps} steps (10th to 90th percentile).

| | measured | aim |
|---|---|---|
| widths of batches | {", ".join(map(str, bucketed.widths))} | |
| real tokens of an epoch's positions | {share:.3f} | at least 0.75 |
| the same padded to 128 | {task.train.lengths_N.mean() / 128:.3f} | |
| examples a second, bucketed | {each["bucketed"][0]:.1f} ({each["bucketed"][1]:.1f} to {each["bucketed"][2]:.1f}) | |
| examples a second, all rows of {mean} tokens | {each["full"][0]:.1f} ({each["full"][1]:.1f} to {each["full"][2]:.1f}) | |
| bucketed over full | {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}) | at least 0.75 |
| programs compiled after the first epoch | {len(compiles) - after_first} | 0 |
"""
    pathlib.Path(__file__).with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
