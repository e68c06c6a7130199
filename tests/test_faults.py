"""The campaign of experiments/faults.py: its short form finds no defect, and a defect is not overlooked."""

import contextlib
import importlib
import json
import random
import time

import pytest

from bert_fast import BadInput
from experiments import fault_types, faults
from experiments.fault_types import DETECTED, FAULTS, HUNG, PARTIAL, SILENT, SURVIVED, TRACEBACK, Fault, Outcome

for module in faults.MODULES:
    importlib.import_module(f"experiments.fault_types.{module}")


@pytest.mark.slow
def test_the_short_campaign_finds_no_defect(tmp_path, capsys):
    # Faults in separate processes take minutes. Only the whole campaign injects them.
    names = [name for name, fault in FAULTS.items() if not fault.inject.__module__.endswith("processes")]
    code = faults.main(["--short", f"--workdir={tmp_path}", f"--only={','.join(names)}"])
    assert code == 0, capsys.readouterr().out


def bench_in(tmp_path):
    bench = fault_types.Bench(*(tmp_path / name for name in ("corpus", "shards", "run", "exported", "scratch")))
    bench.scratch.mkdir(exist_ok=True)
    return bench


def test_a_campaign_continues_where_it_was_stopped(tmp_path):
    injected = []

    def inject(bench, rng):
        if len(injected) == 4:
            raise KeyboardInterrupt
        injected.append(rng.random())
        return Outcome(DETECTED, "")

    bench, types = bench_in(tmp_path), [Fault("one", inject, 3), Fault("two", inject, 3)]
    with pytest.raises(KeyboardInterrupt):
        faults.campaign(types, bench, tmp_path / "outcomes.jsonl")
    injected.append(None)
    found = faults.campaign(types, bench, tmp_path / "outcomes.jsonl")
    assert [(record.name, record.number) for record in found] == [
        (name, n) for name in ("one", "two") for n in range(3)
    ]
    assert len(injected) == 7
    assert injected[0] == random.Random("one 0").random()
    assert len({*injected}) == 7


def test_defects_are_counted_and_shown_and_change_the_exit_code(tmp_path, monkeypatch, capsys):
    bad = Fault("bad", lambda bench, rng: Outcome(SILENT, "nobody saw it"), 30)
    good = Fault("good", lambda bench, rng: Outcome(rng.choice((DETECTED, SURVIVED)), ""), 30)
    monkeypatch.setattr(faults, "FAULTS", {"bad": bad, "good": good})
    monkeypatch.setattr(faults, "make_bench", lambda _: bench_in(tmp_path))
    assert faults.main(["--only=good", f"--workdir={tmp_path}"]) == 0
    assert faults.main(["--short", f"--workdir={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "| `bad` | 3 | 0 | 0 | 3 | 0 | 0 | 0 | 0 |" in said
    assert "- `bad` 0, silent: 'nobody saw it'" in said
    assert len(json.loads(line := (tmp_path / "outcomes.jsonl").read_text().splitlines()[-1])) == 4, line


def test_the_page_shows_the_kills_of_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "STORM", tmp_path / "storm.json")
    assert "Kills of one run" not in faults.page([])
    found = {"kills": 200, "mean": 15.0, "steps": 120_000, "same": True, "goodput": 0.614}
    (tmp_path / "storm.json").write_text(json.dumps(found))
    assert "was killed 200 times, on average 15 s after each start" in faults.page([])
    assert "61% of the wall time" in faults.page([])
    assert "**different arrays or rows from**" in faults.storm(found | {"same": False})


def test_every_way_to_go_wrong_has_its_verdict(tmp_path, monkeypatch):
    def refuse():
        raise BadInput("no")

    bench = bench_in(tmp_path)
    assert fault_types.outcome_of("", refuse).verdict == DETECTED
    assert fault_types.outcome_of("", lambda: 7, 7).verdict == SURVIVED
    assert fault_types.outcome_of("", lambda: 8, 7).verdict == SILENT
    assert fault_types.outcome_of("", lambda: 1 / 0).verdict == TRACEBACK
    assert fault_types.command(bench, "prepare").verdict == DETECTED
    assert fault_types.command(bench, "--help").verdict == SURVIVED
    monkeypatch.setattr(fault_types, "main", lambda argv: 1 / 0)
    assert fault_types.command(bench, "prepare").verdict == TRACEBACK
    monkeypatch.setattr(fault_types, "main", lambda argv: 2)
    assert fault_types.command(bench, "prepare").verdict == TRACEBACK  # exit code 2 without a message

    def half(argv):
        (bench.scratch / "out").mkdir()
        (bench.scratch / "out/manifest.json").touch()
        return 2

    monkeypatch.setattr(fault_types, "main", half)
    assert fault_types.command(bench, "prepare").verdict == PARTIAL


def test_a_fault_above_the_time_limit_counts_as_hung():
    with pytest.raises(fault_types.Hung), fault_types.time_limit(1):
        time.sleep(10)
    time.sleep(1.1)  # the alarm of an earlier fault must not hit a later one
    assert fault_types.outcome_of("", lambda: time.sleep(0.01)).verdict != HUNG


def test_a_damaged_file_gets_its_content_back(tmp_path):
    (tmp_path / "a").write_bytes(b"whole")
    broken, where = fault_types.flipped(b"whole", random.Random(0))
    assert (len(broken), sum(one != other for one, other in zip(broken, b"whole", strict=True))) == (5, 1)
    assert where.startswith("bit ")
    with contextlib.suppress(ZeroDivisionError), fault_types.replaced(tmp_path / "a", broken):
        assert (tmp_path / "a").read_bytes() == broken
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"
