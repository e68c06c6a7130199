"""What `prepare` prints: the plan, progress, the result, and what the vocabulary does to ten sample lines."""

import contextlib
import heapq
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import tqdm

from bert_fast import command
from bert_fast.data import document_tokenizer
from bert_fast.data.letters import Letters
from bert_fast.data.mixture import Mixture
from bert_fast.data.vocab import Vocab, composed

SAMPLES = 10
_WIDTH = 100  # characters of a sample line
_UNKNOWN = 0.01  # a higher share of unknown tokens prints a warning
_OFTEN = 10  # how often a piece should occur in the text; a model learns little about rarer ones
_LEAST = 500  # pieces; a smaller vocabulary has little more than letters
_EVERY = 5.0  # seconds between progress lines if the output is not a terminal
# For estimates; measured on English Wikipedia with BERT's vocabulary, on one core of a cloud machine
_BYTES_A_SECOND = 8e6  # tokenised on one core; training a vocabulary on two cores is about as fast
_DISK_SHARE = 0.35  # bytes of shards per byte of text

Sample = tuple[int, str]  # a document's hash, and one of its sentences


def say_plan(
    mixture: Mixture, out: pathlib.Path, given: Vocab | None, vocab_size: int, training: int, letters: Letters,
    processes: int, unit: int, done: int,
) -> None:  # fmt: skip
    """Prints what will be done. `training`: bytes of text for a vocabulary. `done`: units that are finished."""
    expected_K = mixture.expected_K()
    size = sum(expected_K)
    sample = min(size, training)
    seconds = size / _BYTES_A_SECOND / processes + (0 if given else sample / _BYTES_A_SECOND)
    for name, source, there, taken in zip(mixture.names, mixture.sources, mixture.sizes_K(), expected_K, strict=True):
        print(
            f"Source      {name}: {len(source.parts)} part(s), about {there / 1e6:,.1f} MB of text"
            + (f"; about {taken / 1e6:,.1f} MB ({taken / max(1, there):.0%}) are read" if mixture.shares_K else "")
        )
    print(
        (
            f"Vocabulary  given, {given.size:,} tokens\n"
            if given
            else f"Vocabulary  {vocab_size:,} tokens, trained once on {sample / 1e6:,.1f} MB: the start of each part\n"
        )
        + f"Letters     {letters} ({letters.by})\n"
        f"Output      {out}: about {-(-int(size) // unit)} shard(s) per split, "
        f"about {size * _DISK_SHARE / 1e6:,.1f} MB (estimate), {shutil.disk_usage(out).free / 1e6:,.0f} MB free\n"
        f"Time        about {seconds / 60:,.1f} minutes with {processes} process(es) (estimate)"
        + (f"\nContinuing  {done} unit(s) of {unit / 1e6:,.0f} MB are already finished" if done else ""),
        flush=True,
    )


@contextlib.contextmanager
def progress(total: float, done: int) -> Iterator[Callable[[int], object]]:
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


def samples(documents: Iterable[Sample]) -> list[Sample]:
    """The SAMPLES documents with the smallest hashes, so that the choice depends only on the corpus."""
    return heapq.nsmallest(SAMPLES, set(documents))


def sample(number: int, text: str) -> Sample:
    """One sentence of a document, chosen by the document's hash `number`."""
    sentences = document_tokenizer.sentences_of(text)
    return number, sentences[number % len(sentences)][:_WIDTH]


def shown(lines: list[str], words: Vocab) -> list[str]:
    """The tokens of each line. An unknown token is shown with the text that it replaces, as in [UNK: text]."""
    lines = [composed(line, words.strip_accents) for line in lines]
    return [
        " ".join(
            f"[UNK: {line[slice(*place)]}]" if number == words.unk else token
            for number, token, place in zip(found.ids, found.tokens, found.offsets, strict=True)
        )
        for line, found in zip(lines, words.for_text().encode_batch(lines, add_special_tokens=False), strict=True)
    ]


