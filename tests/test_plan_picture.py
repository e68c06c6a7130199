"""`plan --picture`: what each layer will do, as a page without dependencies, or as PNG and SVG."""

import re

import pytest

from helpers.command_line import bert_fast

CONFIG = "bert:size=mini,seq=128,objective=mlm,norm=pre"


def plan(*flags):
    return bert_fast("plan", f"--config={CONFIG}", *flags)


def test_page_shows_the_plan_of_a_run_that_has_not_begun(tmp_path):
    path = tmp_path / "new" / "plan.html"
    done = plan("--config.methods=mask_later", f"--compare={CONFIG}", f"--picture={path}")
    assert done.returncode == 0, done.stderr
    assert f"wrote {path}" in done.stderr
    html = path.read_text()
    assert "<h1>mask_later and dense</h1>" in html
    pictures = re.findall(r'role="img" aria-label="Plan of ([^"]*)"', html)
    assert [about.split(".")[0] for about in pictures] == ["mask_later", "dense"]
    assert "layers 1 to 4 run in 100%, learn, 128 of 128 tokens" in pictures[1]
    assert re.search(r"layers 1 to 2 run in 100%, learn, 1\d\d of 128 tokens", pictures[0])
    assert "are guessed" not in html


def test_page_says_that_widths_which_a_search_decides_are_guessed(tmp_path):
    assert plan("--config.methods=early_bert", f"--picture={tmp_path}/plan.html").returncode == 0
    assert "Widths are guessed where a search in the run will decide them." in (tmp_path / "plan.html").read_text()


def test_two_runs_of_the_same_methods_are_named_after_their_flags(tmp_path):
    assert plan(f"--compare={CONFIG}", "--compare.steps=500", f"--picture={tmp_path}/plan.html").returncode == 0
    assert "<h1>dense (--config) and dense (--compare)</h1>" in (tmp_path / "plan.html").read_text()


@pytest.mark.parametrize(("name", "begins"), [("plan.png", b"\x89PNG"), ("plan.svg", b"<?xml")])
def test_matplotlib_draws_the_other_formats(name, begins, tmp_path):
    pytest.importorskip("matplotlib")
    assert plan("--config.methods=stacking", f"--picture={tmp_path / name}").returncode == 0
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_pictures_that_cannot_be_drawn_are_refused(tmp_path):
    assert "expected a file that ends in .html, .png, .svg" in plan(f"--picture={tmp_path}/plan.gif").stderr
    assert "cannot be written" in plan("--picture=/proc/nowhere/plan.html").stderr
    done = plan("--picture=plan.html", "--search", "--topology=v5e:1x1")
    assert (done.returncode, "drop one of these flags" in done.stderr) == (2, True)
