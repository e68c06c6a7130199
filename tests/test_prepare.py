"""From text to shards: no sentence is lost; processes and interruptions do not change the bytes."""

import errno
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.data import document_tokenizer, files, shards, staging, vocab, workers
from bert_fast.data.prepare import prepare

UNIT = 4000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = [
        "the",
        "a",
        "dog",
        "cat",
        "river",
        "bank",
        "sleeps",
        "runs",
        "over",
        "under",
        "quick",
        "lazy",
        "brown",
        "fox",
        "day",
        "night",
    ]
    for name in ("a", "b"):
        documents = [
            "\n".join(
                " ".join(rng.choices(words, k=8)).capitalize() + ". And " + rng.choice(words) + "."
                for _ in range(rng.randint(1, 6))
            )
            for _ in range(60)
        ]
        (folder / f"{name}.txt").write_text("\n\n".join(documents))
    (folder / "vocab.txt").write_text("\n".join([*vocab.SPECIAL, *words, "and", ".", "##s"]) + "\n")
    return folder


def run(corpus, out, **options):
    options = {"vocab": corpus / "vocab.txt", "valid_fraction": 0.1, "processes": 1, "unit": UNIT} | options
    return prepare(f"files:{corpus}/*.txt".replace("*", "[ab]"), out, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shards"
    return out, run(corpus, out)


def test_every_sentence_is_in_the_shards(corpus, finished):
    out, manifest = finished
    assert shards.verify(out) == manifest
    words = vocab.load(out / "vocab.txt")
    texts = [text for name in "ab" for text in (corpus / f"{name}.txt").read_text().split("\n\n")]
    expected = {tuple(words.tokenizer.encode(text).ids) for text in texts}
    found = []
    for name in shards.SPLITS:
        split = shards.Split(out, name)
        assert len(split) == manifest["splits"][name]["documents"] > 0
        assert [len(split[i].tokens_T) for i in range(len(split))] == split.lengths_D.tolist()
        found += [split[i] for i in range(len(split))]
    assert {tuple(document.tokens_T.tolist()) for document in found} == expected
    assert len(found) == len(texts)
    and_ = words.tokenizer.token_to_id("and")
    assert all(document.tokens_T[start] == and_ for document in found for start in document.starts_N[1::2])
    assert sum(split["raw_bytes"] for split in manifest["splits"].values()) == sum(len(text) for text in texts)
    assert sum(split["unknown"] for split in manifest["splits"].values()) == 0


def test_bytes_do_not_depend_on_the_number_of_processes(corpus, finished, tmp_path):
    run(corpus, tmp_path / "out", processes=2)
    assert contents(tmp_path / "out") == contents(finished[0])


class Killed(BaseException):
    """Simulates a SIGKILL: no code catches this exception."""


def test_bytes_do_not_depend_on_where_a_run_was_cut_off(corpus, finished, tmp_path, monkeypatch):
    """Every file that matters appears by a rename, so the run is cut off before and after each rename."""
    rename = pathlib.Path.replace
    for when in ("before", "after"):
        for survived in range(200):
            calls = 0

            def replace(path, target, survived=survived, when=when):
                nonlocal calls
                calls += 1
                if calls > survived and when == "before":
                    raise Killed
                rename(path, target)
                if calls > survived:
                    raise Killed

            out = tmp_path / f"{when}{survived}"
            monkeypatch.setattr(pathlib.Path, "replace", replace)
            try:
                run(corpus, out)
                break
            except Killed:
                monkeypatch.setattr(pathlib.Path, "replace", rename)
                run(corpus, out)
                assert contents(out) == contents(finished[0]), f"cut off {when} rename {survived}"
        assert survived > 20
        monkeypatch.setattr(pathlib.Path, "replace", rename)


def test_killed_run_leaves_no_process_and_continues_to_the_same_bytes(corpus, finished, tmp_path):
    out = tmp_path / "out"
    call = (
        f"prepare('files:{corpus}/[ab].txt', {str(out)!r}, vocab='{corpus}/vocab.txt', valid_fraction=0.1, unit={UNIT}"
    )
    slowly = "import time; from bert_fast.data import staging as u; w = u.Unit.write; "
    slowly += "u.Unit.write = lambda *a, **k: (time.sleep(0.2), w(*a, **k))[1]; "
    code = slowly + f"from bert_fast.data.prepare import prepare; {call}, processes=2)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((out / ".unfinished").glob("unit-*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [int(child) for child in children.read_text().split()] if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    assert len(list((out / ".unfinished").glob("unit-*.json"))) >= 2
    written = {path: path.stat().st_mtime_ns for path in (out / ".unfinished").glob("unit-0000[01].json")}
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)

    begun = []
    original = staging.Unit.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            staging.Unit,
            "write",
            lambda self, folder, number, **state: (begun.append(number), original(self, folder, number, **state))[1],
        )
        run(corpus, out)
    assert min(begun) == len(written)
    assert contents(out) == contents(finished[0])


