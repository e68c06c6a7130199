"""Fine-tuning: impossible settings are refused, and a summary covers all runs of a folder."""

import json
import shutil

import pytest

from bert_fast import BadInput
from bert_fast.configs import glue as glue_config
from bert_fast.tasks import data, glue, sweep
from bert_fast.tasks.settings import make
from helpers.made_tasks import make_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "mrcp"}, "did you mean mrpc"),
        ({"seeds": "0,0"}, "expected distinct numbers of at least 0 and below 2\\^32"),
        ({"answers.n_best": 0}, "answers.n_best=0: expected at least 1"),
        ({"answers.max_tokens": 0}, "answers.max_tokens=0: expected at least 1"),
        ({"learning_rates": "2e-5,high"}, "learning_rates"),
        ({"learning_rates": "nan"}, "expected distinct numbers"),
        ({"learning_rates": "mrpc:2e-5,3e-5"}, "rates without a task would not be used"),
        ({"seeds": "0,5000000000"}, "expected distinct numbers"),
        ({"data.seq_len": 3}, "data.seq_len=3: expected at least 8"),
        ({"data.train_examples": -5}, "data.train_examples=-5: expected at least 0"),
        ({"learning_rate.warmup": 2.0}, "expected a share from 0 to 1"),
        ({"learning_rates": "mrpd:2e-5"}, "did you mean mrpc"),
        ({"data.dir": ""}, "data.dir is missing"),
        ({"epochs": 0.0}, "expected more than 0"),
        ({"epochs": float("nan")}, "epochs=nan: expected a finite number"),
        ({"search.learning_rate": -1e-5}, "search.learning_rate=-1e-05: expected more than 0"),
        ({"search.epochs": 0.0}, "search.epochs=0.0: expected more than 0"),
        ({"optimizer.eps": -1e-8}, "optimizer.eps=-1e-08: expected at least 0"),
        ({"optimizer.b2": 1.0}, "optimizer.b2=1.0: expected a number of at least 0 and below 1"),
        ({"methods": "early_brid"}, "did you mean early_bert"),
        ({"dtype": "float16"}, "float"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    config = glue_config.get_config("task=mrpc")
    config.update_from_flattened_dict({"data.dir": "somewhere", **changes})
    with pytest.raises(BadInput, match=message):
        make(config.to_dict())


def test_squad_refuses_other_data_sets_of_tfds():
    assert data.squad_file("tfds:squad", "1.1", True) == "tfds:squad/v1.1:train"
    with pytest.raises(BadInput, match=r"data\.dir=tfds:glue: expected tfds:squad"):
        data.squad_file("tfds:glue", "1.1", True)


def test_a_tasks_own_learning_rates_replace_the_common_ones(folder):
    made, _ = make_settings(folder, "all", learning_rates="2e-5,3e-5,mrpc:9e-5")
    assert made.rates_of("mrpc") == (9e-5,)
    assert made.rates_of("rte") == (2e-5, 3e-5)
    made, _ = make_settings(
        folder, recipe="layer_drop", learning_rates=glue_config.get_config("recipe=layer_drop").learning_rates
    )
    assert {made.rates_of(task)[0] for task in glue.TASKS} == {3e-5, 5e-5, 7e-5, 9e-5, 2e-4}


def write_result(workdir, task, rate, seed, last, best):
    folder = sweep.folder_of(workdir, task, rate, seed)
    folder.mkdir(parents=True)
    rows = {kind: {"score": value, "step": 3, "epoch": 1.0} for kind, value in (("last", last), ("best", best))}
    (folder / "result.json").write_text(json.dumps({"task": task, "learning_rate": rate, "seed": seed, **rows}))


def test_summary_chooses_the_learning_rate_by_the_mean_and_leaves_wnli_out(tmp_path):
    for seed, (low, high) in enumerate([(60, 99), (70, 10), (80, 10)]):
        write_result(tmp_path, "cola", 2e-5, seed, low, 90)
        write_result(tmp_path, "cola", 5e-5, seed, high, 100)
    write_result(tmp_path, "rte", 2e-5, 0, 50, 50)
    write_result(tmp_path, "wnli", 2e-5, 0, 0, 0)
    found = sweep.summary(tmp_path, {})
    assert found["tasks"]["cola"]["chosen"] == "2e-05"
    assert found["tasks"]["cola"]["last"]["score"] == {"mean": 70, "deviation": 10, "median": 70}
    assert found["glue"] == {"tasks": ["cola", "rte"], "last": 60, "best": 70}
    table = sweep.table(found)
    assert "GLUE mean of cola, rte: 60.00 (best 70.00)" in table
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["cola", "rte", "wnli"]


def test_unfinished_run_does_not_count_as_a_seed(tmp_path):
    write_result(tmp_path, "rte", 2e-5, 0, 50, 50)
    done = sweep.folder_of(tmp_path, "rte", 2e-5, 0)
    shutil.copytree(done, sweep.unfinished_of(done))
    assert sweep.summary(tmp_path, {})["tasks"]["rte"]["learning_rates"]["2e-05"]["seeds"] == [0]
