"""Settings of the documentation. `make docs` builds it: python -m sphinx -c docs -W -q . docs/_build

The source folder is the root of the project, so that pages can link to README.md and to the pages of experiments/.
"""

import pathlib

project = "bert_fast"
author = copyright = "The bert_fast authors"

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "experiments/*.md",
    "experiments/*/*.md",
    "colab/*.md",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
# Hidden folders are left out because a walk through .venv takes long.
exclude_patterns = ["docs/_build", "runs", *(path.name for path in pathlib.Path(__file__).parents[1].glob(".*"))]
myst_heading_anchors = 4  # makes links such as budgets.md#seconds work, as on GitHub

html_theme = "furo"
html_title = "bert_fast"
html_extra_path = ["site"]  # its index.html leads to docs/index.html
html_copy_source = False
