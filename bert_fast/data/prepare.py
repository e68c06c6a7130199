"""Turns text into shards: plan, vocabulary, units tokenised on all cores, manifest. Resumes after a kill at any point.

The corpus is one stream of documents, which is cut into units by the length of the text alone. With the same
vocabulary, the output is therefore the same byte for byte, for any number of processes and after any interruption.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tqdm

import bert_fast
from bert_fast import BadInput, command
from bert_fast.data import corpora, document_tokenizer, shards, staging, workers
from bert_fast.data import vocab as vocabulary
from bert_fast.data.files import atomic_json, atomic_write, full_disk_reported, refuse_file

UNIT = 64 << 20  # characters of text in a unit: about 15 M tokens, 20 MB on disk
_BLOCK = 1 << 19  # characters sent to a worker at once
_AHEAD = 12  # blocks queued per worker, enough to keep it busy while a unit is written
_TRAINING = 100 << 20  # maximum bytes of text to train a vocabulary on
_UNKNOWN = 0.01  # a higher share of unknown tokens prints a warning
_EVERY = 5.0  # seconds between progress lines if the output is not a terminal
# For estimates. Measured on English Wikipedia with BERT's vocabulary, on one core of a cloud machine
_BYTES_A_SECOND = 8e6  # tokenised on one core; training a vocabulary on two cores is about as fast
_DISK_SHARE = 0.35  # bytes of shards per byte of text


class TextBlock(NamedTuple):
    """Documents for one worker, and the position in the stream after them."""

    texts: list[str]
    part: int
    documents: int  # read from `part` so far
    skipped: int
    closes: bool  # a unit ends after this block
    last: bool = False


def prepare(
    source: str,
    out: str | pathlib.Path,
    *,
    vocab: str | pathlib.Path | None = None,
    vocab_size: int = 30_522,
    cased: bool = False,
    strip_accents: bool | None = None,
    valid_fraction: float = 0.01,
    text_key: str = "text",
    tfds_data_dir: str | None = None,
    skip_bad: bool = False,
    processes: int | None = None,
    unit: int = UNIT,
) -> dict:
    """Makes the shards folder `out` from `source`, or continues it if it is unfinished. Returns its manifest.

    `vocab` is a vocab.txt; without it, a vocabulary of `vocab_size` tokens is trained. A share `valid_fraction`
    of the documents, chosen by a hash of their text, is held out. Raises BadInput for a source or vocabulary
    that cannot be used, for an `out` begun with other settings, and for a full disk.
    """
    out = pathlib.Path(out)
    refuse_file(out, "--out")
    if not 0 < valid_fraction < 1:
        raise BadInput(f"--valid_fraction={valid_fraction}: expected a share between 0 and 1, such as 0.01")
    if vocab is None and vocab_size < 100:
        raise BadInput(f"--vocab_size={vocab_size}: expected at least 100")
    if processes is not None and processes < 1:
        raise BadInput(f"--processes={processes}: expected at least 1")
    processes = processes or corpora.default_processes()
    given = vocabulary.load(vocab, cased, strip_accents) if vocab is not None else None
    corpus = corpora.open_corpus(source, text_key=text_key, tfds_data_dir=tfds_data_dir, processes=processes)
    settings = {
        "source": source,
        "source_identity": corpus.identity,
        "text_key": text_key,
        "vocab": given.fingerprint if given else f"trained, {vocab_size}",
        "cased": cased,
        "strip_accents": strip_accents,
        "valid_fraction": valid_fraction,
        "skip_bad": skip_bad,
        "unit": unit,
    }
    if (out / "manifest.json").is_file():
        manifest = shards.read_manifest(out)
        staging.refuse_other(out, manifest["settings"], settings)
        staging.forget(out)
        print(f"{out} is already finished with these settings: nothing to do")
        return manifest

    with full_disk_reported(out), staging.claimed(out, settings) as folder:
        try:
            _say_plan(corpus, out, given, vocab_size, processes, unit)
            words = _vocabulary(corpus, out, vocab, given, vocab_size, cased, strip_accents, skip_bad, processes)
            entries = _write_units(corpus, folder, words, valid_fraction, skip_bad, processes, unit)
            manifest = _finish(out, source, settings, words, entries)
        except KeyboardInterrupt:
            print(f"\nStopped. Finished work is in {folder}; run the same command again to continue.", flush=True)
            raise
    staging.forget(out)
    _say_result(out, manifest)
    return manifest


def _say_plan(corpus, out, given, vocab_size, processes, unit) -> None:
    size = sum(part.bytes for part in corpus.parts)
    sample = min(size, _TRAINING)
    seconds = size / _BYTES_A_SECOND / processes + (0 if given else sample / _BYTES_A_SECOND)
    done = len(staging.finished_units(out / staging.NAME))
    units = -(-size // unit)
    print(
        f"Source      {corpus.spec}: {len(corpus.parts)} part(s), about {size / 1e6:,.1f} MB of text\n"
        + (
            f"Vocabulary  given, {given.size:,} tokens\n"
            if given
            else f"Vocabulary  {vocab_size:,} tokens, trained once on {sample / 1e6:,.1f} MB: the start of each part\n"
        )
        + f"Output      {out}: about {units} shard(s) per split, "
        f"about {size * _DISK_SHARE / 1e6:,.1f} MB (estimate), {shutil.disk_usage(out).free / 1e6:,.0f} MB free\n"
        f"Time        about {seconds / 60:,.1f} minutes with {processes} process(es) (estimate)"
        + (f"\nContinuing  {done} unit(s) of {unit / 1e6:,.0f} MB are already finished" if done else ""),
        flush=True,
    )


def _vocabulary(corpus, out, path, given, size, cased, strip_accents, skip_bad, processes) -> vocabulary.Vocab:
    """The vocabulary in `out`: from an earlier run, else a copy of the given file, else newly trained."""
    target = out / "vocab.txt"
    if not target.is_file():
        if given:
            content = pathlib.Path(path).read_bytes()
        else:
            print("Training the vocabulary ...", flush=True)
            started = time.monotonic()
            os.environ.setdefault("RAYON_NUM_THREADS", str(processes))
            with _environment("TOKENIZERS_PARALLELISM", "true"):
                content = vocabulary.train(_sample(corpus, skip_bad), size, cased, strip_accents)
            print(f"  {len(content.splitlines()):,} tokens in {time.monotonic() - started:.0f} s", flush=True)
        atomic_write(target, content)
    words = vocabulary.load(target, cased, strip_accents)
    atomic_write(out / "tokenizer.json", words.tokenizer.to_str(pretty=True).encode())
    return words


def _sample(corpus: corpora.Corpus, skip_bad: bool) -> Iterator[str]:
    """The beginning of each part, at most about _TRAINING bytes of text in total."""
    share = min(1.0, _TRAINING / max(1, sum(part.bytes for part in corpus.parts)))
    for part in corpus.parts:
        left = share * part.bytes
        for text in corpus.documents(part, corpora.Bad(skip_bad)):
            if share < 1 and left <= 0:
                break
            left -= len(text)
            yield text


def _blocks(corpus: corpora.Corpus, after: dict, bad: corpora.Bad, unit: int) -> Iterator[TextBlock]:
    """Blocks of the stream after its last finished unit. No block crosses the end of a unit."""
    texts: list[str] = []
    size = total = 0
    part = documents = 0
    for part in range(after["part"], len(corpus.parts)):
        skip = after["documents"] if part == after["part"] else 0
        for documents, text in enumerate(corpus.documents(corpus.parts[part], bad), 1):
            if documents == skip:
                bad.count = after["skipped"]  # the earlier run has counted the bad documents up to here
            if documents <= skip:
                continue
            texts.append(text)
            size += len(text)
            total += len(text)
            if total >= unit or size >= _BLOCK:
                yield TextBlock(texts, part, documents, bad.count, total >= unit)
                texts, size, total = [], 0, total if total < unit else 0
    yield TextBlock(texts, part, documents, bad.count, closes=True, last=True)


def _encoded(blocks: Iterator[TextBlock], words: vocabulary.Vocab, path: pathlib.Path, processes: int):
    """Yields each block with its records, in order. Meanwhile the workers encode the next blocks."""
    if processes == 1:
        encoder = document_tokenizer.DocumentTokenizer(words)
        with _environment("TOKENIZERS_PARALLELISM", "false"):
            for block in blocks:
                yield block, encoder(block.texts)
        return
    with workers.Pool(processes, document_tokenizer.start_worker, str(path), words.cased, words.strip_accents) as pool:
        waiting: collections.deque[tuple[TextBlock, concurrent.futures.Future]] = collections.deque()
        for block in blocks:
            waiting.append((block, pool.submit(document_tokenizer.encode, block.texts)))
            if len(waiting) > _AHEAD * processes:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _write_units(corpus, folder, words, valid_fraction, skip_bad, processes, unit) -> list[dict]:
    """Writes the remaining units. Returns the entries of all units, including units of an earlier run."""
    entries = staging.finished_units(folder)
    after = entries[-1] if entries else {"part": 0, "documents": 0, "skipped": 0, "last": False}
    if after["last"]:
        return entries
    bad = corpora.Bad(skip_bad)
    blocks = _blocks(corpus, after, bad, unit)
    done = sum(entry[split]["raw_bytes"] for entry in entries for split in shards.SPLITS)
    current = staging.Unit(valid_fraction)
    with (
        _progress(sum(part.bytes for part in corpus.parts), done) as advance,
        contextlib.closing(_encoded(blocks, words, folder.parent / "vocab.txt", processes)) as encoded,  # ends workers
    ):
        for block, documents in encoded:
            for document in documents:
                current.add(document)
                advance(document.raw_bytes)
            if block.closes:
                if not entries:
                    current.give_valid_one()
                state = {"part": block.part, "documents": block.documents, "skipped": block.skipped, "last": block.last}
                entries.append(current.write(folder, len(entries), **state))
                current = staging.Unit(valid_fraction)
    return entries


def _finish(out: pathlib.Path, source: str, settings: dict, words: vocabulary.Vocab, entries: list[dict]) -> dict:
    """Moves the shards into place and writes the manifest, which completes the folder."""
    total = {split: sum(entry[split]["documents"] for entry in entries) for split in shards.SPLITS}
    if not all(total.values()):
        staging.forget(out)
        for name in ("vocab.txt", "tokenizer.json"):  # so that the same command can start over
            (out / name).unlink(missing_ok=True)
        found = ", ".join(f"{count} in {split}" for split, count in total.items())
        raise BadInput(
            f"--source={source} has too few documents ({found}; {entries[-1]['skipped']} were skipped): expected at "
            "least one in each. In .txt files a blank line ends a document; --valid_fraction is the held-out share"
        )
    splits = staging.assemble(out, entries)
    checksums = [shard["sha256"] for split in splits.values() for shard in split["shards"]]
    manifest = {
        "format": shards.FORMAT,
        "version": bert_fast.__version__,
        "source": source,
        "settings": settings,
        "vocab": words.to_json(),
        "token_dtype": shards.token_dtype(words.size),
        "splits": splits,
        "skipped_documents": entries[-1]["skipped"],
        "cut_documents": sum(entry["cut_documents"] for entry in entries),
        "empty_documents": sum(entry["empty_documents"] for entry in entries),
        "fingerprint": hashlib.sha256("".join([words.fingerprint, *checksums]).encode()).hexdigest(),
    }
    atomic_json(out / "manifest.json", manifest)
    return manifest


@contextlib.contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], object]]:
    """Shows a bar with the time left, or prints a line every few seconds if the output is not a terminal."""
    if sys.stderr.isatty():
        with tqdm.tqdm(total=max(total, 1), initial=done, unit="B", unit_scale=True, desc="Tokenising") as bar:
            yield bar.update
        return
    started = said = time.monotonic()
    now = done

    def advance(count: int) -> None:
        nonlocal now, said
        now += count
        if (clock := time.monotonic()) - said >= _EVERY:
            said = clock
            speed = (now - done) / (clock - started)
            left = max(total - now, 0) / speed / 60
            print(
                f"  {now / 1e6:,.0f} of {total / 1e6:,.0f} MB, {speed / 1e6:.1f} MB/s, {left:.1f} minutes left",
                flush=True,
            )

    yield advance


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable inside the block. `tokenizers` reads TOKENIZERS_PARALLELISM at each call."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _say_result(out: pathlib.Path, manifest: dict) -> None:
    for name, split in manifest["splits"].items():
        print(
            f"{name:<6} {split['documents']:>10,} documents {split['sentences']:>12,} sentences "
            f"{split['tokens']:>14,} tokens {split['raw_bytes'] / 1e6:>10,.1f} MB of text"
        )
    if cut := manifest["cut_documents"]:
        print(f"{cut:,} document(s) longer than {document_tokenizer.MAX_TOKENS:,} tokens were split")
    if lost := manifest["skipped_documents"] + manifest["empty_documents"]:
        print(f"{lost:,} document(s) skipped: unreadable, or without tokens")
    tokens, unknown = (sum(split[key] for split in manifest["splits"].values()) for key in ("tokens", "unknown"))
    share = unknown / tokens
    print(f"Unknown tokens: {share:.3%}")
    if share > _UNKNOWN:
        print(
            f"WARNING: {share:.1%} of the tokens are [UNK], from which the model learns nothing. Are the vocabulary "
            "and --cased right for this text? Without --vocab, a vocabulary is trained on the text"
        )
    print(
        f"Shards, manifest.json, vocab.txt and tokenizer.json are in {out}\nNext: {command()} pretrain "
        f"--config=bert:size=mini --workdir=runs/mini --config.data.dir={out}"
    )
