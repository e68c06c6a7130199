"""Batches: an example depends only on (seed, epoch, number). Also evaluation batches and bad input."""

import contextlib
import getpass
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bert_fast import BadInput
from bert_fast.data import batches, examples, shards
from bert_fast.data.masking import read_vocab
from helpers.made_shards import ORDINARY, WORDS, bert, unmasked, write_folder


def take(made, count):
    with contextlib.closing(made):
        return list(itertools.islice(made, count))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        assert a[key].dtype == b[key].dtype


@pytest.mark.parametrize("objective", examples.OBJECTIVES)
def test_batches_are_stacked_examples_in_global_order(split, vocab, objective):
    made = batches.training_examples(split, vocab, bert(objective), seed=1)
    fresh = batches.training_examples(shards.Split(split.folder, "train"), vocab, bert(objective), seed=1)
    for b, (after, batch) in enumerate(take(batches.batches(made, 8, start=5), 3)):
        assert after == 5 + 8 * (b + 1)
        for k in reversed(range(8)):  # read in another order
            assert_same(fresh[5 + 8 * b + k], {key: value[k] for key, value in batch.items()})


def test_shapes_and_types_are_as_documented(split, vocab):
    made = batches.training_examples(split, vocab, bert("mlm+nsp"), seed=1)
    ((_, batch),) = take(batches.batches(made, 4, start=0), 1)
    shapes = dict.fromkeys(["ids", "types", "positions", "segments"], (4, 32)) | {"cls": (4,), "next": (4,)}
    shapes |= dict.fromkeys(["slots", "labels", "weights"], (4, 5))
    assert {key: value.shape for key, value in batch.items()} == shapes
    assert all(value.dtype == (np.float32 if key == "weights" else np.int32) for key, value in batch.items())


def test_any_number_of_workers_gives_the_same_batches(split, vocab):
    made = batches.training_examples(split, vocab, bert("mlm+nsp"), seed=1)
    alone = take(batches.batches(made, 8, start=16), 5)
    for workers in (1, 2):
        for (g, batch), (h, other) in zip(
            alone, take(batches.batches(made, 8, start=16, workers=workers, prefetch=2), 5), strict=True
        ):
            assert g == h
            assert_same(batch, other)


def test_parts_of_all_processes_make_up_the_same_batches(split, vocab):
    made = batches.training_examples(split, vocab, bert(), seed=1)
    whole = take(batches.batches(made, 12, start=3), 3)
    parts = [take(batches.batches(made, 12, start=3, process_index=p, process_count=3), 3) for p in range(3)]
    for b, (g, batch) in enumerate(whole):
        assert [part[b][0] for part in parts] == [g] * 3
        assert_same(batch, {key: np.concatenate([part[b][1][key] for part in parts]) for key in batch})


def test_resuming_mid_epoch_equals_never_stopping(split, vocab):
    made = batches.training_examples(split, vocab, bert(), seed=1)
    first = len(made) - 20  # crosses the end of the epoch
    uninterrupted = take(batches.batches(made, 8, start=first), 6)
    assert len(uninterrupted) == 6
    (stopped, _) = uninterrupted[1]
    again = take(batches.batches(made, 8, start=stopped), 4)
    for (g, batch), (h, other) in zip(uninterrupted[2:], again, strict=True):
        assert g == h
        assert_same(batch, other)


def test_epochs_and_seeds_differ_in_order_and_masks(split, vocab):
    one, two = (batches.training_examples(split, vocab, bert(), seed=s) for s in (1, 2))
    n = len(one)
    np.testing.assert_array_equal(unmasked(one(0, 7)), unmasked(one(1, 7)))
    for other in (one(1, 7), two(0, 7)):
        assert not np.array_equal(one(0, 7)["slots"], other["slots"])
    orders = [[batches.shuffled(s, e, k, n) for k in range(n)] for s, e in [(1, 0), (1, 1), (2, 0), (0, 2)]]
    assert len(set(map(tuple, orders))) == 4


@given(seed=st.integers(0, 2**70), epoch=st.integers(0, 2**40), n=st.integers(1, 3000))
@hypothesis_settings(max_examples=30, deadline=None)
def test_every_epoch_holds_every_example_once(seed, epoch, n):
    assert sorted(batches.shuffled(seed, epoch, k, n) for k in range(n)) == list(range(n))


