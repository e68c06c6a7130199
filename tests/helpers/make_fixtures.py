"""Makes run folders for tests/fixtures. Every later version of bert_fast must be able to continue these runs.

    PYTHONPATH=.:tests python -m helpers.make_fixtures tests/fixtures/format3

Each folder holds a run up to a step in its middle: config.json, metrics.jsonl and checkpoints. The file continued.jsonl
has the rows of the later steps, as this version wrote them. Never remake the fixtures of a released version.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import conftest  # noqa: F401  pins threads and instruction set
from bert_fast.configs import bert, early_bert, mslt, token_drop
from bert_fast.train.log import read_rows
from helpers.made_shards import make_small_folder
from helpers.small_runs import rows_without_clock, run

SMALL = {
    "steps": 24,
    "log_every": 4,
    "phases": "16:1",
    "eval.every": 12,
    "eval.seq_len": 16,
    "checkpoint.every": 4,
    "checkpoint.keep": 99,
    "learning_rate.peak": 1e-2,
    "learning_rate.warmup_steps": 4,
    "model.depth": 2,
    "model.width": 16,
    "model.heads": 2,
    "model.head_size": 8,
    "model.mlp_dim": 32,
}
TICKET = {"early_bert.search": 0.4, "early_bert.mask_every": 2, "early_bert.neurons": "layer"}
# name: (config, changes, the last step of the run that the folder holds)
FIXTURES = {
    "dense": (bert, {}, 12),
    "searching": (early_bert, {**TICKET, "early_bert.stop": "early_bird", "early_bert.window": 3}, 8),
    "growing": (mslt, {"stacking.optimizer": "carry"}, 12),
    "slim": (early_bert, TICKET, 20),
    "tokens": (token_drop, {"model.depth": 4, "token_drop.examples_per_row": 2}, 12),
}


def make(name: str, folder: pathlib.Path):
    module, changes, stopped = FIXTURES[name]
    config = module.get_config("size=tiny,debug")
    with tempfile.TemporaryDirectory() as temporary:
        shards = pathlib.Path(temporary) / "shards"
        shards.mkdir()
        make_small_folder(shards)
        config.update_from_flattened_dict({**SMALL, **changes, "data.dir": str(shards)})
        whole = pathlib.Path(temporary) / "run"
        run(config.to_dict(), whole)
        folder.mkdir(parents=True)
        for step in {0, stopped}:
            if (whole / f"checkpoints/{step}").is_dir():
                shutil.copytree(whole / f"checkpoints/{step}", folder / f"checkpoints/{step}")
        config.data.dir = "SHARDS"
        (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        for file, kept in (
            ("metrics.jsonl", [row for row in read_rows(whole / "metrics.jsonl") if row["step"] <= stopped]),
            ("continued.jsonl", [row for row in rows_without_clock(whole) if row["step"] > stopped]),
        ):
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in kept))


if __name__ == "__main__":
    for name in FIXTURES:
        if not (pathlib.Path(sys.argv[1]) / name).exists():
            make(name, pathlib.Path(sys.argv[1]) / name)
