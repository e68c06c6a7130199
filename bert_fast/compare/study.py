"""A study: variants of a config, called arms, which are trained with the same seeds and budgets.

The file of a study is as short as a config.
"""

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bert_fast import BadInput, methods
from bert_fast.commands import config_flag
from bert_fast.cost import budget
from bert_fast.data import shards
from bert_fast.planner.step_costs import ROUNDS
from bert_fast.train import settings
from bert_fast.train.evaluate import fingerprint

SHIPPED = config_flag.SHIPPED / "studies"
FOLDER = "runs"  # holds all runs, inside the study's folder
Arm = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    config: the config that all arms start from, as `--config` takes it. changes: new values for all arms, by dotted
        key.
    arms: each arm's changes, by name. An arm may start from another config, which its key "config" names. All other
        arms are compared with the first arm.
    seeds: each arm runs with every seed. Runs with equal seeds share data and masks where their lengths are equal, and
        initial weights where the shapes are equal.
    budgets: each arm runs with every budget, as `--config.budget` takes it. From two or more budgets, a speed-up is
        computed.
    tasks: fine-tuning configs, such as "glue:task=mrpc", run on every trained model. task_data: the folder with their
        data.
    source, vocab_size: the corpus, as `prepare` takes it.
    topology: the TPU whose compiler estimates the step costs, such as "v5e:1x1". If it is empty, the step costs are
        measured on this machine.
    rounds: how often each program is timed to measure the step costs.
    """

    arms: Mapping[str, Arm]
    config: str = "bert:size=tiny,seq=128,objective=mlm,norm=pre"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    budgets: tuple[str, ...] = ("tokens:2e6",)
    tasks: tuple[str, ...] = ()
    task_data: str = ""
    source: str = "docs"
    vocab_size: int = 8_000
    topology: str = ""
    rounds: int = ROUNDS


class Run(NamedTuple):
    """One training: its arm, budget and seed, and its folder inside the study's."""

    arm: str
    budget: str
    seed: int

    @property
    def folder(self) -> pathlib.Path:
        return pathlib.Path(FOLDER, self.budget.replace(":", "="), slug(self.arm), f"seed={self.seed}")


def slug(name: str) -> str:
    """A name in a form that can be part of a path."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-")


def load(name: str) -> Study:
    """The study that `name` gives: the name of a shipped study, or the path of a file. Raises BadInput if there is no
    such study.
    """
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("[!_]*.py"))}
    if name in shipped:
        path = shipped[name]
    elif "/" in name or name.endswith(".py"):
        path = pathlib.Path(name)
    else:
        near = difflib.get_close_matches(name, shipped, 2, 0.4) or list(shipped)
        raise BadInput(f"unknown study {name!r}: did you mean {' or '.join(near)}? Or give the path of a file")
    if not path.is_file():
        raise BadInput(f"no study file {str(path)!r}: expected a Python file that defines get_study()")
    try:
        names = {getattr(statement, "name", "") for statement in ast.parse(path.read_text(encoding="utf-8")).body}
    except (SyntaxError, ValueError) as error:
        raise BadInput(f"{path} is not a Python file: {error}. A study defines get_study()") from None
    if "get_study" not in names:
        raise BadInput(f"{path} does not define get_study(), which returns the study")
    described = importlib.util.spec_from_file_location("bert_fast_study", path)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    try:
        described.loader.exec_module(module)
        found = module.get_study()
    except (TypeError, ImportError, NameError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    if not isinstance(found, Study):
        raise BadInput(f"{path}: get_study() returned a {type(found).__name__}: expected bert_fast.compare.study.Study")
    return found


def check(study: Study):
    """Raises BadInput for a study without arms, seeds or budgets, or with names that collide."""
    for name, values in (("arms", study.arms), ("seeds", study.seeds), ("budgets", study.budgets)):
        if not values:
            raise BadInput(f"the study has no {name}: expected at least one")
        if len(set(values)) < len(tuple(values)):
            raise BadInput(f"the study lists one of its {name} twice: {', '.join(map(str, values))}")
    slugs: dict[str, str] = {}
    for arm in study.arms:
        if (known := slugs.setdefault(slug(arm), arm)) != arm:
            raise BadInput(f"arms {known!r} and {arm!r} would share the folder {slug(arm)!r}: rename one")
    for text in study.budgets:
        budget.parse(text)
    if study.rounds < 1:
        raise BadInput(f"the study times each program {study.rounds} times: expected rounds of at least 1")
    for task in study.tasks:
        if not pathlib.Path(study.task_data or "/nowhere").is_dir():
            raise BadInput(
                f"task {task!r} needs data: give its folder, such as glue/, as --task_data or in the study as task_data"
            )
        config_flag.load(task, {"data.dir": study.task_data})
    for key in ("seed", "budget", "costs", "data.dir"):
        if key in study.changes or any(key in changes for changes in study.arms.values()):
            raise BadInput(f"the study changes {key}, which the comparison sets itself: leave it out")


def runs_of(study: Study) -> list[Run]:
    """All runs by seed, then by budget, so that a study that is stopped early has all runs of its first seeds."""
    return [Run(arm, text, seed) for seed in study.seeds for text in study.budgets for arm in study.arms]


def changes_of(study: Study, run: Run, data: pathlib.Path, costs: pathlib.Path | None) -> tuple[str, dict[str, Any]]:
    """The config that a run starts from, as `--config` takes it, and its changes by dotted key."""
    changes = {"checkpoint.keep": 1, **study.changes, **study.arms[run.arm]}
    spec = changes.pop("config", study.config)
    return spec, changes | {"seed": run.seed, "budget": run.budget, "data.dir": str(data), "costs": str(costs or "")}


def config_of(study: Study, run: Run, data: pathlib.Path, costs: pathlib.Path | None):
    """The config of a run. Raises BadInput, which names the arm, if a key or value is wrong."""
    try:
        return config_flag.load(*changes_of(study, run, data, costs))
    except BadInput as error:
        raise BadInput(f"arm {run.arm!r}: {error}") from None


def settings_of(study: Study, run: Run, data: pathlib.Path, costs: pathlib.Path | None) -> settings.PretrainSettings:
    """The settings of a run. Raises BadInput, which names the arm, if they are invalid."""
    config = config_of(study, run, data, costs).to_dict()
    vocab = shards.read_manifest(data)["vocab"]
    try:
        made = settings.make(config, vocab, tuple(methods.known()))
        methods.make(made.methods)
        return made
    except BadInput as error:
        raise BadInput(f"arm {run.arm!r}: {error}") from None


def refuse_incomparable(study: Study, data: pathlib.Path):
    """Raises BadInput if two arms would be evaluated on different examples or masks."""
    manifest = shards.read_manifest(data)
    first, *others = study.arms

    def held_out(arm: str) -> tuple[str, dict]:
        # The budget is left out, because it may need step costs, which are made later.
        run = Run(arm, "", study.seeds[0])
        made = settings_of(study, run, data, None)
        about = {"data.objective": made.data.objective}
        about |= {f"eval.{key}": value for key, value in dataclasses.asdict(made.eval).items()}
        return fingerprint(manifest, made.data, made.eval), about

    expected, about = held_out(first)
    for arm in others:
        found, other = held_out(arm)
        if found != expected:
            keys = [key for key in about if about[key] != other[key] and key not in ("eval.every", "eval.batch_size")]
            differences = "; ".join(f"{key}: {other[key]!r}, not {about[key]!r}" for key in keys)
            raise BadInput(
                f"arm {arm!r} would be evaluated on different examples from arm {first!r} ({differences}), so "
                "their losses cannot be compared: give both the same values"
            )
