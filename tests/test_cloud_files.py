"""Files for other launchers: SkyPilot's task, the Dockerfiles, and the commands in them."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from bert_fast import methods
from bert_fast.commands import config_flag
from bert_fast.train import settings
from helpers.command_line import ROOT
from helpers.config_files import VOCAB

VM = ROOT / "experiments/tpu_vm"
DOCKERFILES = sorted(ROOT.glob("experiments/*/Dockerfile"))
TASK = yaml.safe_load((VM / "skypilot.yaml").read_text())


def arguments_of(run: str) -> list[str]:
    """The flags of pretrain in the command that calls vm.sh's `main`."""
    (command,) = [line for line in run.replace("\\\n", " ").splitlines() if "vm.sh main" in line]
    return [word for word in shlex.split(command) if word.startswith("--")]


def test_skypilot_trains_what_the_task_file_trains():
    arguments = arguments_of(TASK["run"])
    expected = tomllib.loads((VM / "bert_base.toml").read_text())
    assert arguments == expected["args"]
    spec, *changes = (argument.partition("=")[2] for argument in arguments)
    keys = [argument.partition("=")[0].removeprefix("--config.") for argument in arguments[1:]]
    config = config_flag.load(spec, {key: int(value) for key, value in zip(keys, changes, strict=True)}).to_dict()
    assert settings.make(config, VOCAB, tuple(methods.known())).steps == 250_000
    assert TASK["resources"]["accelerators"] == f"tpu-{expected['type']}"


def test_skypilot_calls_functions_that_the_script_has():
    calls = re.findall(r"vm\.sh (\w+)", TASK["setup"] + TASK["run"])
    assert calls == ["setup", "restore", "main"]
    functions = re.findall(r"^(\w+)\(\)", (VM / "vm.sh").read_text(), re.MULTILINE)
    assert set(calls) <= set(functions)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_dockerfile_has_no_fault_that_hadolint_knows(path):
    hadolint = shutil.which("hadolint", path=pathlib.Path(sys.executable).parent)
    if not hadolint:
        pytest.skip("hadolint is not installed: its wheel is for Linux x86-64 only")
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_files_that_a_dockerfile_copies_exist(path):
    for sources in re.findall(r"^COPY (.*) \S+$", path.read_text(), re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
