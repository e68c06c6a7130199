"""Turns text into shards: plans, makes the vocabulary, tokenises units of text on all cores, and writes the manifest.
It can be killed at any point: the next call resumes after the last finished unit.

The sources form one stream of documents. It is cut into units by the length of the text alone, so with the same
vocabulary the output is the same, byte for byte, with any number of processes and after any interruption.
"""

import collections
import concurrent.futures
import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import bert_fast
from bert_fast import BadInput
from bert_fast.data import corpora, document_tokenizer, letters, sealed, shards, staging, workers
from bert_fast.data import prepare_report as report
from bert_fast.data import vocab as vocabulary
from bert_fast.data.files import atomic_write, check_output, full_disk_reported
from bert_fast.data.mixture import Mixture, Position, Stream, open_mixture

UNIT = 64 << 20  # characters of text in a unit: about 15 M tokens, 20 MB on disk
_BLOCK = 1 << 19  # characters sent to a worker at once
_AHEAD = 12  # blocks queued per worker, enough to keep it busy while a unit is written
_TRAINING = 100 << 20  # maximum bytes of text to train a vocabulary on
_LOOKED_AT = 200_000  # characters of text that are examined for letters that the settings would change


class TextBlock(NamedTuple):
    """Documents for one worker, and the positions of the K sources after them."""

    texts: list[str]
    positions_K: list[Position]
    closes: bool  # a unit ends after this block
    last: bool = False


def prepare(
    source: str | Sequence[str] | Mixture,
    out: str | pathlib.Path,
    *,
    repeat: bool = False,
    vocab: str | pathlib.Path | None = None,
    vocab_size: int = 30_522,
    cased: bool | None = None,
    strip_accents: bool | None = None,
    valid_fraction: float = 0.01,
    text_key: str = "text",
    tfds_data_dir: str | None = None,
    skip_bad: bool = False,
    processes: int | None = None,
    unit: int = UNIT,
) -> dict:
    """Makes the shards folder `out` from `source`, or continues it if it is unfinished. Returns its manifest.

    source: one or more sources, each with or without a weight (mixture.py), or a mixture.
    vocab: a vocab.txt; without it, a vocabulary of `vocab_size` tokens is trained.
    cased, strip_accents: None follows the given vocabulary. If none is given, None lower-cases and keeps accents.
    valid_fraction: the share of documents, chosen by a hash of their text, that is held out.

    Raises BadInput for a source or vocabulary that cannot be used, for an `out` begun with other settings, and for a
    full disk.
    """
    out = pathlib.Path(out)
    check_output(out, "--out")
    if not 0 < valid_fraction < 1:
        raise BadInput(f"--valid_fraction={valid_fraction}: expected a share between 0 and 1, such as 0.01")
    if vocab is None and vocab_size < 100:
        raise BadInput(f"--vocab_size={vocab_size}: expected at least 100")
    if processes is not None and processes < 1:
        raise BadInput(f"--processes={processes}: expected at least 1")
    processes = processes or corpora.default_processes()
    given = vocabulary.load(vocab) if vocab is not None else None
    chosen, warnings = letters.settle(cased, strip_accents, pathlib.Path(vocab) if vocab else None, _begun(out))
    mixture = source
    if not isinstance(mixture, Mixture):
        mixture = open_mixture(mixture, repeat, text_key=text_key, tfds_data_dir=tfds_data_dir, processes=processes)
    fingerprint = given.fingerprint if given else f"trained, {vocab_size}"
    settings = settings_of(mixture, chosen, fingerprint, text_key, valid_fraction, skip_bad, unit)
    if (out / "manifest.json").is_file():
        manifest = shards.read_manifest(out)
        staging.refuse_other(out, letters.stored(manifest["settings"]), settings)
        _refuse_edited(out, manifest, mixture, skip_bad)
        staging.forget(out)
        print(f"{out} is already finished: nothing to do")
        fresh, _ = letters.settle(cased, strip_accents, pathlib.Path(vocab) if vocab else None, None)
        report.say_kept(out, chosen, fresh)
        return manifest

    with full_disk_reported(out), staging.claimed(out, settings, mixture.stamps_K()) as folder:
        try:
            done = len(staging.finished_units(folder))
            report.say_plan(mixture, out, given, vocab_size, _TRAINING, chosen, processes, unit, done)
            for warning in [*warnings, *letters.harm(_beginnings(mixture, skip_bad), chosen, strip_accents)]:
                report.say_warning(warning)
            words = _vocabulary(mixture, out, given, vocab_size, chosen, skip_bad, processes)
            entries = _write_units(mixture, folder, words, valid_fraction, skip_bad, processes, unit)
            manifest = _finish(out, mixture, settings, words, entries)
        except KeyboardInterrupt:
            print(f"\nStopped. Finished work is in {folder}; run the same command again to continue.", flush=True)
            raise
    staging.forget(out)
    samples = report.samples((number, line) for entry in entries for number, line in entry["samples"])
    report.say_result(out, manifest, words, [line for _, line in samples])
    return manifest


