"""After an error, `prepare` continues if the user applies the remedy that the error names."""

import json
import os
import random
import re
import time

import pytest

from bert_fast import BadInput
from bert_fast.data import corpora, shards, staging
from bert_fast.data import prepare as preparation
from bert_fast.data.prepare import prepare
from helpers.made_corpus import WORDS, contents, write_corpus

GOOD = b"The dog sleeps over the river bank.\n\n"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("words")) / "vocab.txt"


@pytest.fixture
def options(words, monkeypatch):
    """Options for small chunks and units, so that some units are finished before an error."""
    monkeypatch.setattr(corpora, "_CHUNK", 100)
    monkeypatch.setattr(preparation, "_LOOKED_AT", 100)
    return {"vocab": words, "processes": 1, "unit": 900}


def units(out):
    return len(staging.finished_units(out / staging.NAME))


def test_prepare_continues_with_skip_bad(tmp_path, options):
    (tmp_path / "a.txt").write_bytes(GOOD * 60 + b"na\xefve\n\n" + GOOD * 30)
    source = f"files:{tmp_path}/a.txt"
    with pytest.raises(BadInput, match="--skip_bad"):
        prepare(source, tmp_path / "out", **options)
    assert units(tmp_path / "out") > 1
    manifest = prepare(source, tmp_path / "out", skip_bad=True, **options)
    assert manifest["skipped_documents"] == 1
    prepare(source, tmp_path / "fresh", skip_bad=True, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_prepare_continues_with_a_corrected_file(tmp_path, options):
    for name in ("a", "c"):
        (tmp_path / f"{name}.txt").write_bytes(GOOD * 60)
    (tmp_path / "b.txt").write_bytes(GOOD * 60 + b"na\xefve\n\n" + GOOD * 30)
    source = f"files:{tmp_path}/?.txt"
    with pytest.raises(BadInput, match=r"b\.txt: not UTF-8"):
        prepare(source, tmp_path / "out", **options)
    done = units(tmp_path / "out")
    (tmp_path / "b.txt").write_bytes(GOOD * 60 + "naïve and more\n\n".encode() + GOOD * 30)
    prepare(source, tmp_path / "out", **options)
    prepare(source, tmp_path / "fresh", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert done > 3


@pytest.mark.parametrize("name", ["a", "b"])
def test_text_that_was_read_before_must_be_the_same(tmp_path, options, name):
    """Two files: the first was read to its end, the second only in part."""
    (tmp_path / "a.txt").write_bytes(GOOD * 60)
    (tmp_path / "b.txt").write_bytes(GOOD * 60 + b"na\xefve\n\n")
    source = f"files:{tmp_path}/?.txt"
    with pytest.raises(BadInput, match="not UTF-8"):
        prepare(source, tmp_path / "out", **options)
    content = (tmp_path / f"{name}.txt").read_bytes()
    (tmp_path / f"{name}.txt").write_bytes(content.replace(b"dog", b"cat", 1).replace(b"\xef", b"i"))
    with pytest.raises(BadInput, match=rf"{name}\.txt.*delete the folder"):
        prepare(source, tmp_path / "out", **options)


def test_a_file_is_refused_if_text_that_was_read_is_gone(tmp_path, options):
    (tmp_path / "a.txt").write_bytes(GOOD * 60 + b"na\xefve\n\n")
    with pytest.raises(BadInput, match="not UTF-8"):
        prepare(f"files:{tmp_path}/a.txt", tmp_path / "out", **options)
    (tmp_path / "a.txt").write_bytes(GOOD * 3)
    with pytest.raises(BadInput, match=r"a\.txt has changed: its first \d+ documents"):
        prepare(f"files:{tmp_path}/a.txt", tmp_path / "out", **options)


@pytest.mark.parametrize("trained", [False, True])
def test_prepare_continues_with_another_text_key(tmp_path, options, trained):
    rng = random.Random(0)
    lines = [json.dumps({"title": f"title{i}", "text": " ".join(rng.choices(WORDS, k=8))}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    if trained:
        options |= {"vocab": None, "vocab_size": 120}
    source = f"files:{tmp_path}/a.jsonl"
    with pytest.raises(BadInput, match="--text_key"):
        prepare(source, tmp_path / "out", text_key="body", **options)
    manifest = prepare(source, tmp_path / "out", text_key="text", **options)
    assert manifest["settings"]["text_key"] == "text"
    assert sum(split["unknown"] for split in manifest["splits"].values()) == 0


def test_a_vocabulary_that_was_trained_on_another_key_is_trained_again(tmp_path, monkeypatch, options):
    lines = [json.dumps({"title": "zebra", "text": "the dog"}) for _ in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options |= {"vocab": None, "vocab_size": 100}
    monkeypatch.setattr(staging.Unit, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(f"files:{tmp_path}/a.jsonl", tmp_path / "out", text_key="title", **options)
    monkeypatch.undo()
    assert "zebra" in (tmp_path / "out/vocab.txt").read_text()
    prepare(f"files:{tmp_path}/a.jsonl", tmp_path / "out", text_key="text", **options)
    assert "zebra" not in (tmp_path / "out/vocab.txt").read_text()


def test_another_text_key_is_refused_after_some_text_was_read(tmp_path, options):
    lines = [json.dumps({"title": "a cat", "text": "the dog runs over the river bank"}) for _ in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{"]))
    with pytest.raises(BadInput, match="not JSON"):
        prepare(f"files:{tmp_path}/a.jsonl", tmp_path / "out", **options)
    with pytest.raises(BadInput, match="has changed: its first"):
        prepare(f"files:{tmp_path}/a.jsonl", tmp_path / "out", text_key="title", skip_bad=True, **options)


def test_an_edit_without_a_change_of_size_is_noticed(tmp_path, options, capsys):
    (tmp_path / "a.txt").write_bytes(GOOD * 60)
    source = f"files:{tmp_path}/a.txt"
    manifest = prepare(source, tmp_path / "out", **options)
    before = os.stat(tmp_path / "a.txt")
    time.sleep(0.02)
    (tmp_path / "a.txt").write_bytes(GOOD * 59 + GOOD.replace(b"dog", b"cat"))
    os.utime(tmp_path / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` of another file would do
    with pytest.raises(BadInput, match=r"is not the text that .*out was made from: delete the folder"):
        prepare(source, tmp_path / "out", **options)
    (tmp_path / "a.txt").write_bytes(GOOD * 60)
    capsys.readouterr()
    assert prepare(source, tmp_path / "out", **options) == manifest  # only the file's time has changed
    assert re.search("comparing the text .*already finished", capsys.readouterr().out, re.DOTALL)


def test_damage_to_unfinished_work_gives_an_error_with_a_remedy_or_changes_nothing(tmp_path, options):
    (tmp_path / "a.txt").write_bytes(GOOD * 60 + b"na\xefve\n\n")
    source, out = f"files:{tmp_path}/a.txt", tmp_path / "out"
    with pytest.raises(BadInput, match="not UTF-8"):
        prepare(source, out, **options)
    expected = contents_of(source, tmp_path / "expected", options)
    rng = random.Random(0)
    there = {path: path.read_bytes() for path in [*out.rglob("*")] if path.is_file()}
    names = [path for path in there if there[path] and path.name not in ("tokenizer.json", "vocab.txt")]
    said = []
    for _ in range(60):
        path = rng.choice(names)
        content = bytearray(there[path])
        at = rng.randrange(8 * len(content))
        content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)
        try:
            prepare(source, out, skip_bad=True, **options)
            shards.verify(out)
        except BadInput as error:
            said.append(str(error))
        else:
            assert contents(out) == expected, (path, at)
        for old in [*out.rglob("*")]:
            if old.is_file():
                old.unlink()
        (out / staging.NAME).mkdir(exist_ok=True)
        for old, content in there.items():
            old.write_bytes(content)
    assert len(said) > 30
    assert all(re.search("delete|restore|prepare again", error) for error in said)


def contents_of(source, out, options):
    prepare(source, out, skip_bad=True, **options)
    return contents(out)


def test_vocabulary_is_trained_again_if_the_text_changes_before_anything_is_finished(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(GOOD * 50)
    source, train = f"files:{tmp_path}/a.txt", preparation._vocabulary

    def stopped(*given):
        train(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "_vocabulary", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", vocab_size=100, processes=1)
    monkeypatch.undo()
    assert "ü" not in (tmp_path / "out/vocab.txt").read_text()
    (tmp_path / "a.txt").write_text("Ein Hund schläft über dem Fluss.\n\n" * 50)
    prepare(source, tmp_path / "out", vocab_size=100, processes=1)
    assert "ü" in (tmp_path / "out/vocab.txt").read_text()


def test_last_file_that_was_read_in_part_must_still_be_there(tmp_path, options):
    (tmp_path / "a.txt").write_bytes(GOOD * 60)
    (tmp_path / "b.txt").write_bytes(GOOD * 60 + b"na\xefve\n\n")
    source = f"files:{tmp_path}/?.txt"
    with pytest.raises(BadInput, match="not UTF-8"):
        prepare(source, tmp_path / "out", **options)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(BadInput, match=r"has changed: its first .* documents, which were read before"):
        prepare(source, tmp_path / "out", **options)
