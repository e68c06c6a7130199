"""Examples in the documentation other than commands: a method in a separate package, and pictures drawn by scripts."""

import json
import os
import shutil
import subprocess
import sys

import jax
import pytest

from bert_fast.train import checkpoint
from helpers.doc_pages import ROOT

PICTURES = sorted((ROOT / "docs/figures").glob("*.py"))
METHOD = ROOT / "docs/examples/freeze_late"


@pytest.mark.slow
def test_method_of_an_installed_package_is_found_and_trains(small_shards, tmp_path):
    shutil.copytree(METHOD, tmp_path / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    options = ["--no-build-isolation", "--target", tmp_path / "site", tmp_path / "source"]
    subprocess.run([*pip, *options], check=True)
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "bert_fast", "pretrain", "--config=bert:size=mini,objective=mlm,debug"]
    command += [f"--workdir={workdir}", f"--config.data.dir={small_shards}", "--config.methods=freeze_late"]
    command += ["--config.freeze_late.tail=0.5", "--config.checkpoint.keep=9"]
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stages = json.loads((workdir / "stages.json").read_text())["stages"]
    assert [stage["name"] for stage in stages][-1].endswith("-frozen")
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["flops"] < summary["flops_dense"]
    middle, end = (checkpoint.restore_params(workdir / f"checkpoints/{step}")["layers"] for step in (10, 20))
    depth = len(jax.tree.leaves(middle)[0])
    moved = [
        any((a[layer] != b[layer]).any() for a, b in zip(*map(jax.tree.leaves, (middle, end)), strict=True))
        for layer in range(depth)
    ]
    assert moved == [layer >= depth // 2 for layer in range(depth)]


@pytest.mark.slow
@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_script_draws_its_picture(path, tmp_path):
    subprocess.run([sys.executable, "-m", f"docs.figures.{path.stem}", tmp_path / "drawn.png"], cwd=ROOT, check=True)
    assert (tmp_path / "drawn.png").stat().st_size > 10_000
    assert path.with_suffix(".png").is_file()
