"""A trace covers the wanted steps, is written to the run folder, and changes nothing else."""

import clu.profiler
import pytest

from bert_fast import BadInput
from bert_fast.train import profile
from helpers.small_runs import make_settings, rows_without_clock, run, small_config


def test_trace_covers_the_wanted_steps_even_if_the_run_ends_earlier(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(clu.profiler, "start", lambda folder: seen.append("start"))
    monkeypatch.setattr(clu.profiler, "stop", lambda: seen.append("stop"))
    for last, expected in ((20, [25, "start", 27, "stop"]), (6, [25, "start", "stop"]), (3, [])):
        traced = profile.Profile(tmp_path, 20, 2)
        seen.clear()
        for step in range(20, 20 + last):
            if traced.at(step):
                seen.append(step)
                traced.switch()
        traced.close()
        assert seen == expected
    assert not any(profile.Profile(tmp_path, 20, 0).at(step) for step in range(50))


def test_negative_number_of_steps_is_refused(small_shards):
    with pytest.raises(BadInput, match=r"--config\.profile=-1: expected at least 0"):
        make_settings(small_config(small_shards, profile=-1))


@pytest.mark.slow
def test_traced_run_writes_a_trace_and_the_same_rows(small_shards, tmp_path):
    config = small_config(small_shards, steps=9, phases="16:1", log_every=3, eval__every=0, checkpoint__every=0)
    run(config, tmp_path / "plain")
    run({**config, "profile": 2}, tmp_path / "traced")
    assert list((tmp_path / "traced/profile").rglob("*.xplane.pb"))
    assert rows_without_clock(tmp_path / "traced") == rows_without_clock(tmp_path / "plain")
