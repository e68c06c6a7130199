"""Documents from a column of a Parquet file."""

import contextlib
import gzip
import shutil
import tempfile
from collections.abc import Iterator

from bert_fast.data.text_field import Report, document

_ROWS = 512  # read at once


def read(path: str, text_key: str, bad: Report) -> Iterator[str]:
    """The strings of column `text_key`, row by row. A file that is damaged or has no such column counts as one bad
    document.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        source = path
        if path.endswith(".gz"):  # Parquet is read from its end, but gzip can be read only from the beginning
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(gzip.open(path, "rb")), source)
        try:
            table = pq.ParquetFile(source)
            names = table.schema_arrow.names
            if text_key not in names:
                bad(path, f"no column {text_key!r}, found {names}", "Use --text_key to name the column of the text")
                return
            if (kind := table.schema_arrow.field(text_key).type) not in (pa.string(), pa.large_string(), pa.binary()):
                bad(
                    path, f"column {text_key!r} holds {kind}, expected strings", "Use --text_key to name another column"
                )
                return
            first = 0
            for batch in table.iter_batches(_ROWS, columns=[text_key]):
                for row, value in enumerate(batch.column(0).cast(pa.large_binary()).to_pylist(), first):
                    yield from document(value, f"{path}, row {row}", text_key, bad)
                first += len(batch)
        # pyarrow raises its own exceptions and also Python's, such as an OSError for a damaged page
        except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            bad(path, f"not a readable Parquet file ({reason})", "Copy or download it again")
