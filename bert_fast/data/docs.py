"""The built-in corpus: English documentation that every machine has after installation.

It holds the docstrings, long string literals and long comments of the standard library and of the packages that
bert_fast requires, and the README and reference text of each package. All text is reduced to prose. Source files
are parsed with `ast` and never imported. Each docstring, literal, comment or page is one document. The order is
fixed, and each paragraph occurs once.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import os
import pathlib
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator

from bert_fast import BadInput
from bert_fast.data import markup, workers
from bert_fast.data.files import atomic_write

# Only what requirements.txt installs, so the corpus is the same with and without the test packages.
# fmt: off
DISTRIBUTIONS = (
    "absl-py", "array-record", "attrs", "chex", "clu", "contourpy", "cycler", "dm-tree", "docstring-parser",
    "einops", "etils", "filelock", "flax", "fonttools", "fsspec", "grain", "huggingface-hub", "immutabledict",
    "jax", "jaxlib", "joblib", "kiwisolver", "markdown-it-py", "matplotlib", "ml-collections", "ml-dtypes",
    "msgpack", "narwhals", "numpy", "opt-einsum", "optax", "orbax-checkpoint", "packaging", "pillow", "promise",
    "protobuf", "psutil", "pyarrow", "pygments", "pyparsing", "python-dateutil", "pyyaml", "requests", "rich",
    "safetensors", "scikit-learn", "scipy", "simple-parsing", "simplejson", "six", "tensorboardx",
    "tensorflow-datasets", "tensorflow-metadata", "tensorstore", "termcolor", "threadpoolctl", "tokenizers",
    "toolz", "tqdm", "treescope", "typing-extensions", "urllib3", "wrapt",
)
# fmt: on

_SUFFIXES = (".py", ".pyi", ".rst", ".md", ".txt")
# Docstrings of tests describe only tests; vendored copies and licences repeat text from elsewhere.
_SKIPPED = {"tests", "test", "testing", "_vendor", "site-packages", "dist-packages", "licenses", "__pycache__"}
_COMMENTS = re.compile(r"(?m)(?:^[ \t]*#(?!!).*\n){2,}")  # at least two lines: long enough to explain something
_LITERAL = 200  # characters: a string at least this long counts as documentation even if it is not a docstring


def cached(processes: int, folder: pathlib.Path | None = None) -> pathlib.Path:
    """Path of the corpus as a text file, which the first call writes.

    The file has one paragraph per line, and a blank line between documents. It is in `folder`, by default
    `$XDG_CACHE_HOME/bert_fast`. Its name changes with the version of Python, the versions of the packages and the
    code that cleans the text.
    """
    folder = folder or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "bert_fast"
    path = folder / f"docs-{version()}.txt"
    if not path.is_file():
        print(f"Collecting the documentation of Python and its packages into {path} (only once) ...", flush=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, "\n\n".join(collect(processes)).encode())
        except OSError as error:
            raise BadInput(f"the docs corpus cannot be written to {path}: {error}. Set XDG_CACHE_HOME") from error
    return path


def collect(processes: int) -> list[str]:
    """All documents of the corpus, each with one paragraph per line."""
    paths = [str(path) for path in _paths()]
    with workers.Pool(processes) as pool:
        return list(_unique(document for found in pool.map(_documents, paths) for document in found))


def _unique(documents: Iterable[list[str]]) -> Iterator[str]:
    """The documents, each without the paragraphs that an earlier document holds. Drops documents that become too short.

    Many descriptions of parameters are repeated.
    """
    seen = set()
    for paragraphs in documents:
        fresh = [text for text in paragraphs if hashlib.sha1(text.lower().encode()).digest() not in seen]
        seen.update(hashlib.sha1(text.lower().encode()).digest() for text in fresh)
        if sum(len(text.split()) for text in fresh) >= markup.DOCUMENT_WORDS:
            yield "\n".join(dict.fromkeys(fresh))


def version() -> str:
    """A short hash of everything the corpus depends on."""
    here = pathlib.Path(__file__)
    versions = [f"{name}=={found.version}" for name in DISTRIBUTIONS if (found := _distribution(name))]
    # Comments and docstrings are left out, because they do not change the corpus.
    code = "".join(_code_of(path) for path in (here, here.with_name("markup.py")))
    return hashlib.sha256("\n".join([platform.python_version(), *versions, code]).encode()).hexdigest()[:12]


def _code_of(path: pathlib.Path) -> str:
    """The code of a file, without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _paths() -> Iterator[pathlib.Path]:
    """Source files of the standard library, then source and text files of each package. Each part is sorted by path."""
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if _SKIPPED.isdisjoint(path.relative_to(library).parts) and path.relative_to(library).parts[0] != "ensurepip":
            yield path
    for name in DISTRIBUTIONS:
        if distribution := _distribution(name):
            files = sorted(str(file) for file in distribution.files or ())
            for file in files:
                parts = pathlib.PurePosixPath(file).parts
                wanted = (file.endswith(_SUFFIXES) and ".dist-info" not in parts[0]) or parts[-1] == "METADATA"
                if wanted and _SKIPPED.isdisjoint(parts):
                    yield pathlib.Path(str(distribution.locate_file(file)))


def _documents(path: str) -> list[list[str]]:
    """The prose of one file: a list of paragraphs for each document."""
    try:
        text = pathlib.Path(path).read_text("utf-8")
    except (UnicodeDecodeError, OSError):
        return []
    if path.endswith((".py", ".pyi")):
        found = _literals(text) + [re.sub(r"(?m)^[ \t]*#+:?", "", block) for block in _COMMENTS.findall(text)]
    elif path.endswith("METADATA"):
        found = [text.partition("\n\n")[2]]
    else:
        found = [text] if not re.search(r"(?i)licen[sc]e|copying|notice|requirements|top_level|authors", path) else []
    return [paragraphs for literal in found if (paragraphs := markup.paragraphs(inspect.cleandoc(literal)))]


def _literals(source: str) -> list[str]:
    """Docstrings and long strings of a module, in file order. F-strings are left out, because they are fragments."""
    if '"""' not in source and "'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    found: list[str] = []
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and len(node.value) >= _LITERAL:
                found.append(node.value)
            continue
        if isinstance(node, ast.JoinedStr):
            continue
        children = list(ast.iter_child_nodes(node))
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (docstring := ast.get_docstring(node, clean=False)):
            found.append(docstring)
            children.remove(node.body[0])
        stack.extend(reversed(children))
    return found
