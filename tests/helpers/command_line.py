"""Runs the package's commands in the test's process."""

import contextlib
import io
import pathlib
from typing import NamedTuple

from bert_fast.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def bert_fast(*args) -> Done:
    """Runs a command in this process. A new process would have to import the packages again."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(arg) for arg in args])
    return Done(code, out.getvalue(), err.getvalue())