def say_result(out: pathlib.Path, manifest: dict, words: Vocab, lines: list[str]) -> None:
    """Prints counts, warnings, and the tokens of sample lines."""
    for name, split in manifest["splits"].items():
        print(
            f"{name:<6} {split['documents']:>10,} documents {split['sentences']:>12,} sentences "
            f"{split['tokens']:>14,} tokens {split['raw_bytes'] / 1e6:>10,.1f} MB of text"
        )
    for entry in manifest.get("mixture", ()):
        print(
            f"  {entry['share']:.1%} of the text is {entry['source']}: {entry['documents']:,} documents"
            + (f", read to the end {entry['passes']} time(s)" if entry["passes"] else ", not read to the end")
        )
    if cut := manifest["cut_documents"]:
        print(f"{cut:,} document(s) longer than {document_tokenizer.MAX_TOKENS:,} tokens were split")
    if lost := manifest["skipped_documents"] + manifest["empty_documents"]:
        print(f"{lost:,} document(s) skipped: unreadable, or without tokens")
    print(f"\nWhat the vocabulary does to {len(lines)} lines of the text ([UNK: ...] is not in the vocabulary):")
    for line, tokens in zip(lines, shown(lines, words), strict=True):
        print(f"  {line}\n      {tokens}")
    tokens, unknown = (sum(split[key] for split in manifest["splits"].values()) for key in ("tokens", "unknown"))
    share = unknown / tokens
    print(f"\nUnknown tokens: {share:.3%}")
    if share > _UNKNOWN:
        say_warning(
            f"{share:.1%} of the tokens are [UNK], from which the model learns nothing. Are the vocabulary, --cased "
            "and --strip_accents right for this text? Without --vocab, a vocabulary is trained on the text"
        )
    if manifest["settings"]["vocab"].startswith("trained") and (advice := too_large(words.size, tokens)):
        say_warning(advice)
    print(
        f"Shards, manifest.json, vocab.txt and tokenizer.json are in {out}\n"
        f"Next, train a small model in a few minutes: "
        f"{command()} pretrain --config=quickstart --workdir=runs/first --config.data.dir={out}"
    )


def say_kept(out: pathlib.Path, there: Letters, asked: Letters) -> None:
    """Prints how a finished folder's settings for letters differ from those that a new folder would get."""
    differing = [name for name in ("cased", "strip_accents") if getattr(there, name) != getattr(asked, name)]
    if differing:
        flags = " ".join(f"--{name}={getattr(there, name)}" for name in differing)
        print(
            f"It was made with {flags} ({there}), which this command does not have. A new folder would treat letters "
            f"differently ({asked}): for that, choose another --out, or delete {out}"
        )


def too_large(size: int, tokens: int) -> str:
    """A warning if a text with this many tokens is too short for a vocabulary of this size; else "".

    By Zipf's law, the piece of rank r occurs in a share of 1 / (r ln size) of the tokens.
    """
    rarest = tokens / (size * math.log(size))
    if rarest >= _OFTEN:
        return ""
    fits = fitting(tokens)
    remedy = f"--vocab_size={fits} would suit this text, or take" if fits >= _LEAST else "Take"
    return (
        f"the vocabulary is large for this text: {size:,} pieces for {tokens:,} tokens. By Zipf's law its rarest "
        f"pieces occur {rarest:.2g} times, and a model learns little about a piece that occurs fewer than {_OFTEN} "
        f"times. {remedy} more text: {size:,} pieces need {_OFTEN * size * math.log(size):,.0f} tokens"
    )


def fitting(tokens: int) -> int:
    """The largest vocabulary whose rarest pieces occur _OFTEN times in this many tokens, rounded to two digits."""
    size = 2.0
    for _ in range(50):  # size = tokens / (_OFTEN ln size)
        size = max(2.0, tokens / (_OFTEN * math.log(size)))
    digits = max(0, len(str(int(size))) - 2)
    return int(size) // 10**digits * 10**digits


def say_warning(text: str) -> None:
    print(f"WARNING: {text}", flush=True)
