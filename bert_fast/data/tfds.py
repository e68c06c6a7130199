"""Data sets of tensorflow-datasets, prepared as ArrayRecord and read without TensorFlow."""

import contextlib
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bert_fast import BadInput
from bert_fast.data.text_field import Report, document

_ROWS = 512  # read at once
_SAMPLE = 32  # number of examples from which a data set's text size is estimated


class TfdsSource(NamedTuple):
    """A data set split: the approximate bytes of its text, a hash that identifies it, and a reader of its documents."""

    bytes: int
    identity: str
    read: Callable[[str, Report], Iterator[str]]


def source(spec: str, data_dir: str | None) -> TfdsSource:
    """The split `NAME[/CONFIG][:VERSION]:SPLIT` as a source of documents. Raises BadInput as `examples` does."""
    rows, info, name, split = _tfds(spec, data_dir, "--source")

    def read(text_key: str, bad: Report) -> Iterator[str]:
        for i, row in enumerate(_each(rows)):
            if text_key not in row:
                raise BadInput(
                    f"{name}: no feature {text_key!r}, found {sorted(row)}: "
                    "use --text_key to name the feature of the text"
                )
            yield from document(row[text_key], f"{name}, example {i}", text_key, bad)

    sample = rows.__getitems__(range(0, len(rows), -(-len(rows) // _SAMPLE)))
    size = sum(len(value) for row in sample for value in row.values() if isinstance(value, (bytes, str)))
    identity = hashlib.sha256(f"{info.full_name}:{split}:{len(rows)}".encode()).hexdigest()[:16]
    return TfdsSource(size * len(rows) // len(sample), identity, read)


def examples(spec: str, data_dir: str | None = None) -> Iterator[dict]:
    """The examples of the split `NAME[/CONFIG][:VERSION]:SPLIT`, prepared as ArrayRecord first if necessary.

    Raises BadInput if the data set does not exist, or if its preparation needs a package that is not installed.
    Many data sets need TensorFlow; without it, tensorflow-datasets reports them as "not found".
    """
    return _each(_tfds(spec, data_dir, "--config.data.dir")[0])


def _each(rows) -> Iterator[dict]:
    for first in range(0, len(rows), _ROWS):
        yield from rows.__getitems__(range(first, min(first + _ROWS, len(rows))))


def _tfds(spec: str, data_dir: str | None, option: str) -> tuple[Any, Any, str, str]:
    """The examples of the split that `spec` names, the data set's info, and the two parts of `spec`: name and split."""
    with contextlib.redirect_stdout(io.StringIO()):  # the import may print a list of all data sets
        import tensorflow_datasets as tfds

    name, _, split = spec.rpartition(":")
    if not name:
        raise BadInput(f"{option}=tfds:{spec}: expected tfds:NAME[/CONFIG][:VERSION]:SPLIT, such as tfds:lm1b:train")
    where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    without = (
        f"or prepare the data set elsewhere with file_format='array_record' and copy it into {where} (or the folder "
        f"that TFDS_DATA_DIR{' or --tfds_data_dir' if option == '--source' else ''} names): reading the copy needs no "
        "other package"
    )
    if option == "--source":
        without += (
            ". Or take it from the Hugging Face Hub, which needs no TensorFlow, as in "
            "--source=hf:wikimedia/wikipedia/20231101.en:train"
        )
    try:
        rows: Any = tfds.data_source(name, split=split, data_dir=data_dir)
        info = tfds.builder(name, data_dir=data_dir, file_format="array_record").info
    except tfds.core.DatasetNotFoundError as error:
        # A builder that fails to import is reported as unknown, but its source file is still installed.
        builder = name.partition("/")[0].partition(":")[0]
        if builder.isidentifier() and any(pathlib.Path(tfds.__file__).parent.glob(f"*/{builder}*")):
            raise BadInput(
                f"{option}=tfds:{spec}: preparing {name} needs TensorFlow, although bert_fast does not: "
                f"pip install tensorflow, {without}"
            ) from error
        raise BadInput(
            f"{option}=tfds:{spec}: no data set {name!r} in {where}, and tensorflow-datasets does not know it either"
        ) from error
    except ImportError as error:
        raise BadInput(
            f"{option}=tfds:{spec}: preparing {name} needs a package that is not installed ({error}): "
            f"pip install {(error.name or 'tensorflow').partition('.')[0]}, {without}"
        ) from error
    except (ValueError, KeyError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{option}=tfds:{spec}: cannot be read from {where}: {reason}") from error
    if not len(rows):
        raise BadInput(f"{option}=tfds:{spec}: the split has no examples: expected text")
    return rows, info, name, split
