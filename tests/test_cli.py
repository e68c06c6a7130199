"""The commands as a user types them: results, signals, and messages about mistakes."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest

from bert_fast import __version__, commands
from bert_fast.__main__ import main as commands_main
from bert_fast.train.log import read_rows
from helpers.command_line import ROOT, bert_fast
from helpers.small_runs import rows_without_clock
from helpers.tiers import tiers

CONFIG = "--config=configs/bert.py:size=tiny,objective=mlm,debug"


def command(*args) -> list[str]:
    return [sys.executable, "-m", "bert_fast", *map(str, args)]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("text")
    words = "the quick brown fox jumps over a lazy dog while seven wizards vex bold gnomes".split()
    documents = [
        "\n".join(
            " ".join(words[(d * 7 + s * 3 + w * (d % 5 + 1)) % len(words)] for w in range(9)) + "." for s in range(12)
        )
        for d in range(120)
    ]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    return folder


@pytest.fixture(scope="module")
def prepared(text) -> pathlib.Path:
    done = bert_fast(
        "prepare", f"--source=files:{text}/*.txt", f"--out={text}/shards", "--vocab_size=120", "--valid_fraction=0.1"
    )
    assert done.returncode == 0, done.stderr
    return text / "shards"


def pretrain(prepared, workdir, *more) -> list[str]:
    return ["pretrain", CONFIG, f"--workdir={workdir}", f"--config.data.dir={prepared}", *more]


@pytest.fixture(scope="module")
def trained(prepared) -> pathlib.Path:
    done = bert_fast(*pretrain(prepared, prepared.parent / "run"))
    assert done.returncode == 0, done.stderr
    assert "held-out MLM loss" in done.stderr
    return prepared.parent / "run"


def test_evaluate_prints_one_json_line_that_agrees_with_the_run(trained):
    done = bert_fast("evaluate", f"--checkpoint={trained}", "--unigram")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    last = read_rows(trained / "metrics.jsonl")[-1]
    assert last["split"] == "valid"
    for key in ("step", "predictions", "fingerprint"):
        assert result[key] == last[key], key
    assert result["mlm_loss"] == pytest.approx(last["mlm_loss"], rel=1e-6)
    assert 0 < result["unigram_loss"] < 10


def test_fill_mask_gives_words_for_every_mask(trained):
    done = bert_fast("fill-mask", f"--checkpoint={trained}", "--top=3", "the quick [MASK] fox.", "a [MASK] and [MASK]")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "the quick [MASK] fox."
    assert lines[1].count("%") == 3
    assert lines[2:][0] == "a [MASK] and [MASK]"
    assert len(lines) == 5
    assert "[" not in lines[1]


@pytest.mark.parametrize(
    "ending", tiers([(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)], slow=[(signal.SIGTERM, 143)])
)
def test_stopped_run_continues_and_writes_the_same_rows_as_an_unstopped_one(prepared, tmp_path, ending):
    signum, code = ending
    args = [*pretrain(prepared, tmp_path / "run"), "--config.data.workers=1"]
    process = subprocess.Popen(command(*args), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not read_rows(tmp_path / "run/metrics.jsonl") and process.poll() is None:
        time.sleep(0.02)
    stop = os.kill if signum == signal.SIGKILL else os.killpg  # a terminal or a job scheduler signals all processes
    stop(process.pid, signum)
    _, said = process.communicate(timeout=60)  # returns once no worker is left
    assert process.returncode == code, said
    assert "Traceback" not in said
    if signum != signal.SIGKILL:
        assert "-m bert_fast pretrain" in said
    done = subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    subprocess.run(command(*pretrain(prepared, tmp_path / "whole")), cwd=ROOT, check=True)
    assert rows_without_clock(tmp_path / "run") == rows_without_clock(tmp_path / "whole")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pretrian"], "did you mean pretrain"),
        (["pretrain", "--workdir=x"], "--config is missing"),
        (["pretrain", "--config=configs/bert.py"], "--workdir is missing"),
        (["pretrain", "--config=bert", "--workdir="], "--workdir is missing"),
        (
            ["pretrain", "--config=bert", "--workdir=x", "--config.token_drop.keep=0.3"],
            "--config.token_drop.keep has no effect without the method token_drop: add it to --config.methods, or omit",
        ),
        (["prepare", "--source=docs", "--out=LICENSE/shards"], "LICENSE is a file: expected a folder"),
        (["pretrain", "--config=configs/bert.py", "--workdir=x"], "--config.data.dir is missing"),
        (["pretrain", "--config=configs/bret.py", "--workdir=x"], "no config file 'configs/bret.py'. Shipped configs"),
        (["pretrain", "--config=bret", "--workdir=x"], "unknown config 'bret': did you mean bert"),
        (["pretrain", "--config=LICENSE", "--workdir=x"], "unknown config 'LICENSE'"),
        (["pretrain", "--config=./LICENSE", "--workdir=x"], "LICENSE is not a Python file"),
        (["pretrain", "--config=tests/test_cli.py", "--workdir=x"], "does not define get_config(text=None)"),
        (["plan", "--config=glue:task=mrpc"], "this is a fine-tuning config: use it with finetune"),
        (["finetune", "--config=bert", "--checkpoint=x", "--workdir=y"], "this is a pre-training config: use it with"),
        (["prepare", "--source=docs", "--out=LICENSE"], "--out=LICENSE is a file: expected a folder"),
        (["pretrain", "--config", "bret", "--workdir=x"], "unknown config 'bret': did you mean bert"),
        (["plan", "--config=bert", "--compare=bret"], "unknown config 'bret': did you mean bert"),
        (["pretrain", "--config=bert:size=bas", "--workdir=x"], "did you mean base"),
        (
            ["pretrain", "--config=bert", "--config.optimizer=adam8", "--workdir=x"],
            "such as --config.optimizer.name=adam8",
        ),
        (
            ["pretrain", "--config=bert", "--config.model.hidden=8", "--workdir=x"],
            "was renamed to --config.model.mlp_dim",
        ),
        (
            ["plan", "--config=bert", "--compare=bert", "--compare.token_drop.beside=2"],
            "was renamed to --compare.token_drop.examples_per_row",
        ),
        (["pretrain", "--config=configs/bert.py:size=bas", "--workdir=x"], "did you mean base"),
        (["pretrain", "--config=configs/bert.py", "--config.stepss=3", "--workdir=x"], '"steps"'),
        (["pretrain", "--config=configs/bert.py", "--config.steps=1e3", "--workdir=x"], "expected a whole number"),
        (["pretrain", "--config=configs/bert.py", "--workdri=x"], "unknown flag --workdri: did you mean --workdir?"),
        (["pretrain", "--config=bert", "--stps=3"], "unknown flag --stps: did you mean --config.steps"),
        (["pretrain", "--config=bert", "--depth=3"], "unknown flag --depth: did you mean --config.model.depth?"),
        (["pretrain", "--config=bert", "--model.depht=3"], "did you mean --config.model.depth"),
        (["pretrain", "--config=bert", "--confg.seed=3"], "unknown flag --confg.seed: did you mean --config.seed?"),
        (["pretrain", "--config=bert", "--evry=3"], "did you mean --config.checkpoint.every or --config.eval.every?"),
        (["prepare", "--quux=3"], "unknown flag --quux; --help lists the flags"),
        (["evaluate", "--checkpoint=/nowhere"], "no checkpoint in /nowhere"),
        (["fill-mask", "--checkpoint=/nowhere", "[MASK]"], "no checkpoint in /nowhere"),
        (["fill-mask", "--checkpoint=/nowhere"], "no text"),
        (["prepare", "--source=files:/nowhere/*.txt", "--out=/tmp/never"], "/nowhere"),
        (["prepare", "--out=/tmp/never"], "--source is missing"),
        (["pretrain", "--config=configs/bert.py", "--workdir=x", "--config.data.dir=x"], "no manifest.json in x"),
        (["evaluate", "run"], "unexpected argument 'run'"),
    ],
)
def test_mistake_gets_one_clear_line_and_exit_code_2(args, message):
    done = bert_fast(*args)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not pathlib.Path("/tmp/never").exists()


def test_package_runs_with_python_m():
    done = subprocess.run(command("prepare"), cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "--source is missing" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", ["", *commands.NAMES])
def test_help_shows_the_usage_and_an_example(name):
    done = bert_fast(*([name] if name else []), "--help")
    assert done.returncode == 0
    assert "python -m bert_fast" in done.stdout
    if name:
        assert "example:" in done.stdout


def test_text_without_a_mask_and_text_that_is_too_long_are_refused(trained):
    done = bert_fast("fill-mask", f"--checkpoint={trained}", "no mask here")
    assert (done.returncode, "no [MASK]" in done.stderr) == (2, True)
    done = bert_fast("fill-mask", f"--checkpoint={trained}", "[MASK] fox" * 100)
    assert (done.returncode, "shorten it" in done.stderr) == (2, True)


@pytest.mark.filterwarnings("default:layers are dropped from a post-LN model:UserWarning")
def test_warning_is_one_line_without_source_code(monkeypatch):
    def run(args, texts):
        warnings.warn("layers are dropped from a post-LN model", stacklevel=1)
        return 0

    monkeypatch.setattr(commands.known()["evaluate"], "run", run)
    assert bert_fast("evaluate") == (0, "", "warning: layers are dropped from a post-LN model\n")


def test_missing_import_of_a_config_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("from nowhere import bert\n\n\ndef get_config(text=None):\n    return bert\n")
    done = bert_fast("pretrain", f"--config={tmp_path}/mine.py", "--workdir=x")
    assert done.returncode == 2
    assert "the config cannot import nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_type_of_numbers_is_refused(prepared, tmp_path, capsys):
    flags = ["--config=bert:size=tiny,debug", f"--config.data.dir={prepared}", f"--workdir={tmp_path / 'run'}"]
    assert commands_main(["pretrain", *flags, "--config.model.dtype=float16"]) == 2
    assert "model.dtype='float16' is unknown: did you mean bfloat16" in capsys.readouterr().err


def test_workdir_that_is_a_file_is_refused(prepared, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = bert_fast(*pretrain(prepared, tmp_path / "file"))
    assert done.returncode == 2
    assert f"--workdir={tmp_path}/file is a file" in done.stderr


def test_version_is_printed():
    assert bert_fast("--version").stdout == f"bert_fast {__version__}\n"


def test_fill_mask_shows_no_more_words_than_the_vocabulary_has(trained):
    done = bert_fast("fill-mask", f"--checkpoint={trained}", "--top=100000", "a [MASK]")
    assert done.returncode == 0, done.stderr
    assert "None" not in done.stdout
    assert "[" not in done.stdout.splitlines()[1]


@pytest.mark.parametrize(
    "argv",
    [["evaluate", f"--checkpoint={'a' * 300}"], ["report", "a" * 300], ["embed", f"--checkpoint={'a' * 300}", "x"]],
)
def test_a_path_that_the_system_refuses_is_an_error(argv, capsys):
    assert commands_main(argv) == 2
    assert re.search(r"error: a+.*: File name too long: give a shorter path", capsys.readouterr().err)
