"""Runs of older versions can be continued. helpers/make_fixtures.py describes the fixtures.

finetuned/format4 is from a call of `finetune` on MRPC. start/ is the pre-trained checkpoint. run/ is the call's folder,
with one finished and one interrupted run. results.json has the `tasks` that the call reported after both runs.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest

from bert_fast import encoder
from bert_fast.data import shards
from bert_fast.tasks import sweep
from bert_fast.tasks.predict import predict
from bert_fast.train import settings
from bert_fast.train.counters import CLOCKS
from helpers.made_tasks import make_settings, write_glue
from helpers.small_runs import rows_without_clock, run
from helpers.tiers import tiers

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
QUICK = "format1/dense"
ALL = sorted(path.parent for path in FIXTURES.rglob("continued.jsonl"))


def same(found, kept) -> bool:
    """Whether two values are equal; floats may differ by the rounding of a few steps."""
    if isinstance(kept, float):
        return bool(np.isclose(found, kept, rtol=1e-4, atol=1e-5))
    return found == kept


@pytest.mark.parametrize(
    "fixture",
    tiers(ALL, slow=[path for path in ALL if path.parent.name != "format2"], quick=[FIXTURES / QUICK]),
    ids=[f"{path.parent.name}-{path.name}" for path in ALL],
)
def test_a_run_of_an_older_version_continues_with_the_same_rows(fixture, small_shards, tmp_path, monkeypatch):
    # When the fixtures were made, the tests' shards had a different fingerprint.
    manifest = shards.verify(small_shards)
    older = manifest | {"fingerprint": f"made up of {manifest['vocab']['sha256']}"}
    monkeypatch.setattr(shards, "verify", lambda _: older)
    workdir = tmp_path / "run"
    shutil.copytree(fixture, workdir)
    config = json.loads((fixture / "config.json").read_text())
    config["data"]["dir"] = str(small_shards)
    (workdir / "config.json").write_text(json.dumps(config))
    before = len(rows_without_clock(workdir))
    run(settings.current_keys(config), workdir)
    found = rows_without_clock(workdir)[before:]
    kept = [json.loads(line) for line in (fixture / "continued.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == [row["step"] for row in kept]
    for now, then in zip(found, kept, strict=True):
        different = [key for key in then if key not in CLOCKS and not same(now.get(key), then[key])]
        assert not different, {key: (now.get(key), then[key]) for key in different}


@pytest.mark.parametrize("fixture", sorted((FIXTURES / "finetuned").iterdir()), ids=lambda path: path.name)
def test_a_finetune_call_of_an_older_version_continues_and_its_runs_predict_the_same(fixture, tmp_path):
    shutil.copytree(fixture, tmp_path / "call")
    run, start = tmp_path / "call/run", tmp_path / "call/start"
    write_glue(tmp_path / "glue", ("mrpc",), train=48, dev=16, test=4)
    config = json.loads((run / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "glue")
    config["encoder"]["checkpoint"] = str(start / "checkpoints/0")
    (run / "config.json").write_text(json.dumps(config))
    made, now = make_settings(tmp_path / "glue", seeds="0,1", epochs=2.0, checkpoint__every=2, widths=1)
    found = sweep.finetune(made, now, run, str(start))["tasks"]["mrpc"]
    kept = json.loads((fixture / "results.json").read_text())["mrpc"]
    for one, other in zip(found["runs"], kept["runs"], strict=True):
        assert one["last"] == pytest.approx(other["last"], rel=1e-3)
        assert one["steps"] == other["steps"]
    assert "baseline" not in found["runs"][0]
    assert found["baseline"] == found["runs"][1]["baseline"]
    finished = run / "mrpc/lr=0.003,seed=0"
    pairs = [line.split("\t")[3:5] for line in (tmp_path / "glue/MRPC/dev.tsv").read_text().splitlines()[1:]]
    written = [line.split("\t")[1] for line in (finished / "dev/MRPC.tsv").read_text().splitlines()[1:]]
    assert [row["label"] for row in predict(encoder.load(finished), pairs)] == written
