"""Phases with their own lengths and batch sizes, random positions of short examples, and masks for evaluation."""

import dataclasses

import numpy as np
import pytest

from bert_fast.data import batches, examples
from bert_fast.train import inputs, settings
from bert_fast.train.evaluate import eval_batches, fingerprint
from bert_fast.train.log import read_rows
from helpers.interruption import interrupted
from helpers.made_shards import bert
from helpers.small_runs import make_settings, rows_without_clock, run, small_config

GROWING = {
    "steps": 8,
    "phases": "16@8:0.5,32@4:0.5",
    "data__random_positions": True,
    "data__masked_share": 0.3,
    "log_every": 2,
    "eval__every": 4,
    "checkpoint__every": 3,
}


def test_each_phase_may_have_its_own_batch_size():
    assert settings.phases("16@256:0.5,64:0.5") == ((16, 0.5, 256), (64, 0.5, None))


@pytest.mark.slow
@pytest.mark.parametrize("methods", ["", pytest.param("stacking,token_drop", marks=pytest.mark.slow)])
def test_a_run_with_growing_examples_resumes_exactly(small_shards, tmp_path, methods):
    config = small_config(small_shards, methods=methods, **GROWING)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    summary = run(config, whole)
    assert summary["examples"] == 4 * 8 + 4 * 4
    assert summary["tokens_padded"] == 8 * 8 * 16  # every step has 128 tokens
    interrupted(config, parts, 5, pytest.MonkeyPatch())
    run(config, parts)
    assert rows_without_clock(parts) == rows_without_clock(whole)
    lengths = {row["stage"].split("/")[-1] for row in read_rows(whole / "metrics.jsonl")}
    assert lengths == {"16-tokens", "32-tokens"}


@pytest.mark.parametrize("objective", examples.OBJECTIVES)
def test_random_positions_shift_a_whole_example_and_change_nothing_else(split, vocab, objective):
    plain = bert(objective=objective)
    moved = dataclasses.replace(plain, room=plain.seq_len + 5)
    fixed, free = (batches.training_examples(split, vocab, each, seed=3) for each in (plain, moved))
    offsets = set()
    for i in range(60):
        before, after = fixed(0, i), free(0, i)
        real = before["segments"] > 0
        shift = np.unique((after["positions"] - before["positions"])[real])
        assert len(shift) == 1
        assert not after["positions"][~real].any()
        assert all(np.array_equal(before[key], after[key]) for key in before if key != "positions")
        assert after["positions"].dtype == np.int32
        offsets.add(int(shift[0]))
    assert offsets == set(range(6))


def test_random_positions_have_the_room_of_the_longest_phase(small_shards):
    made = make_settings(small_config(small_shards, **GROWING))
    assert inputs.room(made) == 32
    assert inputs.room(dataclasses.replace(made, data=dataclasses.replace(made.data, random_positions=False))) == 0


def test_evaluation_masks_do_not_depend_on_the_training_masks(small_shards):
    plain, other = (
        make_settings(small_config(small_shards, data__masked_share=share, data__whole_word=whole))
        for share, whole in ((0.15, False), (0.3, True))
    )
    for a, b in zip(eval_batches(plain.data, plain.eval), eval_batches(other.data, other.eval), strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)
    manifest = {"fingerprint": "shards"}
    assert fingerprint(manifest, plain.data, plain.eval) == fingerprint(manifest, other.data, other.eval)
    more = dataclasses.replace(plain.eval, masked_share=0.3)
    assert fingerprint(manifest, plain.data, plain.eval) != fingerprint(manifest, plain.data, more)
