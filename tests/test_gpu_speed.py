"""experiments/gpu_speed.py runs from end to end at tiny size, on any device."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import gpu_speed

ROOT = pathlib.Path(__file__).parents[1]
CASE = gpu_speed.Case("tiny", 64, 8, "float32")


def test_realised_fractions_are_relative_to_what_the_layers_cost():
    found = {
        "flops": {"product": 1e9, "dense": 1e9, gpu_speed.HALF: 6e8, "layer dropping": 6e8},
        "bytes": {"dense": 2**30, gpu_speed.HALF: 0, "layer dropping": 2**29, "PyTorch, all positions": 2**31},
        "seconds": {
            "product": [0.5, 0.5], "dense": [1.0, 1.0], gpu_speed.HALF: [0.7, 0.7], "layer dropping": [0.76, 0.76],
            "PyTorch, all positions": [1.5, 1.5],
        },
    }  # fmt: skip
    text = "\n".join(gpu_speed.lines_of(CASE, found))
    # Without half of its layers, the model saves 0.4 of the FLOPs and 0.3 of the time. So at most 0.3 / 0.4 = 0.75 of a
    # saving can be realised.
    assert "Ceiling of the realised fraction: 0.75" in text
    assert "| layer dropping | 674 | 0.39 (0.39-0.39) | 0.760 (0.760-0.760) | 0.60 | 0.80 | 0.5 |" in text
    assert "| PyTorch, all positions | 341 |  | 1.500 (1.500-1.500) |  |  | 2.0 |" in text
    assert gpu_speed.HALF not in text


@pytest.mark.slow
def test_script_runs_and_continues(tmp_path):
    command = [
        sys.executable, "-m", "experiments.gpu_speed", f"--folder={tmp_path}", "--cases=tiny/64", "--batch=8",
        "--rounds=1", "--methods=layer dropping;MSLT, growing",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    page = (ROOT / "experiments/gpu_speed.md").read_text()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    (path,) = tmp_path.iterdir()
    seconds = json.loads(path.read_text())["seconds"]
    assert {"product", "dense", "layer dropping", "PyTorch, all positions"} <= set(seconds)
    assert "## BERT-tiny, 8 x 64 tokens" in done.stdout
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "compiled in" not in again.stdout
    assert again.stdout.count("| dense |") == 1
    assert (ROOT / "experiments/gpu_speed.md").read_text() == page  # only a whole run on a GPU writes the page
