"""Settings for every test, and shards folders that several tests share."""

import contextlib
import os
import shutil
import signal

from helpers import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS"] = "2"  # for tests of a server that does not answer
os.environ["XLA_FLAGS"] = f"{xla_flags.REPRODUCIBLE} {xla_flags.QUICK_TO_COMPILE}"

import jax
import pytest

from bert_fast import storage
from bert_fast.data import shards
from bert_fast.data.masking import read_vocab
from bert_fast.train import remote
from helpers import started_runs
from helpers.bucket_server import BucketServer
from helpers.made_shards import make_folder, make_small_folder

# Compilation takes most of the tests' time, and models this small gain nothing from optimised code.
jax.config.update("jax_disable_most_optimizations", True)

# Operands must have the same rank and type: otherwise a wrong shape can give a plausible number.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


MOST_KEPT = 2**30  # bytes of compiled programs that a worker keeps between sessions


def pytest_addoption(parser):
    parser.addoption("--accept_goldens", action="store_true", help="store the current losses as golden losses")


@pytest.fixture(scope="session", autouse=True)
def compile_once(request, worker_id):
    """Keeps compiled programs in .pytest_cache, so that later sessions need not compile them again.

    If JAX's cache has a limited size, every write locks the folder and reads all of it. An unlimited cache has no
    lock. Therefore, each worker has its own unlimited cache. The processes that tests start share a limited one.
    """
    kept = request.config.cache.mkdir("compiled")
    os.environ["BERT_FAST_CACHE"] = str(kept / "processes")
    own = kept / worker_id
    if sum(path.stat().st_size for path in own.glob("*")) > MOST_KEPT:
        shutil.rmtree(own)
    jax.config.update("jax_compilation_cache_dir", str(own))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory):
    """Shards for tests that train."""
    return make_small_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture
def start_run():
    """Starts runs in separate processes: see `started_runs.start`. Kills them after the test."""
    processes = []

    def start(*arguments, **variables):
        processes.append(started_runs.start(*arguments, **variables))
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory):
    """An object store on this machine."""
    server = BucketServer(tmp_path_factory.mktemp("bucket_server"))
    yield server
    server.close()


@pytest.fixture
def bucket(bucket_server, tmp_path, monkeypatch) -> str:
    """The URL of a new bucket. Failed requests to it are repeated after a short time. The cache is in `tmp_path`."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BERT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "RETRIES", {"max_retries": 3, "initial_delay": "10ms", "max_delay": "50ms"})
    yield bucket_server.new_bucket()
    bucket_server.recover()


@pytest.fixture
def url(bucket) -> str:
    """The URL of a run in a new bucket."""
    return f"{bucket}/runs/first"


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines that a run prints about its bucket."""
    lines = []
    monkeypatch.setattr(remote, "say", lines.append)
    return lines


@pytest.fixture
def shards_url(bucket, small_shards) -> str:
    """The URL of a copy of `small_shards` in a new bucket."""
    store = storage.open(f"{bucket}/shards")
    for path in small_shards.iterdir():
        store.write(path.name, path.read_bytes())
    return store.url


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Shards for tests of examples and batches."""
    return make_folder(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def split(folder):
    return shards.Split(folder, "train")


@pytest.fixture(scope="session")
def vocab(folder):
    return read_vocab(folder)