def test_an_epoch_of_many_examples_holds_every_example_once_in_random_order():
    n = 70_001
    order = np.array([batches.shuffled(3, 2, k, n) for k in range(n)])
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    differences = np.histogram(np.diff(order) % n, 64, (0, n))[0]
    assert ((differences - n / 64) ** 2 / (n / 64)).sum() / 63 < 1.7


def prefetch_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")}


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_a_closed_or_failed_stream_leaves_no_thread(split, vocab, how):
    before = prefetch_threads()
    made = batches.training_examples(split, vocab, bert(), seed=1)
    stream = batches.batches(made, 8, start=0)
    next(stream)
    mine = prefetch_threads() - before
    assert mine
    if how == "closed":
        stream.close()
    else:
        made.masking = None
        with pytest.raises(TypeError) as error:  # `error` keeps the objects in its traceback alive
            list(stream)
        assert error
    for thread in mine:
        thread.join(timeout=5)
    assert not mine & prefetch_threads()


def test_process_exits_despite_an_abandoned_stream(folder):
    script = f"""
from bert_fast.data import batches, examples, shards, masking
if __name__ == "__main__":
    settings = examples.ExampleSettings(32, "mlm", 0.15, False, 0.1)
    vocab = masking.read_vocab({str(folder)!r})
    made = batches.training_examples(shards.Split({str(folder)!r}, "train"), vocab, settings, 0)
    stream = batches.batches(made, 4, 0)
    next(stream)
    raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 7


def test_evaluation_examples_are_the_first_of_the_split_with_their_own_masks(folder, vocab):
    valid = shards.Split(folder, "valid")
    found = batches.evaluation_examples(valid, vocab, bert(), seed=1, limit=10)
    again = batches.evaluation_examples(shards.Split(folder, "valid"), vocab, bert(), seed=1, limit=10)
    trained = batches.training_examples(valid, vocab, bert(), seed=1)  # with the same seed
    assert len(found) == 10
    stream = np.concatenate([valid[d].tokens_T for d in range(len(valid))])
    for i in range(10):
        np.testing.assert_array_equal(unmasked(found[i])[1:-1], stream[30 * i : 30 * i + 30])
        assert_same(found[i], again[i])
    assert any(not np.array_equal(found[i]["slots"], trained(0, i)["slots"]) for i in range(3))


@pytest.mark.parametrize("objective", examples.OBJECTIVES)
def test_the_last_evaluation_batch_is_filled_up_with_padding(folder, vocab, objective):
    found = batches.evaluation_examples(shards.Split(folder, "valid"), vocab, bert(objective), seed=1, limit=10)
    made = list(batches.evaluation_batches(found, 4))
    parts = [list(batches.evaluation_batches(found, 4, process_index=p, process_count=2)) for p in range(2)]
    assert [len(batch["ids"]) for batch in made] == [4, 4, 4]
    for b, batch in enumerate(made):
        assert_same(batch, {key: np.concatenate([part[b][key] for part in parts]) for key in batch})
    present = np.concatenate([batch["segments"][:, 0] > 0 for batch in made])
    np.testing.assert_array_equal(present, np.arange(12) < 10)
    last = {key: value[2:] for key, value in made[-1].items()}
    assert (last["ids"] == vocab.pad).all()
    assert not any(value.any() for key, value in last.items() if key != "ids")


def test_a_split_shorter_than_an_example_can_be_evaluated(vocab, tmp_path):
    split = shards.Split(write_folder(tmp_path, {"valid": [[ORDINARY[:9].tolist()]]}), "valid")
    (batch,) = batches.evaluation_batches(batches.evaluation_examples(split, vocab, bert(), seed=1, limit=50), 4)
    assert np.count_nonzero(batch["segments"]) == 11


def test_impossible_settings_are_refused():
    for changes, message in [
        ({"objective": "mlm_pack"}, "unknown objective 'mlm_pack'.*mlm_packed"),
        ({"seq_len": 2}, "seq_len is 2.*at least 3"),
        ({"seq_len": 4, "objective": "mlm+nsp"}, "seq_len is 4.*at least 5"),
        ({"masked_share": 0.0}, "masked_share is 0.0"),
        ({"short_seq_prob": 1.5}, "short_seq_prob is 1.5"),
        ({"slots": 33}, "slots is 33"),
    ]:
        with pytest.raises(BadInput, match=message):
            bert(**changes)


@pytest.mark.parametrize("objective", examples.OBJECTIVES)
def test_the_shortest_examples_have_one_prediction(split, vocab, objective):
    made = batches.training_examples(
        split, vocab, bert(objective, examples.OBJECTIVES[objective].least_seq_len), seed=1
    )
    assert all(made[g]["weights"].sum() == 1 for g in range(50))


def test_splits_with_too_little_text_are_refused(vocab, tmp_path):
    short = [[ORDINARY[:20].tolist()], []]
    folder = write_folder(tmp_path, {"train": short, "valid": [[], []]})
    train, valid = (shards.Split(folder, name) for name in ("train", "valid"))
    for objective in examples.OBJECTIVES:
        with pytest.raises(BadInput, match=r"'valid'.* is empty"):
            batches.training_examples(valid, vocab, bert(objective), seed=1)
    with pytest.raises(BadInput, match="has 20 tokens, but an example of seq_len 32 takes 30"):
        batches.training_examples(train, vocab, bert(), seed=1)
    with pytest.raises(BadInput, match="has 1 document"):
        batches.training_examples(train, vocab, bert("mlm+nsp", 16), seed=1)
    with pytest.raises(BadInput, match="a batch has 64 examples, but an epoch of seq_len 12 has 2"):
        batches.batches(batches.training_examples(train, vocab, bert(seq_len=12), seed=1), 64, start=0)
    with pytest.raises(BadInput, match=r"batch size is 9: expected a multiple of 2"):
        batches.batches(batches.training_examples(train, vocab, bert(seq_len=3), seed=1), 9, start=0, process_count=2)
    with pytest.raises(BadInput, match="seed is -1"):
        batches.training_examples(train, vocab, bert(), seed=-1)
    with pytest.raises(BadInput, match="evaluation examples is 0"):
        batches.evaluation_examples(train, vocab, bert(), seed=1, limit=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_error_about_an_id_beyond_the_vocabulary_names_the_document(vocab, tmp_path, workers):
    documents = [[ORDINARY[:50].tolist()], [[5, len(WORDS), 6] * 10]]
    split = shards.Split(write_folder(tmp_path, {"train": documents}), "train")
    made = batches.training_examples(split, vocab, bert(), seed=1)
    with pytest.raises(BadInput, match=f"document 1 of split 'train'.*token id {len(WORDS)}"):
        take(batches.batches(made, 2, start=0, workers=workers), 5)


def test_a_changed_or_missing_or_incomplete_vocabulary_is_refused(vocab, tmp_path):
    write_folder(tmp_path, {"train": [[[5]]]})
    assert [WORDS[i] for i in vocab.special] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (vocab.pad, vocab.unk, vocab.cls, vocab.sep, vocab.mask) == vocab.special
    assert set(np.flatnonzero(vocab.continues_W)) == {i for i, word in enumerate(WORDS) if word.startswith("##")}
    path = tmp_path / "vocab.txt"
    path.write_text("".join(word + "\n" for word in [*WORDS, "extra"]))
    with pytest.raises(BadInput, match="not the vocabulary that the files next to it were made with"):
        read_vocab(tmp_path)
    path.unlink()
    with pytest.raises(BadInput, match=r"vocab\.txt"):
        read_vocab(tmp_path)
    write_folder(tmp_path, {"train": [[[5]]]}, words=[word for word in WORDS if word != "[SEP]"])
    with pytest.raises(BadInput, match=r"no \[SEP\]"):
        read_vocab(tmp_path)


COUNTING = """
import sys
from bert_fast.data import batches, masking, shards
from helpers.made_shards import bert
folder = sys.argv[1]
rows = batches.training_examples(shards.Split(folder, "train"), masking.read_vocab(folder), bert(seq_len=64), 0)
for number, _ in enumerate(batches.batches(rows, 64, 0, workers=2)):
    print(number, flush=True)
"""


@pytest.mark.skipif(not pathlib.Path("/dev/shm").is_dir(), reason="shared memory is elsewhere")
def test_processes_that_are_killed_together_leave_no_shared_memory(folder):
    def there():
        """Blocks of shared memory, except for the one-page named semaphores that `multiprocessing` leaves behind."""
        blocks = [path for path in pathlib.Path("/dev/shm").iterdir() if not path.name.startswith("sem.")]
        return {path.name for path in blocks if path.owner() == me}

    me, before = getpass.getuser(), there()
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTING, str(folder)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for _ in range(4):
        assert process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = there() - before
    for name in left:
        pathlib.Path("/dev/shm", name).unlink()
    assert not left