def settings_of(
    mixture: Mixture, chosen: letters.Letters, fingerprint: str, text_key: str, valid_fraction: float, skip_bad: bool,
    unit: int,
) -> dict:  # fmt: skip
    """Everything that decides the content of a shards folder, for its manifest. fingerprint: the vocabulary's."""
    return {
        "source": mixture.spec,
        "source_identity": mixture.identity,
        "text_key": text_key,
        "vocab": fingerprint,
        "cased": chosen.cased,
        "strip_accents": chosen.strip_accents,
        "valid_fraction": valid_fraction,
        "skip_bad": skip_bad,
        "unit": unit,
        **({"repeat": True} if mixture.repeat else {}),
    }


def _begun(out: pathlib.Path) -> dict | None:
    """The settings of an earlier call for the folder `out`. None if no call began it."""
    if (out / "manifest.json").is_file():
        return shards.read_manifest(out)["settings"]
    begun = staging.begun_with(out)
    return begun and begun["settings"]


def _refuse_edited(out: pathlib.Path, manifest: dict, mixture: Mixture, skip_bad: bool) -> None:
    """Raises BadInput if the text has changed since the shards were made. Reads the text only if a source file is newer
    than the shards.
    """
    newer = [source for source in mixture.sources if source.changed() > (out / "manifest.json").stat().st_mtime]
    if not newer or "text" not in manifest:  # format 1 has no hash of the text
        return
    print(f"{newer[0].spec} has changed since {out} was made: comparing the text ...", flush=True)
    stream = Stream(mixture, (), skip_bad)
    for _ in stream:
        pass
    found = [position.text for position in stream.positions_K]
    for source, now, before in zip(mixture.sources, found, manifest["text"], strict=True):
        if now != before:
            raise BadInput(
                f"the text of --source={source.spec} is not the text that {out} was made from: delete the folder to "
                "prepare it again, or choose another --out"
            )


def _beginnings(mixture: Mixture, skip_bad: bool) -> Iterator[str]:
    """The beginning of each source, _LOOKED_AT characters in total."""
    share = _LOOKED_AT // len(mixture.sources)
    for source in mixture.sources:
        left = share
        for text in Stream(Mixture([source]), (), skip_bad):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


def _vocabulary(mixture, out, given, size, chosen, skip_bad, processes) -> vocabulary.Vocab:
    """The vocabulary in `out`: from an earlier run, else a copy of the given one, else newly trained."""
    target = out / "vocab.txt"
    if not target.is_file():
        if given:
            content = given.content
        else:
            print("Training the vocabulary ...", flush=True)
            started = time.monotonic()
            os.environ.setdefault("RAYON_NUM_THREADS", str(processes))
            with _environment("TOKENIZERS_PARALLELISM", "true"):
                texts = mixture.sample(_TRAINING, skip_bad)
                content = vocabulary.train(texts, size, chosen.cased, chosen.strip_accents)
            print(f"  {len(content.splitlines()):,} tokens in {time.monotonic() - started:.0f} s", flush=True)
        atomic_write(target, content)
    words = vocabulary.load(target, chosen.cased, chosen.strip_accents)
    atomic_write(out / "tokenizer.json", words.tokenizer.to_str(pretty=True).encode())
    return words


