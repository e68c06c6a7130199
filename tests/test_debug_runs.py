"""Every config, with its default arguments and `debug`, trains to the end.

These are long tests, because test_docs.py already runs the command in every config's docstring.
"""

import pytest

from bert_fast.tasks import settings, sweep
from helpers.config_files import CONFIGS, FILES, FINETUNE, get_config
from helpers.made_tasks import write_checkpoint, write_glue, write_own, write_squad
from helpers.small_runs import run


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_debug_run_of_pre_training_finishes(path, small_shards, tmp_path):
    config = get_config(path)("debug")
    config.data.dir = str(small_shards)
    summary = run(config.to_dict(), tmp_path / "run")
    assert summary["steps"] >= config.steps
    assert summary["valid"]["step"] == summary["steps"]


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["bert", "early_bert"])
@pytest.mark.parametrize("name", FINETUNE)
def test_debug_run_of_fine_tuning_finishes(name, recipe, tmp_path):
    (tmp_path / "data").mkdir()
    write_glue(tmp_path / "data", ("mrpc",))
    write_squad(tmp_path / "data", "1.1", count=64)
    write_own(tmp_path / "data")
    config = get_config(next(path for path in FILES if path.stem == name))(f"recipe={recipe},debug")
    config.data.dir = str(tmp_path / "data")
    if name == "own":
        config.own.update(train="reviews.csv", text="review", label="stars")
    (tmp_path / "encoder").mkdir()
    encoder = write_checkpoint(tmp_path / "encoder", pooler=True, max_len=config.data.seq_len)
    made = settings.make(config.to_dict())
    results = sweep.finetune(made, config.to_dict(), tmp_path / "out", checkpoint=str(encoder))
    (task,) = results["tasks"].values()
    assert len(task["runs"]) == len(made.seeds)
