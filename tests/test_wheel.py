"""The wheel: its contents, training from an empty folder in a fresh environment, versions and lock files."""

import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import packaging.requirements
import packaging.utils
import pytest

from bert_fast import __version__
from helpers.command_line import ROOT

SETTINGS = ["--config=bert:size=tiny,objective=mlm,debug", "--config.steps=4", "--config.eval.every=0"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """A wheel built from the files of a checkout by the installed build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "bert_fast", source / "bert_fast", symlinks=True, ignore=ignored)
    shutil.copytree(ROOT / "configs", source / "configs", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_with_its_configs_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"bert_fast"}
    kinds = (".py", ".css", ".js")
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "bert_fast").rglob("*") if path.suffix in kinds}
    configs = {f"bert_fast/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
    assert names == ours | configs


@pytest.mark.slow
def test_installed_wheel_trains_from_an_empty_folder(wheel, tmp_path):
    """The fresh environment uses the packages installed for the tests, which meet the wheel's list of dependencies."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    packages = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    here = pathlib.Path(pytest.__file__).parents[1]
    (packages / "dependencies.pth").write_text(f"{here}\n")
    pip = [tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    assert {path.name for path in packages.iterdir()} >= {"bert_fast"}
    assert not (packages / "configs").exists()

    work = tmp_path / "work"
    (work / "text").mkdir(parents=True)
    words = "the quick brown fox jumps over a lazy dog while seven wizards vex bold gnomes".split()
    documents = (
        "\n".join(" ".join(words[(d + s * 3 + w) % 15] for w in range(9)) for s in range(9)) for d in range(90)
    )
    (work / "text/corpus.txt").write_text("\n\n".join(documents))
    (work / "mine.py").write_text(
        "from bert_fast.configs import bert\n\n\ndef get_config(text=None):\n    config = bert.get_config(text)\n"
        "    config.learning_rate.peak = 2e-3\n    return config\n"
    )

    def bert_fast(*arguments) -> subprocess.CompletedProcess:
        command = [tmp_path / "venv/bin/bert-fast", *arguments]
        return subprocess.run(command, cwd=work, capture_output=True, text=True)

    done = bert_fast("prepare", "--source=files:text/*.txt", "--out=shards", "--vocab_size=120", "--valid_fraction=0.1")
    assert done.returncode == 0, done.stderr
    done = bert_fast("pretrain", *SETTINGS, "--workdir=run", "--config.data.dir=shards")
    assert done.returncode == 0, done.stderr
    assert "bert-fast evaluate --checkpoint=run" in done.stderr
    mine = ["--config=mine.py:size=tiny,objective=mlm,debug", *SETTINGS[1:]]
    done = bert_fast("pretrain", *mine, "--workdir=mine", "--config.data.dir=shards")
    assert done.returncode == 0, done.stderr
    code = "import bert_fast, bert_fast.configs.bert; print(len(bert_fast.fill_mask('run', 'the [MASK] fox', 3)[0][0]))"
    done = subprocess.run([tmp_path / "venv/bin/python", "-c", code], cwd=work, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["3"], done.stderr


def test_version_is_the_same_everywhere():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["version"] == __version__
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("name", ["requirements", "requirements-test", "requirements-tpu", "requirements-gpu"])
def test_lock_file_pins_versions_that_the_package_accepts_and_holds_no_url(name):
    lines = (ROOT / f"{name}.txt").read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith(("-", "file:"))]
    locked = dict(line.split(" ")[0].split("==") for line in lines if line and not line.startswith("#"))
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        wanted = packaging.requirements.Requirement(text)
        version = locked[packaging.utils.canonicalize_name(wanted.name)]
        assert version in wanted.specifier, f"{wanted} is locked at {version}: run make lock"
