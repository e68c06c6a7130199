"""Fine-tuning on SQuAD with the command line, from the data files to the predictions."""

import json

import pytest

from helpers.command_line import bert_fast
from helpers.made_tasks import write_checkpoint, write_squad

SMALL = {
    "data.seq_len": 20,  # not a multiple of 8, to which batch widths are rounded
    "data.stride": 8,
    "batch_size": 8,
    "epochs": 2.0,
    "widths": 1,
    "dropout": 0.0,
    "eval.batch_size": 16,
    "learning_rates": "3e-3",
    "seeds": "0",
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), pooler=True)


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_is_fine_tuned_and_its_predictions_are_written(run_folder, tmp_path, version):
    write_squad(tmp_path, version)
    done = bert_fast(
        "finetune",
        f"--config=configs/squad.py:version={version}",
        f"--checkpoint={run_folder}",
        f"--workdir={tmp_path / 'out'}",
        f"--config.data.dir={tmp_path}",
        *(f"--config.{key}={value}" for key, value in SMALL.items()),
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / f"out/squad{version}/lr=0.003,seed=0"
    assert set(json.loads((run / "dev/predictions.json").read_text())) == {f"dev{number}" for number in range(10)}
    assert (run / "dev/null_odds.json").exists() == (version == "2.0")
    result = json.loads((run / "result.json").read_text())
    last = result["last"]
    assert last["score"] == last["f1"]
    assert ("HasAns_f1" in last) == (version == "2.0")
    assert not any(key.endswith("total") for key in last)
    assert result["baseline"]["prediction"] == "no answer"
    assert result["baseline"]["exact_match"] == {"1.1": 0, "2.0": 50}[version]
    (tmp_path / f"train-v{version}.json").unlink()
    done = bert_fast(
        "finetune", f"--config=configs/squad.py:version={version}", f"--checkpoint={run_folder}",
        f"--workdir={tmp_path / 'other'}", f"--config.data.dir={tmp_path}",
    )  # fmt: skip
    assert (done.returncode, f"expected one file train-v{version}.json" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "other").exists()
