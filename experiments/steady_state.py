"""How often a small run compiles, and how much its resident memory grows, over 2,000 steps.

    python -m experiments.steady_state [--steps=2000]

Trains configs/quickstart.py with smaller batches in the ordinary train loop. The text is the documentation that is
installed with Python and the required packages. Writes experiments/steady_state.md.
"""

import pathlib
import platform
import resource
import tempfile

import jax
import numpy as np
import psutil

from bert_fast import methods
from bert_fast.configs import quickstart
from bert_fast.data import shards
from bert_fast.data.prepare import prepare
from bert_fast.train import engine, host_memory, loop, settings
from experiments import common
from experiments.timing import count_compilations

EVERY = 200  # steps between evaluations, and between saves


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    host_memory.keep_freed()  # as `bert-fast pretrain` does
    compiles = count_compilations()
    resident, faults, compiled_at = [], [], {}
    process = psutil.Process()
    train_step = engine.Engine.train_step

    def watched(training):
        train_step(training)
        resident.append(process.memory_info().rss / 2**20)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        compiled_at[training.step] = len(compiles)

    engine.Engine.train_step = watched
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder, "shards")
        prepare("docs", str(data), vocab_size=8_000)
        config = quickstart.get_config()
        config.update_from_flattened_dict(
            {
                "steps": steps,
                "data.dir": str(data),
                "batch_size": 8,
                "phases": "64:1",
                "eval.every": EVERY,
                "checkpoint.every": EVERY,
            }
        )
        config = config.to_dict()
        made = settings.make(config, shards.read_manifest(data)["vocab"], tuple(methods.known()))
        loop.pretrain(made, config, pathlib.Path(folder, "run"))
    warm = steps // 10
    slope, _ = np.polyfit(np.arange(warm, steps), resident[warm:], 1)
    text = f"""# Steady state: compilations and memory over {steps:,} steps

`python -m experiments.steady_state --steps={steps}`, {platform.machine()}, jax {jax.__version__}, 2 layers of width 128,
batches of 8 x 64, an evaluation and a save every {EVERY} steps.

| | |
|---|---|
| programs compiled after step {warm} and before the last step | {compiled_at[steps - 1] - compiled_at[warm]} |
| resident memory at step {warm} | {resident[warm]:.0f} MiB |
| resident memory at step {steps - 1} | {resident[-1]:.0f} MiB |
| page faults per step between these steps | {(faults[-1] - faults[warm]) / (len(faults) - 1 - warm):.0f} |
| growth between these steps, slope of a fitted line | {slope * 1000:+.2f} MiB per thousand steps |
"""
    common.write_page("steady_state", text)


if __name__ == "__main__":
    main()
