"""How long a save delays the next step of a mini BERT (4 layers of width 256, 30,522 word pieces) with AdamW.

    python -m experiments.save_speed [--folder=DIR] [--saves=12]

The checkpoints are written in DIR, and deleted at the end. Two kinds of save take turns: one that the run waits for,
and one that a thread writes. Steps are timed before each save, and while a thread writes. The script writes
experiments/save_speed.md.
"""

import argparse
import contextlib
import os
import pathlib
import platform
import shutil
import tempfile
import time
import types

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from bert_fast.bert import Config
from bert_fast.configs.common import size
from bert_fast.data.vocab import SPECIAL, parse
from bert_fast.method import Method, Program, Stage
from bert_fast.plan import whole
from bert_fast.planner.timing import stepper
from bert_fast.schedule import Schedule
from bert_fast.train.counters import Counters
from bert_fast.train.description import Description
from bert_fast.train.saver import Saver
from bert_fast.train.settings import Checkpoints
from experiments import common
from experiments.timing import adamw, one_device

WORDS = 30_522
PROGRAM = Program(Config(WORDS, **size("mini")), whole(4), 16, 1, 128, 20, "mlm")
STAGE = Stage("mini", PROGRAM, 1_000, Schedule(1e-4, 1_000))


def seconds_of(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(root: pathlib.Path, saves: int) -> dict[str, list[float]]:
    """Seconds by what they were spent on, and the state's size in MiB. Each kind of save is timed `saves` times."""
    steps = stepper(Method(), STAGE, True, adamw(1.0), one_device())
    step = steps.add(PROGRAM)
    pieces = [*SPECIAL, *(f"word{number}" for number in range(WORDS - len(SPECIAL)))]
    vocab = parse("\n".join(pieces).encode(), "vocab.txt", False, None)
    saver = Saver(root, Checkpoints(every=1, keep=2), False, lambda kind: contextlib.nullcontext(), print)
    engine = types.SimpleNamespace(step=0, state=steps.state, counters=Counters())
    found: dict[str, list[float]] = {"waited": [], "blocked": [], "in all": [], "beside": [], "alone": []}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(steps.state)) / 2**20
    print(f"the state has {size:.0f} MiB", flush=True)
    for number in range(saves + 1):  # the first round also allocates memory, so it is kept apart
        for wait in (True, False):
            for _ in range(3):
                found["alone"].append(seconds_of(step))
            engine.step, engine.state = engine.step + 1, steps.state
            describe = lambda: Description(engine.step, STAGE, vocab, counters=engine.counters)  # noqa: E731
            began = time.time()
            blocked = seconds_of(lambda wait=wait, describe=describe: saver.save(engine, describe, None, wait))
            found["waited" if wait else "blocked"].append(blocked)
            while saver.thread is not None and saver.thread.is_alive():
                found["beside"].append(seconds_of(step))
            saver.wait()
            if not wait:
                # At the end of a save, an old checkpoint is deleted, which changes the time of the folder.
                found["in all"].append(root.stat().st_mtime - began)
        if number == 0:
            first, found = found["blocked"][0], {name: [] for name in found}
    return found | {"first": [first], "size": [size]}


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--folder", type=pathlib.Path, help="default: the system's folder for temporary files")
    parser.add_argument("--saves", type=int, default=12)
    args: argparse.Namespace = parser.parse_args()
    root = pathlib.Path(tempfile.mkdtemp(dir=args.folder))
    try:
        found = measured(root, args.saves)
    finally:
        shutil.rmtree(root)
    ms = {name: common.with_range(common.extremes([1e3 * s for s in found[name]]), ",.0f") for name in found}
    common.write_page(
        "save_speed",
        f"""# How long a save keeps a run waiting

`python -m experiments.save_speed --saves={args.saves}`, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}. 4 layers of width 256, {WORDS:,} word
pieces, AdamW: {found["size"][0]:.0f} MiB. Milliseconds: median (least to most) over {args.saves} saves.

| | ms |
|---|---|
| a save that the run waits for, such as the one at its end | {ms["waited"]} |
| the wait for a save that a thread writes | {ms["blocked"]} |
| the same, at the first save, which allocates memory | {1e3 * found["first"][0]:.0f} |
| from the beginning to the end of a save that a thread writes | {ms["in all"]} |
| a training step of 16 x 128 tokens while no checkpoint is written | {ms["alone"]} |
| a training step while a checkpoint is written | {ms["beside"]} |

On a CPU, the thread slows down the steps. With an accelerator, it does not.
""",
    )


if __name__ == "__main__":
    main()
