"""Preparation on a cluster makes the same bytes as `prepare`, for any order in which workers handle the parts."""

import gzip
import json
import os
import pathlib
import random
import re
import subprocess
import sys

import pytest

from bert_fast.data import letters, staging, vocab
from bert_fast.data import prepare as preparation
from bert_fast.data.mixture import open_mixture
from experiments.beam import __main__ as beam
from experiments.beam import documents
from helpers.made_corpus import contents, write_corpus

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "experiments/beam"
OPTIONS = {"valid_fraction": 0.1, "skip_bad": True}
FLAGS = ["--valid_fraction=0.1", "--skip_bad"]
# Runs the command, with files at bucket:// addresses.
COMMAND = (
    "import helpers.stand_in_bucket, sys; from experiments.beam.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def corpus(tmp_path):
    """Files of several kinds. Some are empty, some contain unreadable documents. vocab.txt has nearly all of the
    words."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_corpus(folder)
    (folder / "a.txt").rename(folder / "0.txt")
    (folder / "a.txt").touch()
    (folder / "c.txt.gz").write_bytes(gzip.compress(b"A dog.\n\nBad \xff byte.\n\nA cat.\n\n\xff\n\nA river.\n\n\xff"))
    lines = [json.dumps({"text": f"The dog {'runs ' * count}over."}) for count in range(30)]
    (folder / "d.jsonl").write_text("\n".join(["{", *lines, "not JSON", *lines[:9], "{"]))
    (folder / "e.txt").touch()
    return folder


def gathered(corpus: pathlib.Path, out: pathlib.Path, unit: int) -> pathlib.Path:
    """A folder with the units of a corpus, made in a random order by the pipeline's functions."""
    rng = random.Random(0)
    mixture = open_mixture(f"files:{corpus}/[0-9a-e].*", False)
    content = (corpus / "vocab.txt").read_bytes()
    words = vocab.parse(content, "vocab.txt", False, True)
    chosen = letters.Letters(False, True, "")
    options = ("text", OPTIONS["valid_fraction"], OPTIONS["skip_bad"], unit)
    settings = preparation.settings_of(mixture, chosen, words.fingerprint, *options)
    with staging.claimed(out, settings, mixture.stamps_K()) as folder:
        parts = enumerate(mixture.sources[0].parts)
        blocks = [block for number, part in parts for block in documents.blocks(number, part.name, "text", True)]
        rng.shuffle(blocks)
        plan = documents.plan([block.sizes for block in blocks], unit)
        units = {number: [] for number in range(len(plan.ends_U))}
        for block in blocks:
            for number, part in documents.by_unit(documents.encoded(block, content, False, True), plan):
                units[number].append(part)
        for number, found in units.items():
            rng.shuffle(found)
            documents.write_unit(number, found, plan, OPTIONS["valid_fraction"], folder)
    return folder


@pytest.mark.parametrize("unit", [300, 5000, 10**6])
def test_units_gathered_in_any_order_become_the_same_shards(corpus, tmp_path, monkeypatch, unit):
    source, options = f"files:{corpus}/[0-9a-e].*", {"vocab": corpus / "vocab.txt", "processes": 1, "unit": unit}
    expected = preparation.prepare(source, tmp_path / "expected", **options, **OPTIONS)
    assert expected["skipped_documents"] == 6
    monkeypatch.setattr(documents, "_BLOCK", 1000)
    out = tmp_path / "out"
    units = staging.finished_units(gathered(corpus, out, unit))
    assert len(units) >= len(expected["splits"]["train"]["shards"])
    monkeypatch.setattr(preparation, "_encoded", None)  # nothing is tokenised again
    assert preparation.prepare(source, out, **options, **OPTIONS) == expected
    assert contents(out) == contents(tmp_path / "expected")


@pytest.mark.parametrize("unit", [700, 10**6])
def test_units_equal_those_that_prepare_makes(corpus, tmp_path, monkeypatch, unit):
    monkeypatch.setattr(documents, "_BLOCK", 1000)
    monkeypatch.setattr(preparation, "_finish", lambda *_: pytest.fail("stopped here", pytrace=False))
    source, options = f"files:{corpus}/[0-9a-e].*", {"vocab": corpus / "vocab.txt", "processes": 1, "unit": unit}
    with pytest.raises(pytest.fail.Exception):
        preparation.prepare(source, tmp_path / "expected", **options, **OPTIONS)
    assert contents(gathered(corpus, tmp_path / "out", unit)) == contents(tmp_path / "expected" / staging.NAME)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--source=docs"], "--source=docs: expected files:GLOB, on this machine or in a bucket"),
        (["--source=files:"], "--source=files:: expected files:GLOB"),
        (["--source=files:gs://b/*.txt"], "expected both in a bucket that all workers reach"),
        (["--units=gs://b/units"], "or the source on this machine and no --units"),
        (["--units=units"], "or the source on this machine and no --units"),
        (["--vocab=none.txt"], "--vocab=none.txt is not a file: expected a vocab.txt"),
        (["--valid_fraction=2"], r"--valid_fraction=2\.0: expected a share between 0 and 1"),
        (["--unit=0"], "--unit=0: expected at least 1 character"),
        (["--out={corpus}/b.txt"], "is a file: expected a folder"),
        (["--out={corpus}/done"], "done is already finished: choose another folder"),
        ([], r"apache-beam is not installed: .* pip install -r experiments/beam/requirements.txt"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_pipeline_starts(corpus, tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.setattr(beam.importlib.util, "find_spec", lambda name: None)
    (corpus / "done").mkdir()
    (corpus / "done/manifest.json").write_text("{}")
    base = [f"--source=files:{corpus}/*.txt", f"--vocab={corpus}/vocab.txt", f"--out={tmp_path}/out"]
    assert beam.main([*base, *(flag.format(corpus=corpus) for flag in flags)]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_flag_of_beam_before_the_dashes_is_refused(capsys):
    base = ["--source=files:*", "--vocab=v", "--out=o"]
    assert beam.parse([*base, "--", "--runner=X"]).options == ["--runner=X"]
    with pytest.raises(SystemExit):
        beam.parse([*base, "--runner=X"])
    assert "unrecognized arguments: --runner=X" in capsys.readouterr().err


def test_image_and_environment_have_the_same_version_of_beam():
    (version,) = re.findall(r"^apache-beam==(.+)$", (FOLDER / "requirements.txt").read_text(), re.MULTILINE)
    assert f"_sdk:{version}\n" in (FOLDER / "Dockerfile").read_text()


@pytest.fixture
def environment(tmp_path):
    """The Python of a new environment with the pipeline's requirements."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    python = tmp_path / "environment/bin/python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--retries=1", "--timeout=10", "install", "--quiet"]
    done = subprocess.run([*pip, "-r", FOLDER / "requirements.txt"], capture_output=True, text=True)
    if re.search("connection broken by|Max retries exceeded", done.stderr):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python


@pytest.mark.slow
def test_pipeline_makes_the_same_shards_as_prepare(corpus, tmp_path, environment):
    source, options = f"files:{corpus}/[0-9a-e].*", {"vocab": corpus / "vocab.txt", "processes": 1, "unit": 700}
    expected = preparation.prepare(source, tmp_path / "expected", **options, **OPTIONS)

    def run(*flags: str) -> subprocess.CompletedProcess:
        variables = os.environ | {"BUCKET": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        command = [environment, "-c", COMMAND, f"--vocab={corpus}/vocab.txt", "--unit=700", *flags]
        return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=100)

    refused = run(f"--source={source}", f"--out={tmp_path}/out", "--valid_fraction=0.1")
    assert refused.returncode == 2
    assert "error: " in refused.stderr
    assert "pass --skip_bad" in refused.stderr
    for path in (tmp_path / "out" / staging.NAME).iterdir():
        path.unlink()

    local = run(f"--source={source}", f"--out={tmp_path}/out", *FLAGS, "--", "--runner=DirectRunner")
    assert local.returncode == 0, local.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")

    kept = ["--source=files:bucket://corpus/[0-9a-e].*", "--units=bucket://units", f"--out={tmp_path}/kept", *FLAGS]
    refused = run(*kept[:2], f"--out={tmp_path}/refused")
    assert refused.returncode == 2
    assert "error: bucket://corpus/c.txt.gz: not UTF-8: byte 0xff" in refused.stderr
    cloud = run(*kept)
    assert cloud.returncode == 0, cloud.stderr
    manifest = json.loads((tmp_path / "kept/manifest.json").read_text())
    assert {key for key in expected if manifest[key] != expected[key]} == {"source", "settings"}  # these hold paths

    unknown = run("--source=files:nowhere://*", kept[1], f"--out={tmp_path}/unknown")
    assert unknown.returncode == 2
    assert "error: nowhere://*: Unable to get filesystem" in unknown.stderr
    again = run(*kept[:2], f"--out={tmp_path}/again", *FLAGS)
    assert again.returncode == 2
    assert "--units=bucket://units holds bucket://units/unit-00000" in again.stderr
