"""Documents from a column of a Parquet file."""

import contextlib
import gzip
import shutil
import tempfile
from collections.abc import Iterator

from bert_fast import BadInput
from bert_fast.data.text_field import Report, document

_ROWS = 512  # read at once


def read(path: str, text_key: str, bad: Report) -> Iterator[str]:
    """The strings of column `text_key`, row by row. Raises BadInput if there is no such column of strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        source = path
        if path.endswith(".gz"):  # Parquet is read from the end, gzip only from the beginning
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(gzip.open(path, "rb")), source)
        try:
            table = pq.ParquetFile(source)
            if text_key not in table.schema_arrow.names:
                raise BadInput(
                    f"{path}: no column {text_key!r}, found {table.schema_arrow.names}: "
                    "use --text_key to name the column of the text"
                )
            if (kind := table.schema_arrow.field(text_key).type) not in (pa.string(), pa.large_string(), pa.binary()):
                raise BadInput(
                    f"{path}: column {text_key!r} holds {kind}, expected strings: use --text_key to name another"
                )
            first = 0
            for batch in table.iter_batches(_ROWS, columns=[text_key]):
                for row, value in enumerate(batch.column(0).cast(pa.large_binary()).to_pylist(), first):
                    yield from document(value, f"{path}, row {row}", text_key, bad)
                first += len(batch)
        except pa.ArrowException as error:
            raise BadInput(f"{path}: not a readable Parquet file ({error}): copy or download it again") from error
