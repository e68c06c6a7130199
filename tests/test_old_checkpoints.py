"""Runs of older versions can be continued. helpers/make_fixtures.py describes the fixtures."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from bert_fast.train import settings
from helpers.small_runs import CLOCKS, rows_without_clock, run

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
ALL = sorted(folder for version in FIXTURES.iterdir() for folder in version.iterdir())


def same(found, kept) -> bool:
    """Whether two values are equal; floats may differ by the rounding of a few steps."""
    if isinstance(kept, float):
        return bool(np.isclose(found, kept, rtol=1e-4, atol=1e-5))
    return found == kept


@pytest.mark.parametrize("fixture", ALL, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_run_of_an_older_version_continues_with_the_same_rows(fixture, small_shards, tmp_path):
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
