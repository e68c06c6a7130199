"""Settings of every test, and the shards folders that several of them share."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest
from made_shards import make_folder, make_small_folder

from bert_fast.data import shards
from bert_fast.data.masking import read_vocab_info

# Compiling is most of what these tests do, and models this small gain nothing from optimised code.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Programs that several tests need are compiled by the first."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory):
    """For tests that train."""
    return make_small_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """For tests of rows and batches."""
    return make_folder(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def split(folder):
    return shards.Split(folder, "train")


@pytest.fixture(scope="session")
def vocab(folder):
    return read_vocab_info(folder)
