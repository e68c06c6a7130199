"""What preparing data costs: against `tokenizers` alone, with one and two processes, and in memory.

    python -m experiments.prepare_speed [--corpus='files:*.txt.gz'] [--vocab=vocab.txt] [--megabytes=100] [--pairs=5]

Without flags it reads $BERT_FAST_DATA where that is set, else the documentation installed with
Python and a vocabulary trained on it. Runs alternate, medians and ranges are reported, and the
table is written to experiments/prepare_speed.md. About five minutes on two cores.
"""

import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from bert_fast.data import corpora, vocab
from bert_fast.data.prepare import prepare

_CORPUS = flags.DEFINE_string("corpus", None, "source of the text, as `prepare --source` takes it")
_VOCAB = flags.DEFINE_string("vocab", None, "a vocab.txt; trained on the corpus where it is absent")
_MEGABYTES = flags.DEFINE_integer("megabytes", 100, "text in a timed run")
_PAIRS = flags.DEFINE_integer("pairs", 5, "timed runs of each kind")

_PAGE = os.sysconf("SC_PAGE_SIZE")


def text_of(corpus: corpora.Corpus, size: int) -> list[str]:
    """Documents of `size` bytes of text, from the beginning again where the corpus has fewer."""
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
    """Bytes of memory of a process and all below it (shared pages counted in each)."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            total += int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
            waiting += map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except OSError:
            continue  # it has ended meanwhile
    return total


def peak_of(code: str) -> int:
    """Largest resident memory of a Python process that runs `code`, and of its workers, in bytes."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"{code!r} ended with {process.returncode}")
    return peak


def seconds_of_tokenizers(words: vocab.Vocab, lines: list[str]) -> float:
    """Time of `encode_batch` on all cores, a line each, 1,000 lines at once (all of them take gigabytes)."""
    started = time.perf_counter()
    for first in range(0, len(lines), 1000):
        words.tokenizer.encode_batch(lines[first : first + 1000], add_special_tokens=False)
    return time.perf_counter() - started


def seconds_of_prepare(source: str, vocab_file: str, folder: str, processes: int) -> float:
    """Time of all of prepare: reading, tokenising, shards, checksums, manifest."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started = time.perf_counter()
        prepare(source, pathlib.Path(out) / "shards", vocab=vocab_file, processes=processes)
        return time.perf_counter() - started


def summary(values: list[float], form: str) -> str:
    """Median and range."""
    median, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({low} to {high})"


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

        # What importing costs is the interpreter's; what the run adds is ours.
        load = "from bert_fast.data.prepare import prepare; "
        base = peak_of(load + "import time; time.sleep(0.5)")
        peaks = {}
        for megabytes in (1, 100):
            call = f"prepare({sources[megabytes]!r}, '{folder}/m{megabytes}', vocab={vocab_file!r}, processes={cores})"
            peaks[megabytes] = peak_of(load + call) - base

    speeds = {name: [_MEGABYTES.value / seconds for seconds in values] for name, values in timed.items()}
    share = [alone / ours for alone, ours in zip(timed["tokenizers"], timed["all"], strict=True)]
    gain = [one / all_ for one, all_ in zip(timed["one"], timed["all"], strict=True)]
    lines = [
        "# What preparing data costs",
        "",
        f"Written by `experiments/prepare_speed.py` on {platform.machine()} {platform.system()}, {cores} cores, "
        f"Python {platform.python_version()}; {_MEGABYTES.value} MB of "
        f"{'the `docs` corpus' if source == 'docs' else 'text'}, "
        f"vocabulary of {words.size:,} tokens; median (range) of {_PAIRS.value} alternating runs. "
        "Memory is the sum over parent and workers, less a Python process that has imported the same "
        "modules; pages that processes share "
        "count once for each.",
        "",
        "| what | measured | aim |",
        "|---|---|---|",
        f"| `tokenizers.encode_batch` alone, all cores | {summary(speeds['tokenizers'], '.2f')} MB/s | |",
        f"| prepare, {cores} processes | {summary(speeds['all'], '.2f')} MB/s | |",
        f"| prepare, 1 process | {summary(speeds['one'], '.2f')} MB/s | |",
        f"| prepare / `encode_batch` alone | {summary(share, '.2f')} | at least 0.8 |",
        f"| {cores} processes / 1 process | {summary(gain, '.2f')} | at least 1.7 with 2 |",
        f"| peak memory above the interpreter, 1 MB of text | {peaks[1] / 2**20:,.0f} MiB | under 1,024 |",
        f"| peak memory above the interpreter, 100 MB of text | {peaks[100] / 2**20:,.0f} MiB | under 1,024 |",
    ]
    page = "\n".join(lines) + "\n"
    pathlib.Path(__file__).with_suffix(".md").write_text(page)
    print(f"\n{page}")


if __name__ == "__main__":
    app.run(main)
