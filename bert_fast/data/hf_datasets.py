"""Data sets of the Hugging Face Hub, and folders in the same layouts, streamed through the package `datasets`.

    hf:ORG/NAME[@REVISION][/CONFIG]:SPLIT[:COLUMN]     a data set of the Hub; its id always has one slash
    hf:FOLDER:SPLIT[:COLUMN]                           a folder; its path begins with /, ./, ../ or ~

Nothing is downloaded beforehand: a file is read while it is tokenised. After a failure, reading continues at the same
row. If the Hub cannot be reached for more than a few minutes, reading ends.
"""

import functools
import hashlib
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bert_fast import BadInput
from bert_fast.data.text_field import Report, document

TRIES = 4  # tries without progress. In each try, `huggingface_hub` sends a request up to 6 times, over 23 seconds
WAIT = 2.0  # seconds before the second try, doubled before each further one
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^/:@]+))?(/(?P<config>[^:]+))?:(?P<split>[^:]+)")
_FOLDER = re.compile(r"(?P<name>(/|\./|\.\./|~)[^:]*):(?P<split>[^:]+)")
_SYNTAX = (
    "expected hf:ORG/NAME[@REVISION][/CONFIG]:SPLIT[:COLUMN], such as "
    "hf:wikimedia/wikipedia/20231101.de:train, or hf:./FOLDER:SPLIT[:COLUMN]"
)


class HubSource(NamedTuple):
    """The files of a split with their sizes, an identity of their text, and a reader of a file's documents.

    identity: the commit of the data set, or a hash of the folder's file names and sizes. local: the folder's files.
    """

    files: dict[str, int]
    identity: str
    read: Callable[[str, Report], Iterator[str]]
    local: list[pathlib.Path]


def source(spec: str, text_key: str) -> HubSource:
    """The split that `spec` names (the part after "hf:"), as a source of documents.

    Raises BadInput for a data set, config, split or column that does not exist or may not be read, for a Hub that
    cannot be reached, and if the package `datasets` is not installed.
    """
    where, split, column = parse(spec)
    column = column or text_key
    try:
        import datasets.config
    except ImportError as error:
        raise BadInput(
            f"--source=hf:{spec}: hf: sources need the package datasets: pip install 'bert_fast[hf]', or pip install "
            "datasets"
        ) from error
    datasets.disable_progress_bars()
    datasets.config.STREAMING_READ_MAX_RETRIES = (
        1  # huggingface_hub retries each request, and `_rows` retries the whole read
    )
    name = os.path.expanduser(where["name"])
    if where["folder"]:
        if not os.path.isdir(name):
            raise BadInput(f"--source=hf:{spec}: no folder {name}: {_SYNTAX}")
        local = sorted(path for path in pathlib.Path(name).rglob("*") if path.is_file())
        identity = _folder_identity(name, local)
        revision = None
    else:
        local = []
        identity = revision = _tried(spec, name, functools.partial(_commit, name, where["revision"]))
    open_ = functools.partial(_open, datasets, name, where["config"], revision, split)
    files, stream = _tried(spec, name, open_)
    if stream.features is not None and column not in stream.features:
        raise BadInput(
            f"--source=hf:{spec}: no column {column!r}, found {list(stream.features)}: end the source with the name of "
            "the column, as in SPLIT:COLUMN, or use --text_key"
        )
    stream = stream.select_columns([column]) if stream.features is not None else stream
    sizes = _tried(spec, name, functools.partial(_sizes, name, revision, files)) if files else [0]
    if stream.num_shards != len(files):
        sizes = [sum(sizes) // stream.num_shards] * stream.num_shards
        files = [f"{name}, part {number}" for number in range(stream.num_shards)]

    def read(file: str, bad: Report) -> Iterator[str]:
        part = stream.shard(len(files), files.index(file)) if len(files) > 1 else stream
        for row, value in enumerate(_rows(spec, name, part, column)):
            yield from document(value, f"{file}, row {row}", column, bad)

    return HubSource(dict(zip(files, sizes, strict=True)), identity, read, local)


def parse(spec: str) -> tuple[dict[str, Any], str, str | None]:
    """The parts of the text after "hf:": (where, split, column). `where` has the name, revision and config, and whether
    the name is a folder.
    """
    folder = spec.startswith(("/", "./", "../", "~"))
    found = (_FOLDER if folder else _HUB).match(spec)
    rest = spec[found.end() :] if found else spec
    if found is None or (rest and not re.fullmatch(r":[^:]+", rest)):
        raise BadInput(f"--source=hf:{spec}: {_SYNTAX}")
    if "[" in found["split"]:
        raise BadInput(f"--source=hf:{spec}: a part of a split cannot be streamed: name a whole split")
    where = {"revision": None, "config": None, **found.groupdict(), "folder": folder}
    return where, where.pop("split"), rest[1:] or None


def _commit(name: str, revision: str | None) -> str:
    """The commit that a revision of a data set stands for, so that all text comes from one commit."""
    import huggingface_hub

    return huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=30).sha or ""


