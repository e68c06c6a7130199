"""Writes the notebooks: copies the cells of common.py into each notebook's .py, and makes the .ipynb next to it.

python colab/make.py            # after a change of common.py or of a notebook's .py
python colab/make.py --check    # changes nothing; exits with 1 if something is out of date
"""

import argparse
import pathlib
import sys

import jupytext
import nbformat

HERE = pathlib.Path(__file__).parent
COMMON = HERE / "common.py"
NAMES = ("quickstart", "methods", "pretrain_your_language", "finetune", "plan_a_tpu_run")
TEXT = "py:percent"
# What Colab reads: the kernel, and which runtime to start.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "colab": {"provenance": [], "toc_visible": True},
}
TPU = {"accelerator": "TPU", "colab": {**METADATA["colab"], "gpuType": "V5E1"}}  # Colab's names for a v5e with one chip
WITHOUT = ("methods", "plan_a_tpu_run")  # these notebooks need no accelerator


def tag_of(cell) -> str:
    """The tag of a cell of common.py. Empty for any other cell."""
    return " ".join(cell.metadata.get("tags", ()))


def common() -> dict[str, nbformat.NotebookNode]:
    """The common cells by tag."""
    cells = jupytext.reads(COMMON.read_text(), TEXT).cells
    return {tag_of(cell): cell for cell in cells if tag_of(cell)}


def texts(name: str) -> dict[pathlib.Path, str]:
    """What a notebook's two files should hold."""
    source = HERE / f"{name}.py"
    notebook, shared = jupytext.reads(source.read_text(), TEXT), common()
    for cell in notebook.cells:
        if tag := tag_of(cell):
            cell.source = shared[tag].source
    text = jupytext.writes(nbformat.v4.new_notebook(cells=notebook.cells, metadata=notebook.metadata), TEXT)
    metadata = METADATA if name in WITHOUT else METADATA | TPU
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{name}-{number}"
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    made = nbformat.v4.new_notebook(cells=notebook.cells, metadata=metadata)
    nbformat.validate(made)
    return {source: text, source.with_suffix(".ipynb"): nbformat.writes(made, indent=1) + "\n"}


def outdated() -> list[pathlib.Path]:
    """The files that this script would change."""
    wanted = {path: text for name in NAMES for path, text in texts(name).items()}
    return [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    check = parser.parse_args().check
    stale = outdated()
    for path in stale:
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(HERE.parent)}")
    if not check:
        for name in NAMES:
            for path, text in texts(name).items():
                path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