def workers_of(process):
    """Ids of a process's spawned workers."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]


def written_by(pid):
    """Bytes that a process has written so far."""
    return int(re.search(r"wchar: (\d+)", pathlib.Path(f"/proc/{pid}/io").read_text())[1])


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def large_corpus(corpus, tmp_path_factory):
    """Text for a few seconds of work, more than the queues of two workers hold at once."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "a.txt").write_text("\n\n".join([(corpus / "a.txt").read_text().replace("\n\n", "\n")] * 900))
    return folder


# Processes that a shell starts in the background ignore SIGINT. These tests may be such a process.
WITH_INTERRUPT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def start_large(corpus, large_corpus, out):
    """(process, ids of its two workers) of a running `prepare`, after both workers have returned some results."""
    args = [f"--source=files:{large_corpus}/a.txt", f"--out={out}", f"--vocab={corpus}/vocab.txt", "--processes=2"]
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_INTERRUPT, "-m", "bert_fast", "prepare", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: len(workers_of(process)) == 2)
    pids = workers_of(process)
    wait_until(lambda: min(map(written_by, pids)) > 50_000)
    return process, pids


@pytest.mark.skipif(not pathlib.Path("/proc/self/io").exists(), reason="needs /proc/PID/io")
@pytest.mark.parametrize("in_a_write", [False, True])
def test_killed_worker_ends_prepare_and_the_same_command_continues(corpus, large_corpus, tmp_path, in_a_write):
    process, pids = start_large(corpus, large_corpus, tmp_path / "out")
    if in_a_write:  # a stopped parent reads nothing, so its workers block while writing a result
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
    os.kill(pids[0], signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    try:
        said, _ = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        for pid in (process.pid, *pids[1:]):
            os.kill(pid, signal.SIGKILL)
        pytest.fail("prepare hangs")
    assert process.returncode == 2
    assert re.search(r"error: a worker process was killed by SIGKILL, perhaps by .* out-of-memory killer", said)
    assert re.search(r"same command again to continue, with fewer processes .*--processes=2", said)
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)
    manifest = prepare(f"files:{large_corpus}/a.txt", tmp_path / "out", vocab=corpus / "vocab.txt", processes=2)
    assert sum(split["documents"] for split in manifest["splits"].values()) == 900


@pytest.mark.skipif(not pathlib.Path("/proc/self/io").exists(), reason="needs /proc/PID/io")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_sigint_and_sigterm_end_prepare_and_its_workers(corpus, large_corpus, tmp_path, signum, code):
    process, pids = start_large(corpus, large_corpus, tmp_path / "out")
    process.send_signal(signum)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in said
    wait_until(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids), 10)


def test_an_exception_in_a_worker_is_not_mistaken_for_its_death():
    with workers.Pool(1) as pool:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            pool.submit(os.stat, "/nowhere").result()
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
        with pytest.raises(BadInput, match="ended with exit code 3"):
            pool.submit(os._exit, 3).result()


