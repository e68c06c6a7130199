"""Every package that the code imports is declared. docs/dependencies.md has a row for each declared package."""

import ast
import importlib.metadata
import re
import sys
import tomllib

from helpers.command_line import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FILES = [*(ROOT / "bert_fast").rglob("*.py"), *(ROOT / "configs").rglob("*.py")]


def name_of(requirement: str) -> str:
    """The normalised name of a requirement such as `jax[tpu]>=0.10.2`."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def rows(title: str) -> list[str]:
    """The first cells of the table below a heading of the page."""
    section = (ROOT / "docs/dependencies.md").read_text().split(f"## {title}")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_page_has_one_row_for_each_dependency_and_no_other():
    assert sorted(map(name_of, rows("Always installed"))) == sorted(map(name_of, PROJECT["dependencies"]))


def test_page_has_one_row_for_each_extra_and_no_other():
    assert sorted(rows("Extras")) == sorted(EXTRAS)


def test_every_imported_package_is_declared():
    declared = {
        name_of(text) for text in [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    }
    packages = importlib.metadata.packages_distributions()
    undeclared = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"bert_fast"}:
                if not declared & {name_of(distribution) for distribution in [top, *packages.get(top, [])]}:
                    undeclared.setdefault(top, []).append(str(path.relative_to(ROOT)))
    assert not undeclared


def test_every_core_dependency_is_imported():
    # Only importlib_resources is not imported here: tensorflow-datasets imports it.
    words = "\n".join(path.read_text() for path in FILES)
    packages = importlib.metadata.packages_distributions()
    for requirement in PROJECT["dependencies"]:
        tops = [top for top, found in packages.items() if name_of(requirement) in map(name_of, found)]
        used = any(re.search(rf"^\s*(import|from) {re.escape(top)}\b", words, re.MULTILINE) for top in tops)
        assert used or name_of(requirement) == "importlib-resources", requirement
