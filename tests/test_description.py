"""A checkpoint's description is read back as written. A description from another version is converted or refused."""

import dataclasses
import json

import pytest

from bert_fast import BadInput, __version__
from bert_fast.bert import Config
from bert_fast.data import vocab
from bert_fast.encoder import Encoder
from bert_fast.method import Program, Stage
from bert_fast.plan import edit, whole
from bert_fast.schedule import Schedule
from bert_fast.train import description
from bert_fast.train.counters import Counters
from bert_fast.train.description import Description, TaskHead
from bert_fast.train.settings import Data, Evaluation
from helpers import made_checkpoints

WORDS = vocab.parse("\n".join([*vocab.SPECIAL, "word"]).encode(), "vocab.txt", True, False)
MODEL = Config(100, depth=3, heads=(2, 1, 2), mlp_dim=(8, 16, 8), norm="pre")
PLAN = edit(edit(whole(3), 0, 1, frozen=True), 1, 2, queries=8)
PROGRAM = Program(MODEL, PLAN, 8, 2, 16, 3, "mlm", frozen_paths=("embed/",))
STAGE = Stage(
    "s", PROGRAM, 10, Schedule(1e-3, 10), "stage", warm_again=2, skipped=3, ask_every=5, data="restart"
)  # fmt: skip
FIRST = dataclasses.replace(STAGE, name="first", data="continue")
# No field has its default value here, except `format`.
FULL = Description(
    step=17,
    stage=STAGE,
    vocab=WORDS,
    earlier_stages=(FIRST, FIRST),
    counters=Counters(
        ends=[4, 9],
        end_seconds=[0.25, 1 / 3],
        over=True,
        training_began=4,
        data={"mlm/16": 40},
        counts=Counters().counts | {"examples": 3},
        times=Counters().times | {"seconds": 0.1},
        since={"loss": 1e-7},
    ),
    methods=(("stacking", {"variant": "mslt", "warm_again": 0.1}),),
    data=Data("shards", "mlm", 0.2, True, 0.1, 2, random_positions=True),
    eval=Evaluation(5, 8, 16, 4, seed=1, masked_share=0.3, whole_word=True, short_seq_prob=0.2),
    fingerprint="f00",
    init="runs/other",
    imported={"folder": "theirs", "tensors": {"a": "float32"}, "initialised": ["pooler"], "unused_positions": ""},
    task=TaskHead("mrpc", "classes", 2, ("0", "1"), ("#1 String", "#2 String"), 48, {"stride": 128}),
    scored=({"step": 5, "score": 81.25, "train_loss": None},),
    mesh={"data": 8},
    planned=60,
    rows=7,
    version="0.0.1",
)


def written(folder, tree: dict):
    """Writes `tree` as about.json, and the vocabulary, to a folder. Returns the folder."""
    (folder / "vocab.txt").write_bytes(WORDS.content)
    (folder / "about.json").write_text(json.dumps(tree))
    return folder


def test_every_field_of_the_full_example_differs_from_the_plain_one():
    plain = Description(step=0, stage=FIRST, vocab=WORDS)
    for field in dataclasses.fields(Description):
        if field.name not in ("format", "vocab"):
            assert getattr(FULL, field.name) != getattr(plain, field.name), field.name


@pytest.mark.parametrize("whole", [FULL, Description(step=0, stage=FIRST, vocab=WORDS)], ids=["full", "plain"])
def test_description_survives_json(whole, tmp_path):
    found = description.read(written(tmp_path, whole.to_json()))
    assert found == whole
    assert found.vocab.content == WORDS.content
    assert (found.vocab.cased, found.vocab.strip_accents) == (True, False)
    assert found.to_json() == whole.to_json()
    assert found.format == description.FORMAT == 6


def test_new_description_has_the_current_version(tmp_path):
    assert description.read(written(tmp_path, Description(0, FIRST, WORDS).to_json())).version == __version__


def test_stage_survives_json():
    assert description.stage_from_json(json.loads(json.dumps(description.stage_to_json(STAGE)))) == STAGE


def test_program_of_a_guessed_stage_is_not_written():
    tree = description.stage_to_json(dataclasses.replace(STAGE, guess=True))
    assert tree["program"] is None
    assert tree | {"program": 0, "guess": False} == description.stage_to_json(STAGE) | {"program": 0}


def test_newer_format_is_refused_and_the_error_names_the_version_that_wrote_it(tmp_path):
    folder = written(tmp_path, FULL.to_json() | {"format": description.FORMAT + 1, "version": "9.9.9"})
    with pytest.raises(BadInput, match=r"has format 7, written by bert_fast 9\.9\.9; .* install a newer bert_fast"):
        description.read(folder)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((), "'surprise'"),
        (("stage",), "'surprise'"),
        (("stage", "program"), "'surprise'"),
        (("stage", "program", "model"), "'surprise'"),
        (("stage", "schedule"), "'surprise'"),
        (("data",), "'surprise'"),
        (("eval",), "'surprise'"),
        (("task",), "'surprise'"),
        (("counters",), r"kept different counts \(surprise\)"),
    ],
)
def test_unknown_field_is_refused_and_named(place, message, tmp_path):
    tree = FULL.to_json()
    branch = tree
    for key in place:
        branch = branch[key]
    branch["surprise"] = 1
    with pytest.raises(BadInput, match=f"another version of bert_fast.*{message}"):
        description.read(written(tmp_path, tree))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Description) if field.name != "format"])
