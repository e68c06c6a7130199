"""The documentation: its links, the site, and every command and example in it, run in debug size."""

import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from bert_fast.commands import config_flag
from bert_fast.train.log import read_rows
from helpers import doc_pages
from helpers.config_files import FILES, FOLDER
from helpers.doc_command import write_commands
from helpers.doc_pages import ROOT
from helpers.made_tasks import write_glue, write_own, write_squad
from helpers.small_runs import run, small_config
from helpers.tiers import tiers

RUN_LANGUAGES = ("bash", "python")
OTHER_LANGUAGES = ("console", "text", "toml", "json", "yaml", "{literalinclude}", "{toctree}")
WORDS = (
    "the quick brown fox jumps over a lazy dog while seven wizards vex bold gnomes and my old grandmother reads how "
    "boxing judges quietly mix pale amber liquors with twelve jars of sphinx quartz from the capital of France"
).split()


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def write_corpus(folder: pathlib.Path):
    """Writes two files of 400 documents with 12 sentences each."""
    folder.mkdir()
    for part in range(2):
        documents = []
        for d in range(part, 800, 2):
            sentences = [
                " ".join(WORDS[(d * 7 + s * 3 + w * (d % 5 + 1)) % len(WORDS)] for w in range(9)).capitalize()
                for s in range(12)
            ]
            documents.append(".\n".join(sentences) + ".")
        with gzip.open(folder / f"part-{part}.txt.gz", "wt") as file:
            file.write("\n\n".join(documents) + "\n")


