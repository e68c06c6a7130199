"""The notebooks in colab/: text and .ipynb agree, shared cells are equal, installing does not replace JAX, and every
notebook runs.
"""

import importlib.util
import os
import pathlib
import re
import sys
import types

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
COLAB = ROOT / "colab"


def load_make() -> types.ModuleType:
    described = importlib.util.spec_from_file_location("colab_make", COLAB / "make.py")
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


make = load_make()


def test_notebooks_are_made_from_their_text_and_share_their_common_cells():
    """If this fails: python colab/make.py"""
    assert make.outdated() == []


def test_every_notebook_is_listed_and_installs_before_it_imports_the_package():
    assert {path.stem for path in COLAB.glob("*.ipynb")} == set(make.NAMES)
    for name in make.NAMES:
        cells = nbformat.read(COLAB / f"{name}.ipynb", 4).cells
        install = [make.tag_of(cell) for cell in cells].index("install")
        assert not any("bert_fast." in cell.source for cell in cells[:install] if cell.cell_type == "code"), name


def test_form_fields_are_plain_values():
    """Colab shows a form field for `NAME = VALUE  # @param` only if the value is a literal."""
    for path in COLAB.glob("*.py"):
        for line in path.read_text().splitlines():
            if "# @param" in line:
                assert re.fullmatch(r'[A-Z_]+ = (".*"|True|False|-?[\d_.]+)  # @param .*', line), f"{path.name}: {line}"


@pytest.fixture
def installer(tmp_path, monkeypatch):
    """The names that the install cell defines when bert_fast is missing, and a pip that only records its arguments."""
    names: dict = {}
    exec(make.common()["install"].source, names)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    names["asked"] = []

    def pip(command, **_):
        names["asked"].append(command)
        return types.SimpleNamespace(returncode=0, stdout="", stderr="")

    names["pip"] = pip
    return names


TPU = {"jax": "0.10.4", "jaxlib": "0.10.4", "libtpu": "0.0.43", "numpy": "2.0.2"}
GPU = {"jax": "0.10.4", "jaxlib": "0.10.4", "jax-cuda12-plugin": "0.10.4", "jax_cuda12_pjrt": "0.10.4"}
GPU |= {"nvidia-cublas-cu12": "12.9", "numpy": "2.0.2"}


@pytest.mark.parametrize("packages", [TPU, GPU])
def test_install_keeps_the_jax_of_the_runtime(installer, packages):
    installer["installed"] = lambda: packages
    assert installer["install"]("bert_fast.whl", run=installer["pip"]) == "bert_fast is installed, next to JAX 0.10.4."
    (command,) = installer["asked"]
    assert command[-1] == "bert_fast.whl"
    constraints = pathlib.Path(command[command.index("--constraint") + 1]).read_text().splitlines()
    assert constraints == [f"{name}=={at}" for name, at in packages.items() if name != "numpy"]


@pytest.mark.parametrize(
    ("packages", "wanted"),
    [
        (TPU, "jax[tpu]>=0.10.2"),
        (GPU, "jax[cuda12]>=0.10.2"),
        ({"jax": "0.7.2", "jaxlib": "0.7.2"}, "jax>=0.10.2"),
    ],
)
def test_old_jax_is_replaced_only_on_request_and_for_the_same_accelerator(installer, packages, wanted):
    installer["installed"] = lambda: packages | {"jax": "0.7.2"}
    with pytest.raises(RuntimeError, match=r"has JAX 0\.7\.2, and bert_fast needs 0\.10\.2: .* or tick UPGRADE_JAX"):
        installer["install"]("bert_fast.whl", run=installer["pip"])
    assert not installer["asked"]
    installer["install"]("bert_fast.whl", True, run=installer["pip"])
    assert installer["asked"][0][-2:] == ["bert_fast.whl", wanted]
    assert pathlib.Path("constraints-of-jax.txt").read_text() == ""


def test_oldest_jax_is_the_packages_lower_bound(installer):
    assert f'"jax>={installer["OLDEST_JAX"]}"' in (ROOT / "pyproject.toml").read_text()


def test_old_python_is_refused_with_the_remedy(installer, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    with pytest.raises(RuntimeError, match=r"Python 3\.10, and bert_fast needs 3\.11 to 3\.13: choose another"):
        installer["install"]("bert_fast.whl", run=installer["pip"])


def test_missing_source_is_refused_with_the_remedy(installer):
    with pytest.raises(RuntimeError, match="SOURCE is empty: upload a wheel"):
        installer["install"]("", run=installer["pip"])


def test_zip_of_the_source_is_refused_because_pip_drops_the_symbolic_link(installer):
    with pytest.raises(RuntimeError, match=r"src\.zip without the link .* give a wheel or a \.tar\.gz"):
        installer["install"]("src.zip", run=installer["pip"])


def test_failure_of_pip_is_shown(installer):
    def fail(command, **_):
        return types.SimpleNamespace(returncode=1, stdout="", stderr="ERROR: Invalid requirement")

    with pytest.raises(RuntimeError, match=r"could not install x\.whl:\nERROR: Invalid requirement"):
        installer["install"]("x.whl", run=fail)


def test_user_is_asked_to_restart_if_a_package_was_replaced_while_in_use(installer):
    found = iter([TPU, TPU | {"numpy": "2.4.6"}])
    installer["installed"] = lambda: next(found)
    said = installer["install"]("bert_fast.whl", run=installer["pip"])
    assert said.startswith("numpy was replaced while in use: Runtime > Restart session")


def test_install_does_nothing_if_the_package_is_installed(installer, monkeypatch):
    monkeypatch.undo()
    assert installer["install"]("", run=installer["pip"]) == "bert_fast is installed."
    assert not installer["asked"]


# The test's corpus is small, so the warning of a large vocabulary is expected.
BROKEN = re.compile(r"(?i)warning(?!: the vocabulary is large)|traceback|error|deprecat")
FIGURES = {"quickstart": 1, "methods": 9, "pretrain_your_language": 2, "finetune": 0, "plan_a_tpu_run": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    """A small corpus for `prepare`: the text of the pages in experiments/."""
    folder = tmp_path_factory.mktemp("corpus")
    pages = [path.read_text() for path in sorted((ROOT / "experiments").glob("*.md"))]
    (folder / "text.txt").write_text("\n\n".join(pages))
    return f"files:{folder}/*.txt"


@pytest.mark.slow
@pytest.mark.parametrize("name", make.NAMES)
def test_notebook_runs_from_top_to_bottom(name, corpus, tmp_path, monkeypatch):
    for key, value in {
        "BERT_FAST_NOTEBOOK_DEBUG": corpus,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes most of the time
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }.items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(COLAB / f"{name}.ipynb", 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert not BROKEN.search(said), said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[name]
