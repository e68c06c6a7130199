"""A trace covers the wanted steps, is written to the run folder, and changes nothing else."""

import dataclasses
import gzip
import json

import jax
import pytest

from bert_fast.train import loop, profile
from helpers.small_runs import make_settings, rows_without_clock, run, small_config


def test_trace_covers_the_wanted_steps_that_the_run_takes(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: seen.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    for begin, last, expected in (
        (25, 40, [25, "start", 28, "stop"]),
        (25, 27, [25, "start", "stop"]),
        (25, 22, []),
        (10, 40, []),  # the run continues at step 20, after the wanted step
        (None, 40, []),
    ):
        traced = profile.Profile(tmp_path, begin)
        seen.clear()
        for step in range(20, last):
            if traced.at(step):
                seen.append(step)
                traced.switch()
        traced.close()
        assert seen == expected
        assert traced.traced == bool(expected)


@pytest.mark.slow
def test_traced_run_writes_a_trace_and_the_same_rows(small_shards, tmp_path, capsys):
    config = small_config(small_shards, steps=9, phases="16:1", log_every=3, eval__every=0, checkpoint__every=0)
    run(config, tmp_path / "plain")
    loop.pretrain(dataclasses.replace(make_settings(config), profile=5), config, tmp_path / "traced")
    assert list((tmp_path / "traced/profile").rglob("*.xplane.pb"))
    (for_perfetto,) = (tmp_path / "traced/profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(for_perfetto.read_bytes()))["traceEvents"]
    assert len([event for event in events if "train_step" in event.get("name", "")]) >= profile.STEPS
    assert rows_without_clock(tmp_path / "traced") == rows_without_clock(tmp_path / "plain")
    assert "no step was traced" not in capsys.readouterr().err
    loop.pretrain(dataclasses.replace(make_settings(config), profile=9), config, tmp_path / "too late")
    assert "no step was traced: this process took the steps 0 to 8, and --profile=9" in capsys.readouterr().err
