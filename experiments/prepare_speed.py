"""Memory and throughput of prepare. Throughput is compared with `tokenizers` alone, on one core and on all cores.

    python -m experiments.prepare_speed [--corpus='files:*.txt.gz'] [--vocab=vocab.txt] [--megabytes=100] [--pairs=5]

By default, text and vocabulary come from $BERT_FAST_DATA. If that is not set, the text is the documentation installed
with Python, and a vocabulary is trained on it. Runs of the different kinds alternate, and the page has medians and
ranges. On one core, processor time is measured, because other programs disturb it less. Writes
experiments/prepare_speed.md. Takes about ten minutes on two cores.
"""

import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from absl import app, flags

from bert_fast.data import corpora, vocab
from bert_fast.data.prepare import prepare
from experiments.common import extremes, ratios, with_range, write_page

_CORPUS = flags.DEFINE_string("corpus", None, "text source, in the form that `prepare --source` takes")
_VOCAB = flags.DEFINE_string("vocab", None, "a vocab.txt; default: one trained on the corpus")
_MEGABYTES = flags.DEFINE_integer("megabytes", 100, "megabytes of text in each timed run")
_PAIRS = flags.DEFINE_integer("pairs", 5, "timed runs of each kind")

_PAGE = os.sysconf("SC_PAGE_SIZE")
_WIKIPEDIA = 20_000  # megabytes of text in English Wikipedia


def text_of(corpus: corpora.Corpus, size: int) -> list[str]:
    """Documents of the corpus with about `size` bytes of text in total; a smaller corpus is repeated."""
    found: list[str] = []
    while size > 0:
        for part in corpus.parts:
            for text in corpus.documents(part, corpora.Bad()):
                if size <= 0:
                    return found
                found.append(text)
                size -= len(text.encode())
    return found


def resident(root: int) -> int:
    """Resident bytes of a process and all its descendants. A shared page counts once for each process."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            total += int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
            waiting += map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except OSError:
            continue  # the process has ended in the meantime
    return total


def peak_of(code: str) -> int:
    """Peak resident bytes of a Python process that runs `code`, workers included."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"{code!r} exited with status {process.returncode}")
    return peak


def seconds_of_tokenizers(words: vocab.Vocab, lines: list[str], clock: Callable[[], float]) -> float:
    """Seconds that `encode_batch` takes, 1,000 lines per call (a single call would need gigabytes)."""
    started = clock()
    for first in range(0, len(lines), 1000):
        words.tokenizer.encode_batch(lines[first : first + 1000], add_special_tokens=False)
    return clock() - started


