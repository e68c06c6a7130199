"""Throughput of prepare, compared with `tokenizers` alone and with a single process; and its memory.

    python -m experiments.prepare_speed [--corpus='files:*.txt.gz'] [--vocab=vocab.txt] [--megabytes=100] [--pairs=5]

By default it reads $BERT_FAST_DATA. If that is not set, it uses the documentation installed with Python, and a
vocabulary trained on it. Runs of the different kinds alternate, and the page has medians and ranges. Writes
experiments/prepare_speed.md. Takes about five minutes on two cores.
"""

import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from bert_fast.data import corpora, vocab
from bert_fast.data.prepare import prepare
from experiments.common import extremes, ratios, with_range, write_page

_CORPUS = flags.DEFINE_string("corpus", None, "text source, in the form that `prepare --source` takes")
_VOCAB = flags.DEFINE_string("vocab", None, "a vocab.txt; default: one trained on the corpus")
_MEGABYTES = flags.DEFINE_integer("megabytes", 100, "megabytes of text in each timed run")
_PAIRS = flags.DEFINE_integer("pairs", 5, "timed runs of each kind")

_PAGE = os.sysconf("SC_PAGE_SIZE")


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


def seconds_of_tokenizers(words: vocab.Vocab, lines: list[str]) -> float:
    """Seconds that `encode_batch` takes on all cores, 1,000 lines per call (a single call would take gigabytes)."""
    started = time.perf_counter()
    for first in range(0, len(lines), 1000):
        words.tokenizer.encode_batch(lines[first : first + 1000], add_special_tokens=False)
    return time.perf_counter() - started


def seconds_of_prepare(source: str, vocab_file: str, folder: str, processes: int) -> float:
    """Seconds that all of prepare takes: reading, tokenising, shards, checksums, manifest."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started = time.perf_counter()
        prepare(source, pathlib.Path(out) / "shards", vocab=vocab_file, processes=processes)
        return time.perf_counter() - started


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

        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        cores = corpora.default_processes()
        timed: dict[str, list[float]] = {"tokenizers": [], "one": [], "all": []}
        for _ in range(_PAIRS.value):
            timed["tokenizers"].append(seconds_of_tokenizers(words, lines))
            for name, processes in (("all", cores), ("one", 1)):
                timed[name].append(seconds_of_prepare(sources[_MEGABYTES.value], vocab_file, folder, processes))

        # Subtract the memory of the interpreter and the imports: the rest is prepare's own.
        load = "from bert_fast.data.prepare import prepare; "
        base = peak_of(load + "import time; time.sleep(0.5)")
        peaks = {}
        for megabytes in (1, 100):
            call = f"prepare({sources[megabytes]!r}, '{folder}/m{megabytes}', vocab={vocab_file!r}, processes={cores})"
            peaks[megabytes] = peak_of(load + call) - base

    speeds = {name: [_MEGABYTES.value / seconds for seconds in values] for name, values in timed.items()}
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
        "| | measured | aim |",
        "|---|---|---|",
        f"| `tokenizers.encode_batch` alone, all cores | {summary(speeds['tokenizers'])} MB/s | |",
        f"| prepare, {cores} processes | {summary(speeds['all'])} MB/s | |",
        f"| prepare, 1 process | {summary(speeds['one'])} MB/s | |",
        f"| prepare / `encode_batch` alone | {summary(share)} | at least 0.8 |",
        f"| {cores} processes / 1 process | {summary(gain)} | at least 1.7 with 2 processes |",
        f"| peak memory above the interpreter, 1 MB of text | {peaks[1] / 2**20:,.0f} MiB | under 1,024 |",
        f"| peak memory above the interpreter, 100 MB of text | {peaks[100] / 2**20:,.0f} MiB | under 1,024 |",
    ]
    write_page("prepare_speed", "\n".join(lines) + "\n")


if __name__ == "__main__":
    app.run(main)
