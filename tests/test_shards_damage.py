"""Damage in a shards folder is found and reported with a remedy, whichever file and bit it is in."""

import collections
import contextlib
import itertools
import json
import random
import resource
import shutil

import numpy as np
import pytest

from bert_fast import BadInput, commands
from bert_fast.data import batches, masking, sealed, shards
from bert_fast.train import cache, host_memory
from helpers.made_shards import bert, make_small_folder

FLIPS = 60  # bits flipped in each file, one at a time


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_small_folder(tmp_path_factory.mktemp("whole"))


def flip(path, rng):
    """Flips one bit of a file, in place."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) * 8)
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)
    return at


def used(folder, verified=True):
    """Every third training example of a shards folder, read as a run reads it."""
    (shards.verify if verified else shards.read_manifest)(folder)
    vocab = masking.read_vocab(folder)
    rows = batches.training_examples(shards.Split(folder, "train"), vocab, bert(seq_len=16), 0)
    return [rows(0, i) for i in range(0, len(rows), 3)]


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("name", ["manifest.json", "train-lengths.npy", "train-00000-of-00002.array_record"])
def test_a_flipped_bit_is_an_error_with_a_remedy_or_changes_nothing(whole, tmp_path, name, verified):
    folder, rng = shutil.copytree(whole, tmp_path / "shards"), random.Random(name)
    expected, harmless, said = used(whole), 0, []
    for _ in range(FLIPS):
        at = flip(folder / name, rng)
        try:
            found = used(folder, verified)
        except BadInput as error:
            said.append(str(error))
        else:  # nothing reads this bit; it is, for example, padding between records
            harmless += 1
            for one, other in zip(found, expected, strict=True):
                assert all(np.array_equal(one[key], other[key]) for key in other), at
        shutil.copy(whole / name, folder / name)
    assert harmless < FLIPS if not verified and name.endswith("record") else harmless == 0
    assert all(str(folder) in error and "restore" in error for error in said)


def unseal(folder):
    """Rewrites the manifest in the earlier format, which has no seal."""
    manifest = shards.read_manifest(folder)
    manifest["format"] = shards.UNSEALED
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_shards_of_an_earlier_version_are_accepted_and_damage_to_them_gives_no_traceback(whole, tmp_path):
    folder, rng = shutil.copytree(whole, tmp_path / "shards"), random.Random(1)
    unseal(folder)
    before = (folder / "manifest.json").read_bytes()
    assert len(used(folder)) == len(used(whole))
    for _ in range(300):
        flip(folder / "manifest.json", rng)
        with contextlib.suppress(BadInput):
            used(folder)
        (folder / "manifest.json").write_bytes(before)


def test_special_ids_that_differ_from_the_vocabulary_are_refused_even_without_a_seal(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "shards")
    unseal(folder)
    manifest = shards.read_manifest(folder)
    manifest["vocab"]["special_ids"]["[MASK]"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="ids of the special tokens"):
        shards.verify(folder)


def test_a_manifest_that_has_lost_its_seal_is_refused(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "shards")
    content = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(content.replace('"seal"', '"seat"'))
    with pytest.raises(BadInput, match=r"damaged: its content does not match .*prepare again"):
        shards.read_manifest(folder)


def test_the_fingerprint_is_computed_again(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "shards")
    manifest = shards.read_manifest(folder) | {"fingerprint": "0" * 64}
    sealed.write(folder / "manifest.json", manifest)
    with pytest.raises(BadInput, match="fingerprint does not match"):
        shards.read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b"{" + b'"a":{' * 100_000, b"1" * 5000])
def test_a_manifest_that_is_not_a_json_object_is_an_error(whole, tmp_path, content):
    folder = shutil.copytree(whole, tmp_path / "shards")
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"manifest\.json (cannot be read as JSON|is damaged: it holds)"):
        shards.read_manifest(folder)


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_that_appears_during_a_run_is_an_error_with_a_remedy(whole, tmp_path, workers):
    folder = shutil.copytree(whole, tmp_path / "shards")
    vocab = masking.read_vocab(folder)
    rows = batches.training_examples(shards.Split(folder, "train"), vocab, bert(seq_len=16), 0)
    for path in folder.glob("train-*.array_record"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    stream = batches.batches(rows, 8, 0, workers=workers)
    with pytest.raises(BadInput, match=r"array_record is damaged at document .*prepare again"):
        collections.deque(itertools.islice(stream, 40))
    stream.close()


def test_too_many_open_files_are_not_taken_for_damage(whole):
    split = shards.Split(whole, "train")
    assert len(split.lengths_D)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))
    try:
        with pytest.raises(BadInput, match=r"cannot be opened .*Too many open files.*ulimit -n"):
            split[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_commands_that_compute_allow_as_many_open_files_as_the_system_does(monkeypatch):
    asked = []
    monkeypatch.setattr(host_memory, "keep_freed", lambda: None)
    monkeypatch.setattr(cache, "keep_programs", lambda: None)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 20_000))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    commands.begin_computing()
    assert asked == [(20_000, 20_000)]
