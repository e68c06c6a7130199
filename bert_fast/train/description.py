"""A checkpoint's description, `about.json`: everything needed to rebuild its model without the run's config."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from bert_fast import BadInput, __version__
from bert_fast.data import vocab
from bert_fast.data.vocab import Vocab
from bert_fast.layers import Config
from bert_fast.method import Program, Stage
from bert_fast.plan import Span
from bert_fast.schedule import Schedule
from bert_fast.train import settings
from bert_fast.train.counters import Counters
from bert_fast.train.settings import Data, Evaluation

# Format 1 had no number, stored optimizer and method state by position, and did not record whether a stage had ended.
# Format 2 had other names for `counters`, and for fields of programs, spans and models.
# Format 3 had no masking settings for the evaluation: it used the training's.
# Format 4 had no mesh, no number of planned steps and no number of rows. It had no guard, and counted fewer times.
# Query, key and value were separate leaves: state.py and checkpoint.py join them.
# Format 5 did not record whether the run had waited for the checkpoint, because every run had.
FORMAT = 6
RENAMED = {
    "program": {"frozen": "frozen_paths"},
    "span": {"rows": "queries", "beside": "examples_per_row"},
    "model": {"hidden": "mlp_dim"},
}


@dataclasses.dataclass(frozen=True)
class TaskHead:
    """The head of a fine-tuned model, and how its texts become examples.

    kind: what is predicted, as in `tasks.model.Head`. labels: class names, by class number.
    columns: names of the text columns. options: the task's own settings, such as SQuAD's stride.
    """

    name: str
    kind: str
    outputs: int
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    seq_len: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Description:
    """A checkpoint's place in its run, and how its model was made.

    methods: (name, arguments) of each. data, eval: None if the model was not trained on shards.
    fingerprint: identifies the held-out examples; see `evaluate.fingerprint`.
    init: the run whose weights this run started from. imported: see `hf.read.description`.
    task: the head of a fine-tuned model. scored: the results of its evaluations so far.
    mesh: number of devices along each axis; {} if unknown. planned: number of steps planned in total; None if unknown.
    rows: number of rows in the run's `metrics.jsonl` at this step; None if unknown, or if there is no such file.
    """

    step: int
    stage: Stage
    vocab: Vocab
    earlier_stages: tuple[Stage, ...] = ()
    counters: Counters = dataclasses.field(default_factory=Counters)
    methods: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    data: Data | None = None
    eval: Evaluation | None = None
    fingerprint: str = ""
    init: str = ""
    imported: Mapping[str, Any] | None = None
    task: TaskHead | None = None
    scored: tuple[Mapping[str, Any], ...] = ()
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    planned: int | None = None
    rows: int | None = None
    version: str = __version__
    format: int = FORMAT

    @property
    def program(self) -> Program:
        return self.stage.program

    @property
    def model(self) -> Config:
        return self.stage.program.model

    def to_json(self) -> dict:
        """The content of `about.json`; the vocabulary's word pieces are in vocab.txt, next to it."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts["vocab"], parts["counters"] = self.vocab.to_json(), self.counters.to_json()
        return json.loads(json.dumps(parts, default=dataclasses.asdict))


