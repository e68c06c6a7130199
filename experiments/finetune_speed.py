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
from bert_fast.encoder import Encoder
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.schedule import Schedule
from bert_fast.tasks import batches, data, settings
from bert_fast.tasks.trainer import Trainer
from bert_fast.train.description import Description
from configs import common, glue
from experiments.timing import spread


class Epochs:
    """One trainer's steps, epoch by epoch."""

    def __init__(self, trainer: Trainer):
        self.engine = trainer.engine(3e-5, 0)
        self.engine.begin(trainer.first_params(0))

    def run(self, steps: int) -> float:
        """Examples a second over so many steps."""
        began, before = time.perf_counter(), self.engine.counters.counts["examples"]
        for _ in range(steps):
            self.engine.train_step()
        self.engine.settle()
        jax.block_until_ready(self.engine.state)
        return (self.engine.counters.counts["examples"] - before) / (time.perf_counter() - began)


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
    config.epochs = 1_000.0  # more than are timed
    made = settings.make(config.to_dict())
    words = vocab.load(root / "vocab/bert-base-uncased.txt")
    model = bert.Config(words.size, special_ids=tuple(words.special_ids.values()), **common.size(args.size))
    program = Program(model, whole(model.depth), made.batch_size, 1, made.data.seq_len, 0, "mlm")
    about = Description(step=0, stage=Stage("fresh", program, 1, Schedule(1e-4, 1)), vocab=words)
    start = Encoder(root, jax.tree.map(np.asarray, bert.init(model, jax.random.key(0))), about)

    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiles.append(event) if event.endswith("backend_compile_duration") else None
    )
    task = data.make("mrpc", data.read("mrpc", made), words, made)
    mean = round(float(task.train.lengths_N.mean()))
    rng = np.random.default_rng(0)
    ids_N = list(rng.integers(1_000, words.size, (len(task.train.ids_N), mean), np.int32))
    full_rows = batches.TaskExamples(ids_N, [np.zeros(mean, np.int32)] * len(ids_N), task.train.labels)
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
