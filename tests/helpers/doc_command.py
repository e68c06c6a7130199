"""Commands of the documentation in debug size. The documentation's tests put them on PATH: see `write_commands`.

python doc_command.py NAME ARGUMENT...   where NAME is bert-fast, python, make or pip
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("bert-fast", "python", "python3", "make", "pip")
# Settings that a config's `debug` decides, and the layout of a mesh, which needs several devices.
DROPPED = re.compile(
    r"(steps|batch_size|micro_batches|phases|log_every|learning_rate\.(warmup_steps|peak)|eval\..*|checkpoint\.every"
    r"|mesh\..*|epochs)$"
)
BUDGETS = {"tokens": "8e3", "examples": "160", "flops": "4e9", "seconds": "1"}
WITH_CONFIG = (["pretrain"], ["plan"], ["costs"], ["finetune"])
SMALL = pathlib.Path(".small")  # the folder of smaller studies


def small_spec(spec: str) -> str:
    """The value of --config with the argument `debug`."""
    name, _, arguments = spec.partition(":")
    return spec if "debug" in arguments.split(",") else f"{name}:{','.join(filter(None, (arguments, 'debug')))}"


def small_changes(changes: dict) -> dict:
    """Config values by key, without those that debug decides."""
    kept = {key: value for key, value in changes.items() if not DROPPED.match(key)}
    if kept.get("budget"):
        unit = str(kept["budget"]).partition(":")[0]
        kept["budget"] = f"{unit}:{BUDGETS[unit]}"
    return kept


def small_topology(name: str) -> str:
    """One chip of a TPU slice: a small batch does not divide over more chips. Empty if the TPU compiler is missing."""
    return f"{name.partition(':')[0]}:1x1" if name and importlib.util.find_spec("libtpu") else ""


def small_study(name: str, folder: pathlib.Path) -> str:
    """A study file in the folder: the same comparison with two arms, one small budget and the test's corpus."""
    from bert_fast.compare import study

    made = study.load(name)
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    fields["arms"] = {arm: small_changes(changes) for arm, changes in list(made.arms.items())[:2]}
    fields["config"] = small_spec(made.config)
    fields["changes"] = small_changes(made.changes)
    fields |= {"seeds": made.seeds[:2], "budgets": ("tokens:8e3",), "source": "files:corpus/*.txt.gz"}
    fields["rounds"] = 3
    fields["topology"] = small_topology(made.topology)
    path = folder / pathlib.Path(name).with_suffix(".py").name
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"from bert_fast.compare.study import Study\n\n\ndef get_study():\n    return Study(**{fields!r})\n"
    )
    return str(path)


def small(argv: list[str]) -> list[str]:
    """The arguments of `bert-fast` for the same command in debug size."""
    if argv[:1] == ["compare"]:
        named = [arg if arg.startswith("-") else small_study(arg, SMALL) for arg in argv[1:]]
        return [argv[0], *named]
    if argv[:1] == ["prepare"]:
        return [*argv, "--processes=1"]  # more processes would take longer to start than this corpus to prepare
    if argv[:1] not in WITH_CONFIG or "--help" in argv:
        return argv
    found = []
    for arg in argv:
        flag, equals, value = arg.partition("=")
        name, _, key = flag.removeprefix("--").partition(".")
        if flag == "--topology" and ":" in value:
            if not small_topology(value):
                continue
            arg = f"{flag}={small_topology(value)}"
        if name in ("config", "compare") and equals and not key:
            arg = f"{flag}={small_spec(value)}"
        elif name in ("config", "compare") and equals:
            changes = small_changes({key: value})
            if not changes:
                continue
            arg = f"{flag}={changes[key]}"
        found.append(arg)
    return found


def check_make(targets: list[str]):
    """Fails unless the Makefile has the targets."""
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in targets:
        if "=" not in target and target not in known:
            sys.exit(f"make {target}: the Makefile has no such target; it has {', '.join(sorted(known))}")


def check_pip(argv: list[str]):
    """Fails unless every local package to be installed exists and has the named extras. Skips all other packages."""
    from packaging.requirements import Requirement

    if argv[:1] != ["install"]:
        sys.exit(f"pip {' '.join(argv)}: expected pip install")
    for name in argv[1:]:
        if name.startswith("-"):
            continue
        path, _, extras = name.removesuffix("]").partition("[")
        if path.startswith("."):
            path = str(ROOT / path)
        elif "/" not in path:
            wanted = Requirement(name)
            if wanted.name.replace("-", "_") != "bert_fast":
                continue
            path, extras = str(ROOT), ",".join(wanted.extras)
        project = tomllib.loads(pathlib.Path(path, "pyproject.toml").read_text())["project"]
        for extra in filter(None, extras.split(",")):
            if extra not in project.get("optional-dependencies", {}):
                sys.exit(f"pip install {name}: {path} has no extra {extra!r}")


def write_commands(folder: pathlib.Path):
    """Writes an executable for each command into the folder."""
    folder.mkdir()
    for name in NAMES:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)


def run_python():
    """Runs pieces of Python in one namespace. Each line of input is a piece, as a JSON string.

    Prints a line for each piece: its traceback as a JSON string, which is empty if the piece succeeded. If a piece
    calls `bert_fast`, the runs have debug size.
    """
    import contextlib
    import traceback

    from bert_fast.commands import config_flag

    load, changed = config_flag.load, config_flag.changed
    config_flag.load = lambda spec, changes: load(small_spec(spec), small_changes(changes))
    config_flag.changed = lambda config, changes: changed(config, small_changes(changes))
    names: dict = {"__name__": "__main__"}
    for line in sys.stdin:
        answer = ""
        with contextlib.redirect_stdout(sys.stderr):
            try:
                exec(compile(json.loads(line), "<page>", "exec"), names)
            except Exception:
                answer = traceback.format_exc()
        print(json.dumps(answer), flush=True)


def main(name: str, argv: list[str]) -> int:
    if name.startswith("python"):
        if argv[:2] == ["-m", "pip"]:
            name, argv = "pip", argv[2:]
        elif argv[:2] == ["-m", "bert_fast"]:
            name, argv = "bert-fast", argv[2:]
        else:
            os.execv(sys.executable, [sys.executable, *argv])
    if name == "make":
        check_make(argv)
        return 0
    if name == "pip":
        check_pip(argv)
        return 0
    from bert_fast.__main__ import main as bert_fast

    return bert_fast(small(argv))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    sys.exit(run_python() if sys.argv[1:] == ["pieces"] else main(sys.argv[1], sys.argv[2:]))
