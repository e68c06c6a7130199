"""What a notebook reports about its runtime: the accelerator, whether JAX sees it, the time left, a run's budget."""

import json
import pathlib
import time

import pytest

from bert_fast import BadInput
from bert_fast.notebook import budget, runtime
from bert_fast.notebook.runtime import Runtime
from bert_fast.train import step_costs


def machine(root: pathlib.Path, devices: dict[str, tuple[str, str]], files=()) -> pathlib.Path:
    """A root folder with these PCI devices (vendor, device) and files."""
    for name, numbers in devices.items():
        folder = root / "sys/bus/pci/devices" / name
        folder.mkdir(parents=True)
        for kind, number in zip(("vendor", "device"), numbers, strict=True):
            (folder / kind).write_text(f"{number}\n")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("")
    return root


V5E, NETWORK = ("0x1ae0", "0x0063"), ("0x1ae0", "0x0042")


@pytest.mark.parametrize(
    ("devices", "files", "kind"),
    [
        ({"0000:00:05.0": NETWORK, "0000:00:06.0": V5E}, (), "tpu"),
        ({"0000:00:05.0": NETWORK}, (), "cpu"),
        ({"0000:00:05.0": NETWORK}, ("dev/nvidia0",), "gpu"),
        ({}, (), "cpu"),
    ],
)
def test_accelerator_is_found_without_jax(devices, files, kind, tmp_path):
    assert runtime.attached(machine(tmp_path, devices, files)) == kind


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_accelerator_that_jax_does_not_see_is_an_error_that_says_what_to_click(kind, monkeypatch):
    monkeypatch.setattr(runtime, "attached", lambda: kind)
    monkeypatch.setattr(runtime, "seen", lambda: Runtime("cpu", "cpu", 1, 0, "0.10.2"))
    with pytest.raises(BadInput, match=f"has a {kind.upper()}, but JAX 0.10.2 sees only the CPU. Runtime > Restart"):
        runtime.check()


def test_check_prints_the_chip_its_memory_and_the_versions(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "attached", lambda: "tpu")
    monkeypatch.setattr(runtime, "seen", lambda: Runtime("tpu", "TPU v5 lite", 1, 0, "0.10.2"))
    runtime.check()
    assert capsys.readouterr().out.startswith("1 x TPU v5 lite (tpu, 16 GiB each), jax 0.10.2, Python 3.")


def test_colab_without_an_accelerator_shows_where_to_get_one(monkeypatch, capsys):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setattr(runtime, "attached", lambda: "cpu")
    monkeypatch.setattr(runtime, "seen", lambda: Runtime("cpu", "cpu", 1, 0, "0.10.2"))
    runtime.check()
    assert "Runtime > Change runtime type" in capsys.readouterr().out


@pytest.mark.slow
def test_a_separate_process_asks_jax(monkeypatch):
    found = runtime.seen()
    assert (found.kind, found.count) == ("cpu", 1)
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    with pytest.raises(BadInput, match=r"JAX cannot start: .*nonsense.*Runtime > Restart session"):
        runtime.seen()


def test_minutes_left_are_counted_from_the_first_call(tmp_path):
    began = tmp_path / "began"
    assert runtime.minutes_left(90, began) == pytest.approx(90, abs=0.1)
    began.write_text(str(time.time() - 60 * 30))
    assert runtime.minutes_left(90, began) == pytest.approx(60, abs=0.1)
    assert runtime.minutes_left(20, began) == 0


def test_command_returns_what_it_prints_and_raises_its_errors():
    assert "bert_fast" in runtime.command("--version")
    with pytest.raises(BadInput, match="bert-fast pretrian: unknown command 'pretrian': did you mean pretrain"):
        runtime.command("pretrian")


CONFIG = "bert:size=tiny,seq=32,objective=mlm,debug"


@pytest.mark.slow
def test_minutes_become_a_budget_whose_costs_are_measured_once(small_shards, tmp_path, monkeypatch):
    changes = budget.for_minutes(CONFIG, tmp_path / "run", 2, small_shards, {"methods": "token_drop"})
    assert changes == {"methods": "token_drop", "budget": "seconds:120", "costs": str(tmp_path / "run-costs.json")}
    assert step_costs.read(pathlib.Path(changes["costs"])).instrument == "measured"
    monkeypatch.setattr(budget.instrument, "measured", None)  # a second measurement would fail
    again = budget.for_minutes(CONFIG, tmp_path / "run", 3, small_shards, {})
    assert again["budget"] == "seconds:180"


def test_run_that_was_started_keeps_its_budget_in_a_later_session(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps({"budget": "seconds:120", "costs": "elsewhere.json"}))
    changes = budget.for_minutes(CONFIG, tmp_path / "run", 5, tmp_path / "shards", {"seed": 1})
    assert changes == {"seed": 1, "budget": "seconds:120", "costs": str(tmp_path / "run/costs.json")}
