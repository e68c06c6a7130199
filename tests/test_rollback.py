"""Going back to a checkpoint: which data is avoided afterwards."""

import pytest

from bert_fast.train import rollback
from bert_fast.train.counters import Counters


@pytest.mark.parametrize(
    ("began", "avoided"),
    [
        (0, [["shuffled", 300, 800]]),
        (50, [["shuffled", 0, 800]]),  # a stage that began at step 50 reads from the start again
    ],
)
def test_data_that_was_read_since_the_checkpoint_is_avoided(began, avoided):
    before, now = Counters(data={"shuffled": 800}, training_began=began), Counters(data={"shuffled": 300})
    rollback.carry(before, 60, now, 40)
    assert now.avoided == avoided
    assert now.counts["wasted_steps"] == 20


def test_data_is_avoided_although_the_checkpoint_is_further_in_it():
    """The checkpoint is from EarlyBERT's search, after which the data begins again."""
    before, now = Counters(data={"shuffled": 200}, training_began=50), Counters(data={"shuffled": 1000})
    rollback.carry(before, 60, now, 40)
    assert now.avoided == [["shuffled", 0, 200]]
