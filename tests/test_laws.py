"""Laws of the architecture: imports point one way, a method is named only in its own file, TensorFlow is optional."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "bert_fast"
FILES = sorted(PACKAGE.rglob("*.py"))
METHODS = {"layer_drop": "layer_drop", "token_drop": "token_drop", "early_bert": "early_bert"}
METHODS |= {"stacking": "stacking", "mslt": "stacking"}  # the file of each method

# The parts of the package that each part may import, in addition to itself.
ALLOWED = {
    "__init__": set(),
    "versions": set(),
    "cached": set(),
    "storage": set(),
    "plan": set(),
    "schedule": set(),
    "qkv": set(),
    "dropout": set(),
    "activations": set(),
    "cross_entropy": set(),
    "attention": {"qkv", "dropout"},
    "layers": {"qkv", "dropout", "activations", "cross_entropy", "attention"},
    "bert": {"layers", "dropout", "cross_entropy", "plan"},
    "method": {"bert", "plan", "schedule"},
    "token_order": set(),
    "methods": {"bert", "qkv", "method", "plan", "schedule", "token_order"},
    "data": {"cached", "storage"},
    "cost": {"bert", "method", "plan"},
    "train": {
        *("bert", "layers", "qkv", "dropout", "activations", "attention"),
        *("plan", "schedule", "method", "methods", "data", "cost", "cached", "storage"),
    },
    "doctor": {"storage", "bert", "plan", "schedule", "method", "data", "train"},
    "encoder": {"bert", "method", "methods", "data", "train"},
    "inference": {"bert", "plan", "method", "data", "train", "encoder"},
    "hf": {
        "bert",
        "layers",
        "qkv",
        "plan",
        "schedule",
        "method",
        "data",
        "storage",
        "train",
        "encoder",
        "tasks",
    },  # only metadata.py, verify.py and write.py import tasks
    "planner": {"bert", "plan", "method", "methods", "data", "cost", "train"},
    "reporting": {"storage", "method", "methods", "plan", "data", "train", "compare"},
    "convert": {"data"},
    "tasks": {"bert", "layers", "dropout", "plan", "schedule", "method", "methods", "data", "train", "encoder", "hf"},
}


def part_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names of everything a file imports, at any nesting level."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def code_of(source: str) -> set[str]:
    """Every name and string in the code, without comments, docstrings and other standalone strings."""
    words, apart = set(), set()
    for node in ast.walk(ast.parse(source)):  # walk yields a statement before its contents
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            apart.add(node.value)
        if node not in apart:
            for _, value in ast.iter_fields(node):
                words |= {word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)}
    return words


def named_in(source: str, names) -> set[str]:
    """The names that occur in the code, alone or as part of a longer name or string."""
    return {name for name in names for word in code_of(source) if name in word}


CODE = """
import bert_fast.methods.stacking
from bert_fast.methods import stacking
from bert_fast.methods.stacking import make
from bert_fast import method as stacking
stacking = 1
print(stacking)
config.stacking.variant
config.stacking = 1
f(stacking=1)
def f(stacking): pass
def f(*, x, **stacking_arguments): pass
def stacking(): pass
class stacking: pass
def f(): from . import stacking
def f(): global stacking
if name == "stacking": pass
x = {"stacking": 1}
f"--config.stacking.{name}"
def f(x="stacking"): "A docstring."
getattr(x, "stacking")
"""
WORDS = """
"A module, like stacking."
x = 1  # like stacking
def f(): "Like stacking."
async def f(): "Like stacking."
class A: "Like stacking."
"""


@pytest.mark.parametrize("name", ["stacking", "pmap"])
@pytest.mark.parametrize("source", CODE.strip().split("\n"))
def test_a_name_in_code_is_found(source, name):
    assert named_in(source.replace("stacking", name), [*METHODS, "pmap"]) == {name}


@pytest.mark.parametrize("source", WORDS.strip().split("\n"))
def test_a_name_in_a_docstring_or_a_comment_is_allowed(source):
    assert not named_in(source, METHODS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if part in ("__main__", "api", "commands", "compare", "notebook", "quickstart"):  # these may import everything
        return
    parts = {name.split(".")[1] for name in imported(path) if name.startswith("bert_fast.")}
    parts -= {part, "BadInput", "Interrupted", "STARTED", "__version__", "command", "versions"}
    assert parts <= ALLOWED[part], f"{path} may import only {ALLOWED[part]} from the package"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_method_is_named_only_in_its_own_file(path):
    if part_of(path) == "convert":  # it writes configs, which name the methods that they use
        return
    assert {METHODS[method] for method in named_in(path.read_text(), METHODS)} <= {path.stem}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_commands_import_ml_collections(path):
    inside = any(name.split(".")[0] == "ml_collections" for name in imported(path))
    assert not inside or path.parent == PACKAGE / "commands" or path == PACKAGE / "api.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_tensorflow_no_torch_no_pmap(path):
    theirs = {"torch", "transformers"} if path != PACKAGE / "hf" / "verify.py" else set()  # verify.py runs their models
    assert not {name.split(".")[0] for name in imported(path)} & {"tensorflow", *theirs}
    assert not named_in(path.read_text(), ["pmap"])


def test_everything_imports_without_tensorflow_and_torch():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES]
    modules = [module for module in modules if not module.endswith("__main__")]
    # None in sys.modules would not work here: code that looks up loaded modules would take None for a module.
    code = (
        "import sys, importlib\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('tensorflow', 'torch'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_no_file_is_longer_than_350_lines():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 350}
    assert not long


def test_no_two_classes_share_a_name():
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert not {name: files for name, files in found.items() if len(files) > 1}
