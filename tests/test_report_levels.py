"""The report's chart of losses: which loss it opens on, and the level of a unigram model. Names of stages in plans."""

import dataclasses
import json
import shutil

import pytest

from bert_fast.reporting import losses, page, plans, read
from helpers.made_runs import write_study


@pytest.fixture(scope="module")
def study(small_shards, tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("levels") / "mine", small_shards, seeds=(0,), arms=("dense", "all four"))


def test_chart_opens_on_the_held_out_loss_if_it_is_a_line_for_most_runs_of_the_largest_budget(study):
    runs = read.read([study]).runs
    assert losses.splits_of(runs) == ["valid", "train"]

    def only_the_last(run):
        return dataclasses.replace(run, rows=[*run.split("train"), run.split("valid")[-1]])

    largest = losses.budgets_of(runs)[0]
    smaller = [only_the_last(run) if run.budget != largest else run for run in runs]
    assert losses.splits_of(smaller) == ["valid", "train"]
    dots = [only_the_last(run) if run.budget == largest and run.arm == "dense" else run for run in runs]
    assert losses.splits_of([*dots, *(run for run in dots if run.arm == "dense")]) == ["train", "valid"]


def test_level_of_a_unigram_model_is_drawn_if_it_is_known(study, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(study, folder)
    assert 'class="level"' not in page.page_of(read.read([folder]))[0].html()
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"unigram_loss": 5.25}))
    made, _ = page.page_of(read.read([folder]))
    html, text = made.html(), made.markdown("")
    assert html.count('class="level"') == 2 * 3  # two budgets, three axes; only for the held-out loss
    assert html.count("a unigram model 5.250") == 2 * 3
    ends = [about["mlm_loss"] for about in results["budgets"]["tokens:2e4"]["arms"].values()]
    assert f"The arms are {5.25 - max(ends):.3f} to {5.25 - min(ends):.3f} below." in text


def test_names_of_stages_stand_above_each_other_if_they_have_no_room():
    assert plans.stacked([("search", 0), ("1-layers", 300), ("4-layers", 600)]) == [0, 0, 0]
    # The picture is 1000 wide and a character 22, so "1-layers" and a space need 198. A name that would extend past the
    # picture's right edge ends at that edge.
    assert plans.stacked([("1-layers", 0), ("2-layers", 100), ("4-layers", 250)]) == [0, 1, 0]
    assert plans.stacked([("4-layers", 700), ("512-tokens", 980)]) == [0, 1]
    assert plans.place_of("512-tokens", 980) == "right:0"
    assert plans.place_of("2-layers", 100) == "left:10%"
