"""Git ignores what the commands in README.md make in a clone, and nothing that belongs to the repository."""

import re
import shutil
import subprocess

import pytest

from helpers.command_line import ROOT

MADE = re.compile(r"--(?:out|workdir|folder)[= ]([\w./-]+)")

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git clone")


def git(*arguments) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout


def test_what_the_readme_makes_is_ignored():
    made = set(MADE.findall((ROOT / "README.md").read_text()))
    assert made
    seen = {path: git("check-ignore", "--no-index", f"{path}/", path).split() for path in made}
    assert not [path for path, ignored in seen.items() if not ignored]


def test_no_file_of_the_repository_is_ignored():
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == ""
