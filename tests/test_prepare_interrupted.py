"""Interruptions of `prepare`: kills, signals, full disks and dead workers. A second call of `prepare` continues."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from bert_fast import BadInput
from bert_fast.data import files, staging, vocab, workers
from bert_fast.data.prepare import prepare
from experiments.fault_types.processes import workers_of
from helpers.made_corpus import UNIT, contents, run, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shards"
    return out, run(corpus, out)


class Killed(BaseException):
    """Simulates a SIGKILL: no code catches this exception."""


def test_bytes_do_not_depend_on_where_a_run_was_cut_off(corpus, finished, tmp_path, monkeypatch):
    """Every important file appears by a rename, so the run is cut off before and after each rename."""
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


# Processes that a shell starts in the background ignore SIGINT. These tests may run in such a process.
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
    wait_until(lambda: len(workers_of(process.pid)) == 2)
    pids = workers_of(process.pid)
    wait_until(lambda: min(map(written_by, pids)) > 50_000)
    return process, pids


@pytest.mark.skipif(not pathlib.Path("/proc/self/io").exists(), reason="needs /proc/PID/io")
@pytest.mark.parametrize("in_a_write", [False, True])
def test_killed_worker_ends_prepare_and_a_second_call_continues(corpus, large_corpus, tmp_path, in_a_write):
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


def test_unfinished_folder_refuses_other_settings_and_a_second_writer(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(staging.Unit, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(BadInput, match="cased: False there, True now"):
        run(corpus, tmp_path / "out", cased=True)
    settings = {"cased": False, "strip_accents": False}
    with staging.claimed(tmp_path / "new", settings, []), pytest.raises(BadInput, match="another prepare is writing"):
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
