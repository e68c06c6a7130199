"""Padding and throughput of fine-tuning with bucketed batches, against batches without padding.

    python -m experiments.finetune_speed [--size=mini] [--epochs=5]

Times epochs of MRPC's training set in bucketed batches. For comparison, times epochs of equally many random examples
that all have MRPC's mean length, so that nothing is padded. The two kinds take turns in one process. Also counts the
programs compiled after the first epoch. Reads $BERT_FAST_DATA/{glue,vocab}; writes experiments/finetune_speed.md.
"""

import platform
import time

import jax
import numpy as np

from bert_fast import bert
from bert_fast.configs import common, glue
from bert_fast.data import vocab
from bert_fast.encoder import Encoder
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.schedule import Schedule
from bert_fast.tasks import batches, data, settings
from bert_fast.tasks.trainer import Trainer
from bert_fast.train.description import Description
from experiments.common import data_root, parser, ratios, spread, with_range, write_page
from experiments.timing import count_compilations


class Epochs:
    """Runs a trainer's steps and measures their throughput."""

    def __init__(self, trainer: Trainer):
        self.engine = trainer.engine(3e-5, 0)
        self.engine.begin(trainer.first_params(0))

    def run(self, steps: int) -> float:
        """Examples per second over `steps` steps."""
        began, before = time.perf_counter(), self.engine.counters.counts["examples"]
        for _ in range(steps):
            self.engine.train_step()
        self.engine.settle()
        jax.block_until_ready(self.engine.state)
        return (self.engine.counters.counts["examples"] - before) / (time.perf_counter() - began)


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--size", default="mini", help="model size: tiny, mini, small, medium, base or large")
    arguments.add_argument("--epochs", type=int, default=5, help="timed epochs of each kind, after one untimed epoch")
    arguments.add_argument("--steps", type=int, default=0, help="steps per timed epoch; 0: all")
    args = arguments.parse_args()
    root = data_root("glue/ and vocab/")
    config = glue.get_config("task=mrpc")
    config.data.dir = str(root / "glue")
    config.epochs = 1_000.0  # more epochs than will be timed
    made = settings.make(config.to_dict())
    words = vocab.load(root / "vocab/bert-base-uncased.txt")
    model = bert.Config(words.size, special_ids=tuple(words.special_ids.values()), **common.size(args.size))
    program = Program(model, whole(model.depth), made.batch_size, 1, made.data.seq_len, 0, "mlm")
    about = Description(step=0, stage=Stage("fresh", program, 1, Schedule(1e-4, 1)), vocab=words)
    start = Encoder(root, jax.tree.map(np.asarray, bert.init(model, jax.random.key(0))), about)

    compiles = count_compilations()
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
    each = {name: [speed[name] for speed in speeds] for name in runs}
    ratio = with_range(spread(ratios(each["bucketed"], each["full"])), ".3f")
    bucketed_speed, full_speed = (with_range(spread(each[name]), ".1f") for name in ("bucketed", "full"))
    share = batches.real_share(task.train, bucketed.widths, made.batch_size)
    text = f"""# Fine-tuning: padding and throughput at MRPC's lengths

`python -m experiments.finetune_speed --size={args.size} --epochs={args.epochs} --steps={args.steps}`, {platform.machine()}, jax {jax.__version__}, {jax.devices()[0].device_kind},
batches of {made.batch_size}, {len(ids_N):,} examples of {task.train.lengths_N.mean():.1f} tokens on average, with dropout, in float32.
Values are medians of {args.epochs} alternating runs of {steps} steps (in brackets: 10th to 90th percentile).

| | measured | aim |
|---|---|---|
| widths of the batches | {", ".join(map(str, bucketed.widths))} | |
| share of an epoch's positions that are real tokens | {share:.3f} | at least 0.75 |
| the same, if all examples were padded to 128 | {task.train.lengths_N.mean() / 128:.3f} | |
| examples per second, bucketed | {bucketed_speed} | |
| examples per second, every example {mean} tokens long | {full_speed} | |
| bucketed / every example {mean} tokens long | {ratio} | at least 0.75 |
| programs compiled after the first epoch | {len(compiles) - after_first} | 0 |
"""
    write_page("finetune_speed", text)


if __name__ == "__main__":
    main()
