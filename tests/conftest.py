"""One small shards folder for the tests that train."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import json
import pathlib

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from bert_fast.data import shards

# Compiling is most of what these tests do, and models this small gain nothing from optimised code.
jax.config.update("jax_disable_most_optimizations", True)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_shards(folder: pathlib.Path, documents: int = 60, vocab_size: int = 83, seed: int = 0) -> pathlib.Path:
    """A shards folder of made-up documents, in which some words are much more frequent than others."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    words = [*SPECIAL, *(f"w{i}" if i % 5 else f"##c{i}" for i in range(vocab_size - len(SPECIAL)))]
    (folder / "vocab.txt").write_text("".join(word + "\n" for word in words))
    manifest = {
        "format": shards.FORMAT,
        "source": "made up",
        "token_dtype": "uint16",
        "fingerprint": f"made-up-{documents}-{vocab_size}-{seed}",
        "vocab": {
            "size": vocab_size,
            "sha256": shards.sha256(folder / "vocab.txt"),
            "cased": False,
            "strip_accents": None,
        },
        "splits": {},
    }
    for split, count in (("train", documents), ("valid", max(2, documents // 10))):
        made = []
        for _ in range(count):
            length = int(rng.integers(40, 200))
            tokens_T = 5 + np.minimum(rng.geometric(0.2, length), vocab_size - 5) - 1
            made.append(shards.Document(tokens_T.astype(np.int32), np.arange(0, length, 9, dtype=np.int32)))
        file = f"{split}-00000-of-00001.array_record"
        writer = ArrayRecordWriter(str(folder / file), "group_size:1")
        for document in made:
            writer.write(shards.encode(document, "uint16"))
        writer.close()
        lengths_D = np.array([len(document.tokens_T) for document in made], np.int32)
        np.save(folder / f"{split}-lengths.npy", lengths_D)
        entry = {"documents": count, "tokens": int(lengths_D.sum())}
        manifest["splits"][split] = {
            **entry,
            "shards": [{**_file(folder / file), **entry}],
            "lengths": _file(folder / f"{split}-lengths.npy"),
        }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _file(path: pathlib.Path) -> dict:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": shards.sha256(path)}


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory) -> pathlib.Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Programs that several tests need are compiled by the first."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