def read(folder: pathlib.Path) -> Description:
    """Reads the description of a checkpoint folder, and converts older formats.

    Raises BadInput if the format is newer, or if a field is missing or unknown.
    """
    found = json.loads((folder / "about.json").read_text())
    number = found.get("format", 1)
    if number not in range(1, FORMAT + 1):
        raise BadInput(
            f"{folder} has format {number}, written by bert_fast {found.get('version', 'unknown')}; this is "
            f"{__version__}, which reads formats 1 to {FORMAT}: install a newer bert_fast"
        )
    try:
        found = from_format_1(found) if number == 1 else found
        found = from_format_2(found) if number <= 2 else found
        found = from_format_3(found) if number <= 3 else found
        found = from_format_4(found) if number <= 4 else found
        found = from_format_5(found) if number <= 5 else found
        return Description(
            **{field.name: found[field.name] for field in dataclasses.fields(Description)}
            | {
                **found,
                "stage": stage_from_json(found["stage"]),
                "earlier_stages": tuple(map(stage_from_json, found["earlier_stages"])),
                "vocab": vocab.from_json(found["vocab"], folder / "vocab.txt"),
                "counters": Counters.from_json(found["counters"]),
                "methods": tuple((name, arguments) for name, arguments in found["methods"]),
                "data": Data(**found["data"]) if found["data"] else None,
                "eval": Evaluation(**found["eval"]) if found["eval"] else None,
                "task": task_from_json(found["task"]) if found["task"] else None,
                "scored": tuple(found["scored"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise BadInput(
            f"{folder} was written by another version of bert_fast ({found.get('version', 'unknown')}), and its "
            f"description cannot be read ({error}): continue with that version, or export the checkpoint there and "
            "import it here"
        ) from error


def from_format_1(found: dict) -> dict:
    """Converts a description of format 1 to format 2.

    Format 1 did not record whether a method had ended the stage, or how long earlier stages took.
    """
    absent = {"init": "", "imported": None, "task": None, "scored": ()}
    book = {**found["book"], "over": False, "end_seconds": [0.0] * len(found["book"]["ends"])}
    return {**absent, **found, "book": book}


def from_format_2(found: dict) -> dict:
    """Converts a description of format 2 to format 3: only names changed."""
    found = {"counters" if key == "book" else key: value for key, value in found.items()}
    stages = [stage_of_format_2(stage) for stage in (*found["earlier_stages"], found["stage"])]
    arguments = settings.current_keys(dict(found["methods"]))
    found |= {"earlier_stages": stages[:-1], "stage": stages[-1], "methods": list(arguments.items())}
    return found


def from_format_3(found: dict) -> dict:
    """Converts a description of format 3 to format 4: evaluation used the masking of training."""
    evaluation = found["eval"] and settings.evaluated_as_trained(found["data"]) | found["eval"]
    return {**found, "eval": evaluation}


def from_format_4(found: dict) -> dict:
    """Converts a description of format 4 to format 5. Counts and times that format 4 did not have become zero."""
    new, old = Counters().to_json(), found["counters"]
    counters = {**new, **old, "counts": new["counts"] | old["counts"], "times": new["times"] | old["times"]}
    return {**found, "counters": counters, "mesh": {}, "planned": None, "rows": None}


def from_format_5(found: dict) -> dict:
    """Converts a description of format 5 to the current format."""
    return {**found, "counters": {"waited": True} | found["counters"], "format": FORMAT}


def stage_of_format_2(tree: dict) -> dict:
    def current(part: str, fields: dict) -> dict:
        return {RENAMED[part].get(key, key): value for key, value in fields.items()}

    program = current("program", tree["program"])
    program["model"] = current("model", program["model"])
    program["plan"] = [current("span", span) for span in program["plan"]]
    return {**tree, "program": program}


def task_from_json(tree: dict) -> TaskHead:
    return TaskHead(**{**tree, "labels": tuple(tree["labels"]), "columns": tuple(tree["columns"])})


def stage_from_json(tree: dict) -> Stage:
    """The inverse of `stage_to_json`, for a stage that is not a guess."""
    program = dict(tree["program"])
    model: dict[str, Any] = program["model"]
    model = {key: tuple(value) if isinstance(value, list) else value for key, value in model.items()}
    program["model"] = Config(**model)
    program["plan"] = tuple(Span(**span) for span in program["plan"])
    program["frozen_paths"] = tuple(program["frozen_paths"])
    return Stage(**{**tree, "program": Program(**program), "schedule": Schedule(**tree["schedule"])})


def stage_to_json(stage: Stage) -> dict:
    """A stage as JSON. The program of a guess is left out: it is not settled yet."""
    tree = dataclasses.asdict(stage)
    return {**tree, "program": None} if stage.guess else tree