def seconds_of_prepare(
    source: str, vocab_file: str, folder: str, processes: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that all of prepare takes: reading, tokenising, shards, checksums, manifest."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started = clock()
        prepare(source, pathlib.Path(out) / "shards", vocab=vocab_file, processes=processes)
        return clock() - started


def on_one_core(source: str, vocab_file: str, folder: str, lines: list[str], pairs: int) -> dict[str, list[float]]:
    """Processor seconds of `tokenizers` and of prepare, in this process, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    words = vocab.load(vocab_file)
    timed: dict[str, list[float]] = {"tokenizers, one core": [], "prepare, one core": []}
    for _ in range(pairs):
        timed["tokenizers, one core"].append(seconds_of_tokenizers(words, lines, time.process_time))
        timed["prepare, one core"].append(seconds_of_prepare(source, vocab_file, folder, 1, time.process_time))
    os.sched_setaffinity(0, cores)
    return timed


def summary(values: list[float]) -> str:
    return with_range(extremes(values), ".2f")


def main(argv: list[str]) -> None:
    del argv
    data = os.environ.get("BERT_FAST_DATA")
    source = _CORPUS.value or (f"files:{data}/corpus/*/train-*.txt.gz" if data else "docs")
    corpus = corpora.open_corpus(source)
    with tempfile.TemporaryDirectory() as folder:
        vocab_file = _VOCAB.value or (f"{data}/vocab/bert-base-uncased.txt" if data else None)
        if vocab_file is None:
            vocab_file = f"{folder}/vocab.txt"
            pathlib.Path(vocab_file).write_bytes(vocab.train(text_of(corpus, 10**7), 30_522))
        sources = {}
        for megabytes in sorted({1, _MEGABYTES.value, 100}):
            path = pathlib.Path(folder) / f"{megabytes}.txt"
            path.write_text("\n\n".join(text_of(corpus, megabytes * 10**6)))
            sources[megabytes] = f"files:{path}"
        lines = [line for line in (pathlib.Path(folder) / f"{_MEGABYTES.value}.txt").read_text().split("\n") if line]
        words = vocab.load(vocab_file)

        timed = on_one_core(sources[_MEGABYTES.value], vocab_file, folder, lines, _PAIRS.value)
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        cores = corpora.default_processes()
        timed |= {"tokenizers": [], "one": [], "all": []}
        for _ in range(_PAIRS.value):
            timed["tokenizers"].append(seconds_of_tokenizers(words, lines, time.perf_counter))
            for name, processes in (("all", cores), ("one", 1)):
                timed[name].append(seconds_of_prepare(sources[_MEGABYTES.value], vocab_file, folder, processes))

        # The memory of the interpreter and the imports is subtracted. The rest is what prepare itself needs.
        load = "from bert_fast.data.prepare import prepare; "
        base = peak_of(load + "import time; time.sleep(0.5)")
        peaks = {}
        for megabytes in (1, 100):
            call = f"prepare({sources[megabytes]!r}, '{folder}/m{megabytes}', vocab={vocab_file!r}, processes={cores})"
            peaks[megabytes] = peak_of(load + call) - base

    speeds = {name: [_MEGABYTES.value / seconds for seconds in values] for name, values in timed.items()}
    alone = ratios(timed["tokenizers, one core"], timed["prepare, one core"])
    hours = _WIKIPEDIA / statistics.median(speeds["all"]) / 3600
    share, gain = ratios(timed["tokenizers"], timed["all"]), ratios(timed["one"], timed["all"])
    lines = [
        "# Throughput and memory of prepare",
        "",
        f"Written by `experiments/prepare_speed.py` on {platform.machine()} {platform.system()}, {cores} cores, "
        f"Python {platform.python_version()}; {_MEGABYTES.value} MB of "
        f"{'the `docs` corpus' if source == 'docs' else 'text'}, "
        f"vocabulary of {words.size:,} tokens; median (range) of {_PAIRS.value} alternating runs. "
        "Memory is the sum over parent and workers, minus the memory of a Python process that has only imported the "
        "same modules. A shared page counts once for each process.",
        "",
        'Rows marked "one core" use processor time, which other programs disturb less. All other rows use wall-clock time.',
        "",
        "| | measured | aim |",
        "|---|---|---|",
        f"| `tokenizers.encode_batch` alone, one core | {summary(speeds['tokenizers, one core'])} MB/s | |",
        f"| prepare, one core | {summary(speeds['prepare, one core'])} MB/s | |",
        f"| prepare / `encode_batch` alone, one core | {summary(alone)} | at least 5 |",
        f"| `tokenizers.encode_batch` alone, all cores | {summary(speeds['tokenizers'])} MB/s | |",
        f"| prepare, {cores} processes | {summary(speeds['all'])} MB/s | |",
        f"| prepare, 1 process | {summary(speeds['one'])} MB/s | |",
        f"| prepare / `encode_batch` alone, all cores | {summary(share)} | |",
        f"| {cores} processes / 1 process | {summary(gain)} | at least 1.7 with 2 processes |",
        f"| peak memory above the interpreter, 1 MB of text | {peaks[1] / 2**20:,.0f} MiB | under 1,024 |",
        f"| peak memory above the interpreter, 100 MB of text | {peaks[100] / 2**20:,.0f} MiB | under 1,024 |",
        "",
        f"English Wikipedia, {_WIKIPEDIA // 1000} GB of text, takes {hours:.1f} hours at the speed of {cores} processes.",
    ]
    write_page("prepare_speed", "\n".join(lines) + "\n")


if __name__ == "__main__":
    app.run(main)