def _open(datasets: Any, name: str, config: str | None, revision: str | None, split: str) -> tuple[list[str], Any]:
    builder = datasets.load_dataset_builder(name, config, revision=revision)
    stream = builder.as_streaming_dataset(split=split)
    return list((builder.config.data_files or {}).get(split, [])), stream


def _sizes(name: str, revision: str | None, files: list[str]) -> list[int]:
    """Bytes of each file in its compressed form."""
    if revision is None:
        return [os.path.getsize(file) for file in files]
    import huggingface_hub

    paths = [file.removeprefix(f"hf://datasets/{name}@{revision}/") for file in files]
    found = huggingface_hub.HfApi().get_paths_info(name, paths, repo_type="dataset", revision=revision)
    size = {entry.path: getattr(entry, "size", 0) for entry in found}
    return [size.get(path, 0) for path in paths]


def _folder_identity(folder: str, files: list[pathlib.Path]) -> str:
    listed = [(str(path.relative_to(folder)), path.stat().st_size) for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def _rows(spec: str, name: str, part: Any, column: str) -> Iterator[Any]:
    """The column's values. After a failure, continues at the row where it stopped."""
    done = failures = 0
    while True:
        try:
            for row in part.skip(done) if done else part:
                if column not in row:
                    raise BadInput(
                        f"--source=hf:{spec}: no column {column!r}, found {sorted(row)}: end the source with the name "
                        "of the column, as in SPLIT:COLUMN, or use --text_key"
                    )
                done, failures = done + 1, 0
                yield row[column]
            return
        except Exception as error:
            failures += 1
            _wait_or_raise(spec, name, error, failures)


def _tried(spec: str, name: str, call: Callable[[], Any]) -> Any:
    """The result of `call`, a request to the Hub. Raises BadInput with the reason if it fails."""
    for failures in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            _wait_or_raise(spec, name, error, failures)


def _wait_or_raise(spec: str, name: str, error: Exception, failures: int) -> None:
    """Waits if another try may help. Otherwise raises BadInput, or `error` itself if it is unexpected."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import HfHubHTTPError

    if isinstance(error, BadInput):
        raise error
    causes = _causes(error)
    codes = [one.response.status_code for one in causes if isinstance(one, HfHubHTTPError) and one.response is not None]
    transient = any(code == 429 or code >= 500 for code in codes) or (
        not codes and any(isinstance(one, (ConnectionError, TimeoutError)) or _is_network(one) for one in causes)
    )
    if transient and failures < TRIES:
        time.sleep(WAIT * 2 ** (failures - 1))
        return
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    place, page = f"--source=hf:{spec}", f"{constants.ENDPOINT}/datasets/{name}"
    if transient:
        raise BadInput(
            f"{place}: {constants.ENDPOINT} cannot be read, after {failures} tries ({reason}): finished work is kept. "
            "Run the same command again to continue when the Hub can be reached"
        ) from error
    if any(isinstance(one, errors.GatedRepoError) for one in causes) or 403 in codes:
        raise BadInput(
            f"{place}: {name} may be read only by people who accepted its terms: accept them on {page}, "
            f"then run `hf auth login`, or set HF_TOKEN to your token"
        ) from error
    if any(isinstance(one, errors.RevisionNotFoundError) for one in causes):
        raise BadInput(f"{place}: {page} has no such revision: leave out @REVISION for the newest one") from error
    if 404 in codes or 401 in codes or any(isinstance(one, errors.RepositoryNotFoundError) for one in causes):
        raise BadInput(
            f"{place}: no data set at {page}, or it is private: check the name ({_SYNTAX}). To read a private one, run "
            "`hf auth login`, or set HF_TOKEN"
        ) from error
    if isinstance(error, (ValueError, FileNotFoundError, RuntimeError)):
        raise BadInput(f"{place}: {reason}") from error
    raise error


def _is_network(error: BaseException) -> bool:
    """Whether this is an error of the HTTP client: `huggingface_hub` uses httpx or httpx2, depending on its version."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