def test_missing_field_is_refused_and_named(name, tmp_path):
    tree = FULL.to_json()
    del tree[name]
    version = "unknown" if name == "version" else r"0\.0\.1"
    with pytest.raises(BadInput, match=rf"another version of bert_fast \({version}\).*{name}"):
        description.read(written(tmp_path, tree))


def test_vocabulary_that_differs_from_the_description_is_refused(tmp_path):
    folder = written(tmp_path, FULL.to_json())
    (folder / "vocab.txt").write_bytes(WORDS.content + b"more\n")
    with pytest.raises(BadInput, match=r"vocab\.txt .* is not the vocabulary that the files next to it were made with"):
        description.read(folder)


AS_TRAINED = Evaluation(5, 8, 16, 4, seed=1, masked_share=0.2, whole_word=True, short_seq_prob=0.1)
BEFORE = dataclasses.replace(FULL.data, random_positions=False)  # type: ignore[type-var]


LATER = {"mesh": {}, "planned": None, "rows": None}  # fields that format 4 did not have


def without_masks(tree: dict):
    """Removes the fields that formats before 4 did not have."""
    for newer in LATER:
        del tree[newer]
    for newer in ("masked_share", "whole_word", "short_seq_prob"):
        del tree["eval"][newer]
    del tree["data"]["random_positions"]


def test_format_1_is_converted(tmp_path):
    tree = FULL.to_json() | {"methods": [["layer_drop", {"theta": 0.5}]]}
    for newer in ("format", "imported", "task", "scored", "init"):
        del tree[newer]
    tree["book"] = tree.pop("counters")
    for newer in ("over", "end_seconds"):
        del tree["book"][newer]
    for stage in (tree["stage"], *tree["earlier_stages"]):
        del stage["guess"]
    without_masks(tree)
    found = description.read(written(tmp_path, tree))
    absent = {"imported": None, "task": None, "scored": (), "init": ""} | LATER
    counters = dataclasses.replace(FULL.counters, over=False, end_seconds=[0.0, 0.0])
    expected = dataclasses.replace(FULL, counters=counters, methods=(("layer_drop", {"theta": 0.5}),), **absent)
    assert found == dataclasses.replace(expected, eval=AS_TRAINED, data=BEFORE)


def test_runs_of_format_3_are_evaluated_with_the_masks_of_their_training(tmp_path):
    tree = FULL.to_json() | {"format": 3}
    without_masks(tree)
    assert description.read(written(tmp_path, tree)) == dataclasses.replace(FULL, eval=AS_TRAINED, data=BEFORE, **LATER)


def test_format_4_is_converted(tmp_path):
    tree = {key: value for key, value in FULL.to_json().items() if key not in LATER} | {"format": 4}
    assert description.read(written(tmp_path, tree)) == dataclasses.replace(FULL, **LATER)


def test_counters_that_are_new_since_format_4_start_at_their_defaults(tmp_path):
    tree = FULL.to_json() | {"format": 4}
    for newer in ("norms", "limits", "streak", "avoided", "saved_at", "waited"):
        del tree["counters"][newer]
    for newer in ("skipped_steps", "rollbacks", "wasted_steps"):
        tree["counters"]["counts"].pop(newer, None)
    found = description.read(written(tmp_path, tree)).counters
    assert found.counts == Counters().counts | tree["counters"]["counts"]
    assert found.times == Counters().times | tree["counters"]["times"]
    assert dataclasses.replace(found, counts={}, times={}) == dataclasses.replace(FULL.counters, counts={}, times={})


def test_runs_of_format_5_waited_for_each_of_their_checkpoints(tmp_path):
    tree = FULL.to_json() | {"format": 5}
    del tree["counters"]["waited"]
    assert description.read(written(tmp_path, tree)) == FULL


def test_model_asks_for_no_kernel_of_the_machine_that_trained_it(tmp_path):
    program = made_checkpoints.STAGE.program
    for asked, used in (("pallas", "auto"), ("cudnn", "auto"), ("plain", "plain")):
        model = dataclasses.replace(program.model, attention=asked)
        stage = dataclasses.replace(made_checkpoints.STAGE, program=dataclasses.replace(program, model=model))
        about = dataclasses.replace(made_checkpoints.described(1), stage=stage)
        assert Encoder(tmp_path, {}, about).model.attention == used
