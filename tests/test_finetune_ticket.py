"""Fine-tuning with EarlyBERT's ticket; methods that drop layers or tokens are refused."""

import jax
import numpy as np
import pytest

from bert_fast import BadInput, qkv
from bert_fast.tasks import finetune
from helpers.made_tasks import make_trainer, train, write_glue


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"), ("mrpc",), train=150, dev=40)


@pytest.mark.slow
def test_ticket_is_drawn_after_a_short_search_and_trained_from_the_initial_weights(folder, tmp_path):
    changes = {"batch_size": 8, "widths": 1, "learning_rates": "4e-3", "early_bert__head_ratio": 0.5}
    trainer = make_trainer(tmp_path, folder, recipe="early_bert", early_bert__search=0.2, **changes)
    search, training = trainer.timeline(4e-3)
    # The released trainer.py records the coefficients before an update, so the search is one step shorter.
    assert search.steps == round(0.2 * training.steps) - 1
    # The search has its own schedule, with a peak of 2e-5 over 3 epochs. The training starts its schedule at step 0.
    assert (search.schedule.peak, search.schedule.steps) == (2e-5, 3 * trainer.per_epoch)
    assert (training.schedule.peak, training.schedule.steps) == (4e-3, training.steps)
    assert (search.guess, training.guess) == (False, True)
    run = finetune.FinetuneRun(trainer, 4e-3, 0, tmp_path / "live")
    engine = run.engine
    before = jax.tree.map(np.asarray, engine.whole_params())
    while not engine.stage_is_over():
        assert run.advance()
        assert not run.is_due()
    assert engine.step == search.steps
    learned = np.asarray(engine.whole_params()["task"]["output"]["kernel"])
    assert (learned != before["task"]["output"]["kernel"]).any()
    engine.enter_next_stage()
    slim = engine.stage.program.model
    assert not engine.stage.guess
    assert slim.heads_L == (1, 1)
    assert sum(slim.mlp_dim_L) < 64
    # The kept weights, task head included, are rewound to the start. There are no coefficients, and nothing is frozen.
    state = engine.state
    assert state.frozen == {}
    assert "head_scale" not in state.params["layers"]
    np.testing.assert_array_equal(state.params["task"]["output"]["kernel"], before["task"]["output"]["kernel"])
    np.testing.assert_array_equal(state.params["embed"]["word"], before["embed"]["word"])
    kept, kernels = (qkv.separate(tree["layers"])["query"]["kernel"] for tree in (state.params, before))
    assert any((kept[0, :, 0] == kernels[0, :, head]).all() for head in range(2))
    assert engine.counters.training_began == search.steps
    result = train(trainer, tmp_path / "whole", 4e-3).result
    assert result["steps"] == search.steps + training.steps
    assert [stage["steps"] for stage in result["stages"]] == [search.steps, training.steps]
    assert result["stages"][1]["heads"] == [1, 1]
    assert [row["epoch"] for row in result["curve"]] == [1, 2]
    assert result["flops"] < result["flops_dense"]


def test_losses_of_the_search_are_not_counted_in_the_training(folder, tmp_path):
    trainer = make_trainer(tmp_path, folder, recipe="early_bert", early_bert__search=0.2, widths=1)
    run = finetune.FinetuneRun(trainer, 4e-3, 0, tmp_path / "live")
    search, _ = trainer.timeline(4e-3)
    for _ in range(search.steps):
        run.advance()
    run.engine.settle()
    assert run.engine.counters.since["steps"] == search.steps
    run.advance()
    assert run.engine.step == search.steps + 1
    assert run.engine.counters.since == {}
    run.engine.settle()
    assert run.engine.counters.since["steps"] == 1


@pytest.mark.parametrize("method", ["layer_drop", "token_drop", "stacking"])
def test_layer_drop_token_drop_and_stacking_are_refused(folder, tmp_path, method):
    with pytest.raises(BadInput, match=f"--config.methods={method}"):
        make_trainer(tmp_path, folder, methods=method)
