"""Compiled programs are kept on disk, in a folder of bounded size."""

import os
import pathlib
import subprocess
import sys

import pytest

from bert_fast import BadInput, cached
from helpers.small_runs import small_config

ROOT = pathlib.Path(__file__).parents[1]
CODE = """
import sys, jax
from bert_fast.train import cache
cache.keep_programs()
print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)
"""


def said_with(**environment) -> list[str]:
    plain = {name: value for name, value in os.environ.items() if name != "BERT_FAST_CACHE"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=ROOT, env=plain | environment, capture_output=True, text=True, check=True)
    return [*done.stdout.split(), done.stderr]


@pytest.mark.slow
def test_cache_is_bounded_and_an_environment_variable_moves_it_or_turns_it_off(tmp_path):
    home, other = {"HOME": str(tmp_path)}, str(tmp_path / "other")
    assert said_with(**home)[:2] == [str(tmp_path / ".cache/bert_fast/compiled"), str(4 * 2**30)]
    assert said_with(BERT_FAST_CACHE=other)[0] == other
    assert said_with(BERT_FAST_CACHE="off")[0] == "None"
    assert said_with(JAX_COMPILATION_CACHE_DIR=other)[:2] == [other, "-1"]  # the user's own setting is kept
    (tmp_path / "file").write_text("")
    folder, _, said = said_with(BERT_FAST_CACHE=str(tmp_path / "file"))
    assert folder == "None"
    assert "cannot be used" in said


@pytest.mark.parametrize(
    ("place", "expected"),
    [("/mnt/nfs", "/mnt/nfs/runs"), (None, "~/.cache/bert_fast/runs"), ("off", "~/.cache/bert_fast/runs")],
)
def test_copies_from_a_bucket_are_kept_in_the_folder_set_by_the_variable(monkeypatch, place, expected):
    monkeypatch.delenv(cached.VARIABLE, raising=False)
    if place:
        monkeypatch.setenv(cached.VARIABLE, place)
    assert cached.folder("runs") == pathlib.Path(expected).expanduser()


def test_cache_folder_that_is_a_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(cached.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(BadInput, match=r"BERT_FAST_CACHE=.*file is a file: set it to a folder"):
        cached.folder("runs")


def test_half_written_entry_is_removed(tmp_path):
    (tmp_path / "runs").mkdir()  # holds copies from a bucket, not compiled programs
    (tmp_path / "whole-cache").write_bytes(b"1")
    (tmp_path / "whole-atime").write_bytes(b"1")
    (tmp_path / "half-cache").write_bytes(b"1")
    said_with(BERT_FAST_CACHE=str(tmp_path))
    assert (tmp_path / "runs").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("half", "whole"))) == [
        "whole-atime",
        "whole-cache",
    ]


def step_programs(folder: pathlib.Path) -> list[str]:
    """The cache entries of train and eval steps. Smaller programs are kept only if compiling them took long."""
    return sorted(path.name for path in folder.glob("jit_*_step-*-cache"))


@pytest.mark.slow
def test_second_run_compiles_no_step_again_even_with_another_seed(small_shards, tmp_path):
    config = small_config(small_shards)
    flags = [f"--config.data.dir={config['data']['dir']}", "--config.steps=3", "--config.checkpoint.every=0"]
    command = [sys.executable, "-m", "bert_fast", "pretrain", "--config=configs/bert.py:size=tiny,debug", *flags]
    environment = os.environ | {"BERT_FAST_CACHE": str(tmp_path / "cache"), "JAX_LOG_COMPILES": "1"}
    kept, said = [], []
    for name in ("one", "two"):
        run = [*command, f"--workdir={tmp_path / name}", f"--config.seed={len(said)}"]
        done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        kept.append(step_programs(tmp_path / "cache"))
        said.append(done.stderr)
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2  # one stage and the evaluation
    assert "first step after" in said[1]