@pytest.fixture
def work(tmp_path) -> pathlib.Path:
    """An empty folder with a small corpus and small tasks."""
    folder = tmp_path / "work"
    folder.mkdir()
    write_corpus(folder / "corpus")
    write_glue(folder / "GLUE", ("mrpc", "cola"), train=64, dev=32)
    (folder / "SQUAD").mkdir()
    for version in ("1.1", "2.0"):
        write_squad(folder / "SQUAD", version, count=64)
    write_own(folder)
    return folder


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Environment variables of a shell whose `bert-fast`, `python`, `make` and `pip` come from
    helpers/doc_command.py.
    """
    write_commands(tmp_path / "bin")
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    source = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PATH": path, "PYTHONPATH": source, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


class Pieces:
    """A process that runs pieces of Python in one namespace."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str]):
        command = [sys.executable, ROOT / "tests/helpers/doc_command.py", "pieces"]
        self.log = (folder.parent / "python.log").open("w")
        self.child = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def run(self, text: str) -> str:
        """Runs a piece. Returns the traceback, or an empty string if the piece raised nothing."""
        assert self.child.stdin
        assert self.child.stdout
        self.child.stdin.write(json.dumps(text) + "\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        return json.loads(answer) if answer else f"the process ended with {self.child.wait()}"

    def close(self):
        assert self.child.stdin
        assert self.child.stdout
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait()
        self.log.close()


def run_bash(text: str, folder: pathlib.Path, environment: dict[str, str]) -> str:
    """Runs commands. Returns what they printed if one failed, otherwise an empty string."""
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return f"{done.stdout}\n{done.stderr}\nexit code {done.returncode}" if done.returncode else ""


@pytest.mark.parametrize("path", doc_pages.LINKED, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(path):
    for link in doc_pages.links(path):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path}: {link}"
        assert file.is_relative_to(ROOT), f"{path}: {link} is outside the project"
        if anchor:
            assert anchor in doc_pages.anchors(file), f"{path}: {link}: no such heading"


@pytest.mark.parametrize("path", doc_pages.RUN, ids=name_of)
def test_fences_name_a_known_language(path):
    for fence in doc_pages.fences(path):
        language = fence.language.split(" ")[0]
        assert language in RUN_LANGUAGES + OTHER_LANGUAGES, f"{path}:{fence.line}: language {fence.language!r}"


def lasts_long(command: str) -> bool:
    """Whether a command starts a run whose length nobody chose."""
    if "pretrain" not in command.split()[:2] or re.search(r"--(help|config\.(steps|budget)=)", command):
        return False
    spec = re.search(r"--config=(\S+)", command)
    assert spec, command
    return spec[1].partition(":")[0].endswith(".py") or config_flag.load(spec[1], {}).steps > 10_000


@pytest.mark.parametrize("path", doc_pages.RUN, ids=name_of)
def test_a_pretrain_command_says_how_long_it_trains(path):
    for fence in doc_pages.fences(path):
        if fence.language in ("bash", "console"):
            for command in fence.text.replace("\\\n", " ").splitlines():
                if command.lstrip("$ ").startswith("bert-fast"):
                    message = f"{path}:{fence.line}: {command}: give it --config.steps or --config.budget"
                    assert not lasts_long(command.lstrip("$ ")), message


def test_anchors_are_the_same_as_on_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A *short* `title_1`, v2.0\n\n## Again\n\n## Again\n")
    assert doc_pages.anchors(page) == {"a-short-title_1-v20", "again", "again-1"}


def test_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-c", "docs", "-b", "html", "-W", "--keep-going", "-q", "."]
    done = subprocess.run([*command, tmp_path / "site"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/docs/index.html").is_file()
    assert "docs/index.html" in (tmp_path / "site/index.html").read_text()


# The commands of compare.md train whole studies, so its case is a long test.
@pytest.mark.parametrize(
    "path", tiers(doc_pages.RUN, slow=[path for path in doc_pages.RUN if path.name != "compare.md"]), ids=name_of
)
def test_every_fence_runs(path, work, environment):
    pieces = None
    try:
        for fence in doc_pages.fences(path):
            if fence.file:
                (work / fence.file).parent.mkdir(parents=True, exist_ok=True)
                (work / fence.file).write_text(fence.text)
            elif fence.language == "bash":
                failed = run_bash(fence.text, work, environment)
                assert not failed, f"{path}:{fence.line}\n{fence.text}\n{failed}"
            elif fence.language == "python":
                pieces = pieces or Pieces(work, environment)
                failed = pieces.run(fence.text)
                assert not failed, f"{path}:{fence.line}\n{failed}"
    finally:
        if pieces:
            pieces.close()


@pytest.mark.slow
def test_page_about_the_run_folder_names_every_key_and_file(small_shards, tmp_path):
    run(small_config(small_shards, methods="token_drop,layer_drop", model__norm="pre", phases="32:1"), tmp_path)
    page = (ROOT / "docs/run_folder.md").read_text()
    keys = set().union(*read_rows(tmp_path / "metrics.jsonl"))
    assert "nsp_loss" in keys
    assert not {key for key in keys if f"`{key}`" not in page and "/" not in key}
    files = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert not {name for name in files if f"`{name}`" not in page and f"`{name}/" not in page}


def docstring_commands(path: pathlib.Path) -> list[str]:
    """The commands in the docstring of a config or a study."""
    docstring = path.read_text().split('"""')[1]
    return re.findall(r"^    (bert-fast .*|python -m .*)$", docstring, re.MULTILINE)


STUDIES = sorted((FOLDER / "studies").glob("[!_]*.py"))


@pytest.mark.parametrize("path", [*FILES, *STUDIES], ids=name_of)
def test_docstring_of_a_config_has_a_command(path):
    assert docstring_commands(path)


@pytest.fixture(scope="module")
def tier_costs(tmp_path_factory) -> pathlib.Path:
    """The step costs of the previous tier of the project's study. The tiers have most stages in common, and so need not
    measure them again; only the trials of learning rates have other arms.
    """
    return tmp_path_factory.mktemp("costs") / "costs.json"


@pytest.mark.slow
@pytest.mark.parametrize("path", [*FILES, *STUDIES], ids=name_of)
def test_command_in_the_docstring_of_a_config_runs(path, work, environment, tier_costs):
    setup = "bert-fast prepare --source='files:corpus/*.txt.gz' --out=SHARDS"
    if "--checkpoint=runs/base" in path.read_text():
        setup += "\nbert-fast pretrain --config=bert:size=tiny --workdir=runs/base --config.data.dir=SHARDS"
        setup += " --config.model.max_len=384"  # SQuAD's windows
    dry_run = " --dry_run" if path in STUDIES else ""
    costs = work / "runs" / path.stem / "costs.json"
    is_tier = path in STUDIES and path.stem.startswith("tier") and "rates" not in path.stem
    if is_tier and tier_costs.exists():
        costs.parent.mkdir(parents=True)
        shutil.copy(tier_costs, costs)
    for command in docstring_commands(path):
        if command.startswith("bert-fast"):
            failed = run_bash(f"{setup}\n{command}{dry_run}", work, environment)
            assert not failed, f"{path}: {command}\n{failed}"
    if is_tier:
        shutil.copy(costs, tier_costs)
