"""The Beam pipeline: from files to units, which may both be in a bucket."""

import contextlib
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from bert_fast import BadInput
from bert_fast.data import corpora
from bert_fast.data import vocab as vocabulary
from experiments.beam import documents


class File(NamedTuple):
    """A file of the corpus, and its number in the order of names."""

    number: int
    path: str


def in_bucket(path: str) -> bool:
    return "://" in path


def listed(pattern: str) -> list[tuple[str, int]]:
    """Name and size of each file in a bucket that matches the pattern, in the order of names.

    Raises BadInput if the bucket cannot be read.
    """
    try:
        (match,) = FileSystems.match([pattern])
    except ValueError as error:  # raised by Beam for an unknown kind of bucket, or if the package for it is missing
        raise BadInput(f"{pattern}: {error}") from error
    except BeamIOError as error:
        raise BadInput(f"{pattern} cannot be read: {error}. Check its name, and that you may read it") from error
    return sorted((entry.path, entry.size_in_bytes) for entry in match.metadata_list)


@contextlib.contextmanager
def local(path: str) -> Iterator[str]:
    """A path on this machine to the content of the file. A file in a bucket is copied for the `with` block."""
    if not in_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        to = pathlib.Path(folder) / path.rpartition("/")[2]
        copy(path, to)
        try:
            yield str(to)
        except BadInput as error:
            raise BadInput(str(error).replace(str(to), path)) from error


def copy(path: str, to: pathlib.Path) -> None:
    """Copies a file from a bucket, without decompressing it."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file, to.open("wb") as target:
        shutil.copyfileobj(file, target)


def open_corpus(pattern: str, text_key: str) -> corpora.Corpus:
    """The corpus files:PATTERN, whose files may be in a bucket.

    Opens the corpus and raises BadInput as `prepare` does.
    """
    spec = f"files:{pattern}"
    if not in_bucket(pattern):
        return corpora.open_corpus(spec, text_key=text_key)
    files = listed(pattern)
    if not files:
        raise BadInput(f"--source={spec}: no file matches")
    for path, _ in files:
        if not path.removesuffix(".gz").endswith(corpora.KINDS):
            raise BadInput(
                f"{path}: expected a name that ends in {', '.join(corpora.KINDS)}, optionally followed by .gz"
            )

    def read(path: str, bad: corpora.Bad) -> Iterator[str]:
        with local(path) as copied:
            yield from documents.texts_of(copied, text_key, bad)

    identity = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
    return corpora.Corpus(spec, identity, lambda: [corpora.Part(*file) for file in files], read)


def blocks(file: File, text_key: str, skip_bad: bool) -> Iterator[documents.Block]:
    with local(file.path) as path:
        yield from documents.blocks(file.number, path, text_key, skip_bad)


def write_unit(
    gathered: tuple[int, Iterable[documents.EncodedBlock]], planned: documents.Plan, valid_fraction: float, units: str
) -> None:
    """Writes a unit to the folder `units`. Its .json file is written last, so a unit with a .json file is complete."""
    number, found = gathered
    if not in_bucket(units):
        documents.write_unit(number, found, planned, valid_fraction, pathlib.Path(units))
        return
    with tempfile.TemporaryDirectory() as folder:
        documents.write_unit(number, found, planned, valid_fraction, pathlib.Path(folder))
        for path in in_order(pathlib.Path(folder).iterdir()):
            with path.open("rb") as file, FileSystems.create(FileSystems.join(units, path.name)) as target:
                shutil.copyfileobj(file, target)


def in_order(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The files of units in the order in which to write them: each .json after the unit's other files."""
    return sorted(paths, key=lambda path: (path.suffix == ".json", path.name))


def fetch(units: str, folder: pathlib.Path) -> None:
    """Copies the units from a bucket to a folder on this machine. A unit's .json file is copied last."""
    paths = {pathlib.Path(path.rpartition("/")[2]): path for path, _ in listed(FileSystems.join(units, "unit-*"))}
    for name in in_order(paths):
        copy(paths[name], folder / name)


def run(
    corpus: corpora.Corpus, words: vocabulary.Vocab, units: str, *, text_key: str, skip_bad: bool,
    valid_fraction: float, unit: int, options: list[str],
) -> None:  # fmt: skip
    """Writes all units of the corpus to the folder `units`. options: flags of Beam, such as --runner."""
    files = [File(number, part.name) for number, part in enumerate(corpus.parts)]
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        read = (
            pipeline
            | "files" >> beam.Create(files)
            | "spread files" >> beam.Reshuffle()
            | "read" >> beam.FlatMap(blocks, text_key, skip_bad)
        )
        planned = (
            read
            | "sizes" >> beam.Map(lambda block: block.sizes)
            | "all sizes" >> beam.combiners.ToList()
            | "plan" >> beam.Map(documents.plan, unit)
        )
        the_plan = beam.pvalue.AsSingleton(planned)
        tokenised = (
            read
            | "spread blocks" >> beam.Reshuffle()
            | "tokenise" >> beam.Map(documents.encoded, words.content, words.cased, words.strip_accents)
            | "by unit" >> beam.FlatMap(documents.by_unit, the_plan)
        )
        numbers = planned | "numbers" >> beam.FlatMap(lambda plan: [(i, None) for i in range(len(plan.ends_U))])
        _ = (
            (tokenised, numbers)  # `numbers` adds the last unit even if it has no documents
            | "gather" >> beam.CoGroupByKey()
            | "blocks of a unit" >> beam.MapTuple(lambda number, both: (number, both[0]))
            | "write" >> beam.Map(write_unit, the_plan, valid_fraction, units)
        )
