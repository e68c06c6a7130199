"""A small run for tests that train: its config, its settings and the run itself."""

import pathlib

from bert_fast import methods
from bert_fast.configs import bert
from bert_fast.data import shards
from bert_fast.train import loop, settings
from bert_fast.train.counters import CLOCKS
from bert_fast.train.log import read_rows


def small_config(data_dir: pathlib.Path, text: str = "size=tiny,debug", **changes) -> dict:
    """BERT's debug config on these shards: 60 steps in two phases. `changes`: values by key, with `__` for dots."""
    config = bert.get_config(text)
    config.update_from_flattened_dict(
        {
            "data.dir": str(data_dir),
            "steps": 60,
            "optimizer.bias_correction": True,
            "log_every": 15,
            "phases": "16:0.5,32:0.5",
            "model.depth": 2,
            "eval.every": 30,
            "eval.seq_len": 16,
            "checkpoint.every": 20,
            "learning_rate.peak": 1e-2,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )
    return config.to_dict()


def make_settings(config: dict) -> settings.PretrainSettings:
    vocab = shards.read_manifest(config["data"]["dir"])["vocab"]
    return settings.make(config, vocab, tuple(methods.known()))


def run(config: dict, workdir: pathlib.Path) -> dict:
    return loop.pretrain(make_settings(config), config, workdir)


def rows_without_clock(workdir: pathlib.Path) -> list[dict]:
    rows = read_rows(workdir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]