def test_finished_folder_is_left_alone_and_other_settings_are_refused(corpus, finished, tmp_path, capsys):
    out, manifest = finished
    before = contents(out)
    assert run(corpus, out) == manifest
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"(?s)valid_fraction: 0\.1 there, 0\.2 now.*another --out"):
        run(corpus, out, valid_fraction=0.2)
    assert contents(out) == before
    (tmp_path / "letter.doc").write_text("mine")
    with pytest.raises(BadInput, match=r"holds letter\.doc: expected a new or empty folder"):
        run(corpus, tmp_path)


def test_unfinished_folder_refuses_other_settings_and_a_second_writer(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(staging.Unit, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(BadInput, match="cased: False there, True now"):
        run(corpus, tmp_path / "out", cased=True)
    with staging.claimed(tmp_path / "new", {}), pytest.raises(BadInput, match="another prepare is writing"):
        run(corpus, tmp_path / "new")
    run(corpus, tmp_path / "out")


def test_trained_vocabulary_survives_an_interruption(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(staging.Unit, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(corpus, out, vocab=None, vocab_size=120)
    monkeypatch.undo()
    before = (out / "vocab.txt").read_bytes()
    monkeypatch.setattr(vocab, "train", lambda *_: pytest.fail("trained again"))
    manifest = run(corpus, out, vocab=None, vocab_size=120)
    assert (out / "vocab.txt").read_bytes() == before
    assert manifest["vocab"]["size"] == len(before.splitlines()) <= 120
    assert manifest["vocab"]["special_ids"] == {token: i for i, token in enumerate(vocab.SPECIAL)}


def test_a_document_stays_in_its_split_when_the_corpus_grows(corpus, tmp_path):
    def held_out(out):
        split = shards.Split(out, "valid")
        return {split[i].tokens_T.tobytes() for i in range(len(split))}

    for name in ("a", "b", "[ab]"):
        prepare(
            f"files:{corpus}/{name}.txt", tmp_path / name, vocab=corpus / "vocab.txt", valid_fraction=0.1, processes=1
        )
    assert held_out(tmp_path / "a") | held_out(tmp_path / "b") == held_out(tmp_path / "[ab]")


def test_tiny_corpus_holds_out_one_document_and_a_single_document_is_refused(corpus, tmp_path):
    (tmp_path / "two.txt").write_text("The dog sleeps.\n\nThe cat runs.\n")
    manifest = prepare(f"files:{tmp_path}/two.txt", tmp_path / "two", vocab=corpus / "vocab.txt", processes=1)
    assert [manifest["splits"][split]["documents"] for split in shards.SPLITS] == [1, 1]
    (tmp_path / "one.txt").write_text("The dog sleeps.\nThe cat runs.\n")
    with pytest.raises(BadInput, match=r"too few documents.*blank line"):
        prepare(f"files:{tmp_path}/one.txt", tmp_path / "one", vocab=corpus / "vocab.txt", processes=1)
    with open(tmp_path / "one.txt", "a") as more:
        more.write("\nThe cat runs.\n")
    prepare(f"files:{tmp_path}/one.txt", tmp_path / "one", vocab=corpus / "vocab.txt", processes=1)


def test_long_document_is_split_into_records_that_begin_at_sentences(corpus, finished, monkeypatch):
    monkeypatch.setattr(document_tokenizer, "MAX_TOKENS", 20)
    encoder = document_tokenizer.DocumentTokenizer(vocab.load(corpus / "vocab.txt"))
    (document,) = encoder(["The dog sleeps. " * 30 + "The dog " * 25 + "."])
    found = [shards.decode(record, encoder.dtype) for record in document.records]
    assert max(document.lengths) <= 20
    assert all(record.starts_N[0] == 0 for record in found)
    whole = np.concatenate([record.tokens_T for record in found])
    assert len(whole) == sum(document.lengths) == 30 * 4 + 51
    assert all(record.starts_N.tolist() == [0, 4, 8, 12, 16] for record in found[:6])


def test_table_of_words_gives_the_same_ids_as_the_tokenizer(tmp_path):
    characters = [chr(code) for code in range(32, 127)] + list("  aaeeost##") + ["[MASK]", "é", "\t", "中", "\x00"]
    rng = random.Random(0)
    sentences = ["".join(rng.choices(characters, k=rng.randint(1, 60))) for _ in range(3000)] + ["x" * 200]
    (tmp_path / "vocab.txt").write_bytes(vocab.train([chr(code) * 2 for code in range(33, 127)] + sentences, 400))
    for options in ({}, {"cased": True}, {"strip_accents": False}):
        words = vocab.load(tmp_path / "vocab.txt", **options)
        encoder = document_tokenizer.DocumentTokenizer(words)
        expected = [encoding.ids for encoding in words.tokenizer.encode_batch(sentences, add_special_tokens=False)]
        for sentence, ids in zip(sentences, expected, strict=True):
            if document_tokenizer._is_plain(sentence):
                assert encoder._plain(sentence) == ids, sentence
        assert sum(map(document_tokenizer._is_plain, sentences)) > 200


def test_sentences_end_where_they_should():
    text = 'Mr. A. Smith said "Stop." Then he left (e.g. By car). It cost 3.5 dollars! 他来了。她走了。\nNew line'
    assert document_tokenizer.sentences_of(text) == [
        'Mr. A. Smith said "Stop."',
        "Then he left (e.g. By car).",
        "It cost 3.5 dollars!",
        "他来了。",
        "她走了。",
        "New line",
    ]


def test_unknown_tokens_are_counted_and_warned_about(corpus, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("The dog sleeps.\n\nThe жук dog.\n")
    manifest = prepare(f"files:{tmp_path}/a.txt", tmp_path / "out", vocab=corpus / "vocab.txt", processes=1)
    assert sum(split["unknown"] for split in manifest["splits"].values()) == 1
    assert "WARNING: 12.5%" in capsys.readouterr().out


def test_bad_documents_are_skipped_and_counted_once_despite_an_interruption(corpus, tmp_path, monkeypatch):
    good = b"The dog sleeps over the river bank.\n\n"
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes((good * 30 + b"na\xefve\n\n") * 2)
    source = f"files:{tmp_path}/*.txt"
    options = {"vocab": corpus / "vocab.txt", "processes": 1, "unit": 900}
    with pytest.raises(BadInput, match="not UTF-8"):
        prepare(source, tmp_path / "strict", **options)
    write, count = staging.Unit.write, 0

    def interrupted(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return write(*args, **kwargs)

    monkeypatch.setattr(staging.Unit, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", skip_bad=True, **options)
    assert prepare(source, tmp_path / "out", skip_bad=True, **options)["skipped_documents"] == 4


def test_full_disk_is_reported_and_the_folder_can_be_continued(corpus, finished, tmp_path, monkeypatch):
    class FullWriter:
        def __init__(self, *_):
            pass

        def write(self, _):
            pass

        def close(self):  # as ArrayRecordWriter does on a full disk
            raise RuntimeError("write() failed: No space left on device; writing x; at byte 262144")

    monkeypatch.setattr(staging, "ArrayRecordWriter", FullWriter)
    with pytest.raises(BadInput, match=r"no space left for .*run the same command again"):
        run(corpus, tmp_path / "out")
    monkeypatch.undo()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(BadInput, match="no space left"):
        run(corpus, tmp_path / "out")
    monkeypatch.undo()
    run(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(finished[0])


def test_nonsensical_settings_are_refused(corpus, tmp_path):
    for options, complaint in [
        ({"valid_fraction": 0.0}, "--valid_fraction=0.0"),
        ({"processes": 0}, "--processes=0"),
        ({"vocab": None, "vocab_size": 5}, "--vocab_size=5"),
    ]:
        with pytest.raises(BadInput, match=complaint):
            run(corpus, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
