"""Pictures of plans show what a run does: which layers exist, run and learn, and what a step costs."""

import json

import matplotlib
import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.notebook import pictures
from bert_fast.notebook.pictures import STATES

matplotlib.use("agg")
CONFIG = "bert:size=mini,seq=128,objective=mlm,norm=pre"
COMMON = {"steps": 2_000, "learning_rate.warmup_steps": 20}
ABSENT, SKIPPED, FROZEN, SOME, ALL = range(len(STATES))


def course(columns: int = 50, **changes):
    made = COMMON | {key.replace("__", "."): value for key, value in changes.items()}
    return pictures.course(pictures.settings_of(CONFIG, made), columns)


def test_dense_training_runs_every_layer_on_every_token_at_full_cost():
    found = course()
    assert (found.state_LT == ALL).all()
    assert (found.width_LT == 1).all()
    np.testing.assert_allclose(found.cost_T, 1)
    assert found.flops == found.dense


def test_dropped_tokens_are_in_the_middle_layers():
    found = course(methods="token_drop")
    assert found.state_LT[:, 0].tolist() == [ALL, SOME, SOME, ALL]
    assert found.flops < found.dense


def test_added_layers_are_absent_at_first_and_frozen_layers_do_not_learn():
    found = course(methods="stacking", stacking__variant="mslt")
    assert found.state_LT[:, 0].tolist() == [ALL, ABSENT, ABSENT, ABSENT]
    assert found.state_LT[:, 12].tolist() == [FROZEN, ALL, ABSENT, ABSENT]
    assert found.state_LT[:, -1].tolist() == [ALL] * 4
    assert found.width_LT[3, 0] == 0


def test_search_comes_before_the_training_and_the_ticket_is_narrower():
    found = course(methods="early_bert", early_bert__search=0.25)
    assert found.steps == 2_500
    assert (found.width_LT[:, found.at_T < 500] == 1).all()
    assert (found.width_LT[:, found.at_T >= 500] < 1).all()


def test_skipped_layers_are_shown_and_the_mean_cost_equals_the_cost_of_the_run():
    found = course(400, methods="layer_drop", layer_drop__sampling="systematic")
    assert {SKIPPED, ALL} == set(np.unique(found.state_LT))
    assert found.cost_T.mean() == pytest.approx(found.flops / found.dense, abs=0.02)


def test_share_of_flops_is_relative_to_dense_training_with_as_many_steps():
    whole, half = course(methods="token_drop"), course(methods="token_drop", budget=f"tokens:{1_000 * 256 * 128}")
    assert half.steps == 1_000
    assert half.flops / half.dense == pytest.approx(whole.flops / whole.dense)


def test_picture_has_two_panels_for_each_run_and_says_the_share_of_flops():
    figure = pictures.plans({"dense": (CONFIG, COMMON), "fewer tokens": (CONFIG, COMMON | {"methods": "token_drop"})})
    assert len(figure.axes) == 4
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0] == "dense: 100% of dense FLOPs"
    assert titles[1].startswith("fewer tokens: ")
    figure.canvas.draw()


def test_curves_need_an_evaluation(tmp_path):
    rows = [{"step": step, "split": "valid", "mlm_loss": 5.0, "flops": step, "tokens_padded": step, "seconds": 1.0}
            for step in (1, 2)]  # fmt: skip
    for name, kept in (("done", rows), ("begun", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    figure = pictures.curves({"run": tmp_path / "done"})
    assert [axis.get_xlabel() for axis in figure.axes] == ["tokens", "FLOPs", "seconds of steps"]
    with pytest.raises(BadInput, match="has no evaluation yet: train first"):
        pictures.curves({"run": tmp_path / "begun"})


def test_words_are_escaped_and_dropped_words_are_struck_out():
    text = pictures.marked(["<b>", "word"], [1.0, 2.0], [False, True])
    assert "&lt;b&gt;" in text
    assert text.count("line-through") == 1


def test_page_is_escaped_into_its_frame(tmp_path):
    (tmp_path / "report.html").write_text('<p class="x">loss &lt; 5</p>')
    assert '<iframe srcdoc="&lt;p class=&quot;x&quot;&gt;loss &amp;lt; 5&lt;/p&gt;"' in pictures.page(
        tmp_path / "report.html"
    )
