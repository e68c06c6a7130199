"""Damage in each kind of file that this project writes: a flipped bit, a missing end, a missing file."""

import pathlib
import random
from collections.abc import Callable, Sequence

from bert_fast import BadInput
from bert_fast.data import shards
from bert_fast.reporting.read import read_run
from bert_fast.train import checkpoint
from bert_fast.train.log import read_rows
from experiments.fault_types import Bench, Outcome, fault, flipped, outcome_of, replaced


def flip(
    paths: Sequence[pathlib.Path], rng: random.Random, read: Callable[[], object], expected: object = None
) -> Outcome:
    """Flips a bit in one of the files. Every byte is equally likely. `read` must raise, or return `expected`."""
    path = rng.choices(paths, [path.stat().st_size for path in paths])[0]
    content, where = flipped(path.read_bytes(), rng)
    with replaced(path, content):
        return outcome_of(f"{where} of {path.name}", read, expected)


def cut_off(paths: Sequence[pathlib.Path], rng: random.Random, read: Callable[[], object]) -> Outcome:
    """Shortens one of the files to a random length. `read` must raise."""
    path = rng.choice(paths)
    content = path.read_bytes()
    length = rng.randrange(len(content))
    with replaced(path, content[:length]):
        return outcome_of(f"{path.name} cut off after {length:,} of {len(content):,} bytes", read)


def without(paths: Sequence[pathlib.Path], rng: random.Random, read: Callable[[], object]) -> Outcome:
    """Hides one of the files. `read` must raise."""
    path = rng.choice(paths)
    with replaced(path, b""):
        path.unlink()
        return outcome_of(f"{path.name} is missing", read)


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@fault(times=300)
def flip_in_checkpoint(bench: Bench, rng: random.Random) -> Outcome:
    """The newest checkpoint must not be used. The second newest must be used instead."""
    newest, read = reading_checkpoints(bench)
    return flip(files_in(newest), rng, read, expected="the checkpoint before it")


def reading_checkpoints(bench: Bench) -> tuple[pathlib.Path, Callable[[], object]]:
    """The newest checkpoint, and a function that looks for it. It raises BadInput if the second newest is found."""
    root = bench.run / "checkpoints"
    newest, before = checkpoint.steps(root)[-1], checkpoint.steps(root)[-2]

    def read():
        said = []
        if (found := checkpoint.newest(root, said.append)) == root / str(before):
            raise BadInput(said[0] if said else "the newest checkpoint has no checksums")
        return found

    return root / str(newest), read


@fault(times=50)
def cut_off_in_checkpoint(bench: Bench, rng: random.Random) -> Outcome:
    newest, read = reading_checkpoints(bench)
    return cut_off(files_in(newest), rng, read)


@fault(times=50)
def missing_in_checkpoint(bench: Bench, rng: random.Random) -> Outcome:
    newest, read = reading_checkpoints(bench)
    return without(files_in(newest), rng, read)


@fault(times=50)
def cut_off_in_shards(bench: Bench, rng: random.Random) -> Outcome:
    return cut_off(files_in(bench.shards), rng, lambda: shards.verify(bench.shards))


@fault(times=25)
def missing_in_shards(bench: Bench, rng: random.Random) -> Outcome:
    return without(files_in(bench.shards), rng, lambda: shards.verify(bench.shards))


@fault(times=300)
def flip_in_shards(bench: Bench, rng: random.Random) -> Outcome:
    """Flips a bit in any file of a shards folder. `verify` must always raise, so no result is expected."""
    return flip(files_in(bench.shards), rng, lambda: shards.verify(bench.shards))


@fault(times=200)
def flip_in_manifest(bench: Bench, rng: random.Random) -> Outcome:
    whole = shards.read_manifest(bench.shards)
    return flip([bench.shards / "manifest.json"], rng, lambda: shards.read_manifest(bench.shards), whole)


@fault(times=150)
def flip_in_rows(bench: Bench, rng: random.Random) -> Outcome:
    path = bench.run / "metrics.jsonl"
    return flip([path], rng, lambda: read_rows(path), read_rows(path))


@fault(times=50)
def flip_in_run_folder(bench: Bench, rng: random.Random) -> Outcome:
    """Flips a bit in config.json, stages.json or summary.json. They are read as the report reads them."""
    paths = [bench.run / f"{name}.json" for name in ("config", "stages", "summary")]
    return flip(paths, rng, lambda: read_run(bench.run, "run"), read_run(bench.run, "run"))