def _blocks(stream: Stream, unit: int) -> Iterator[TextBlock]:
    """Blocks of the stream. No block crosses the end of a unit."""
    texts: list[str] = []
    size = total = 0
    for text in stream:
        texts.append(text)
        size += len(text)
        total += len(text)
        if total >= unit or size >= _BLOCK:
            yield TextBlock(texts, stream.positions_K, total >= unit)
            texts, size, total = [], 0, total if total < unit else 0
    yield TextBlock(texts, stream.positions_K, closes=True, last=True)


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


def _write_units(mixture, folder, words, valid_fraction, skip_bad, processes, unit) -> list[dict]:
    """Writes the remaining units. Returns the entries of all units, including units of an earlier run."""
    entries = staging.finished_units(folder)
    if entries and entries[-1]["last"]:
        return entries
    after_K = [Position(*position) for position in entries[-1]["positions"]] if entries else ()
    blocks = _blocks(Stream(mixture, after_K, skip_bad), unit)
    done = sum(entry[split]["raw_bytes"] for entry in entries for split in shards.SPLITS)
    current, chosen = staging.Unit(valid_fraction), []
    with (
        report.progress(sum(mixture.expected_K()), done) as advance,
        contextlib.closing(_encoded(blocks, words, folder.parent / "vocab.txt", processes)) as encoded,  # ends workers
    ):
        for block, documents in encoded:
            for text, document in zip(block.texts, documents, strict=True):
                current.add(document)
                advance(document.raw_bytes)
                if len(chosen) < report.SAMPLES or document.hash < chosen[-1][0]:
                    chosen = report.samples([*chosen, report.sample(document.hash, text)])
            if block.closes:
                if not entries:
                    current.give_valid_one()
                state = {"positions": block.positions_K, "samples": chosen, "last": block.last}
                entries.append(current.write(folder, len(entries), **state))
                current, chosen = staging.Unit(valid_fraction), []
    return entries


def _finish(out: pathlib.Path, mixture: Mixture, settings: dict, words: vocabulary.Vocab, entries: list[dict]) -> dict:
    """Moves the shards into place and writes the manifest, which completes the folder."""
    read_K = [Position(*position) for position in entries[-1]["positions"]]
    skipped = sum(position.skipped for position in read_K)
    total = {split: sum(entry[split]["documents"] for entry in entries) for split in shards.SPLITS}
    if not all(total.values()):
        staging.forget(out)
        for name in ("vocab.txt", "tokenizer.json"):  # so that the same command can start over
            (out / name).unlink(missing_ok=True)
        found = ", ".join(f"{count} in {split}" for split, count in total.items())
        raise BadInput(
            f"--source={mixture.spec} has too few documents ({found}; {skipped} were skipped): expected at least "
            "one in each. In .txt files a blank line ends a document; --valid_fraction is the held-out share"
        )
    splits = staging.assemble(out, entries)
    checksums = [shard["sha256"] for split in splits.values() for shard in split["shards"]]
    manifest = {
        "format": shards.FORMAT,
        "version": bert_fast.__version__,
        "source": mixture.spec,
        "settings": settings,
        "vocab": words.to_json(),
        "tokenizer": shards.file_entry(out / "tokenizer.json"),
        "token_dtype": shards.token_dtype(words.size),
        "splits": splits,
        "skipped_documents": skipped,
        "cut_documents": sum(entry["cut_documents"] for entry in entries),
        "empty_documents": sum(entry["empty_documents"] for entry in entries),
        "fingerprint": shards.fingerprint(words.fingerprint, checksums),
        "text": [position.text for position in read_K],
        **({"mixture": _shares(mixture, read_K)} if len(read_K) > 1 else {}),
    }
    return sealed.write(out / "manifest.json", manifest)


def _shares(mixture: Mixture, read_K: list[Position]) -> list[dict]:
    """How much of each source is in the shards."""
    total = sum(position.bytes for position in read_K)
    return [
        {"source": name, "identity": source.identity, "share": position.bytes / total}
        | {"bytes": position.bytes, "documents": position.total, "passes": position.passes}
        for name, source, position in zip(mixture.names, mixture.sources, read_K, strict=True)
    ]


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
