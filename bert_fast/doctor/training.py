"""Checks of what a run needs: its shards, a step compiled for all devices, and a checkpoint that can be read back."""

import contextlib
import functools
import math
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from bert_fast import bert
from bert_fast.data import batches, examples, masking, vocab
from bert_fast.data import shards as shards_folder
from bert_fast.doctor import Result, failed, passed, skipped
from bert_fast.method import Method, Program, Stage
from bert_fast.plan import Route, whole
from bert_fast.schedule import Schedule
from bert_fast.train import checkpoint as checkpoints
from bert_fast.train import compile, initial_params, optim
from bert_fast.train.description import Description
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import global_batch, make_mesh
from bert_fast.train.state import first_state
from bert_fast.train.step import TrainState, make_step

VOCAB, WIDTH, SEQ_LEN, SLOTS, EACH = 128, 128, 32, 5, 2  # sizes of the small model; EACH: examples per device
TOLERANCE = 1.0  # nats between the first loss and the loss of random guessing, log(VOCAB)


def shards(data: str) -> Result:
    """Whether every file of a shards folder is undamaged, and whether examples can be made with its vocabulary."""
    if not data:
        return skipped("shards", "no --data=DIR given")
    manifest = shards_folder.verify(data)
    words = masking.read_vocab(data)
    settings = examples.ExampleSettings(SEQ_LEN, "mlm", masked_share=0.15, whole_word=False, short_seq_prob=0.1)
    rows = batches.training_examples(shards_folder.Split(data, "train"), words, settings, 0)
    rows(0, len(rows) - 1)
    count = sum(split["tokens"] for split in manifest["splits"].values())
    return passed("shards", f"{data}: {count:,} tokens, {words.size:,} word pieces, every checksum is right")


def _program(size: int) -> tuple[Program, Stage]:
    model = bert.Config(VOCAB, 2, WIDTH, 2, WIDTH // 2, 4 * WIDTH, SEQ_LEN, dropout=0.0, attention_dropout=0.0)
    program = Program(model, whole(2), size, 1, SEQ_LEN, SLOTS, "mlm")
    return program, Stage("doctor", program, 2, Schedule(1e-3, 2))


def _batch(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "ids": rng.integers(5, VOCAB, (size, SEQ_LEN), np.int32),
        "types": np.zeros((size, SEQ_LEN), np.int32),
        "positions": np.tile(np.arange(SEQ_LEN, dtype=np.int32), (size, 1)),
        "segments": np.ones((size, SEQ_LEN), np.int32),
        "slots": np.tile(np.arange(SLOTS, dtype=np.int32), (size, 1)),
        "labels": rng.integers(5, VOCAB, (size, SLOTS), np.int32),
        "weights": np.ones((size, SLOTS), np.float32),
        "cls": np.zeros(size, np.int32),
    }


@functools.cache
def _trained() -> tuple[TrainState, Stage, float, float]:
    """The state after two steps on all devices, its stage, and the loss and seconds of the first step."""
    mesh = make_mesh(-1, 1, 1)
    program, stage = _program(EACH * jax.device_count())
    optimizer = optim.make(optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, True, 1.0))
    state = first_state(initial_params.fresh(program.model, 0, mesh), Method(), stage, optimizer, mesh)
    programs = compile.Programs(make_step(Method(), optimizer, PRETRAINING), mesh)
    batch, seen, began = global_batch(_batch(program.batch_size // jax.process_count()), mesh), [], time.monotonic()
    with contextlib.closing(programs):
        for _ in range(2):
            arguments: tuple[Any, ...] = (state, batch, Route(), 1e-3, 0)
            if not programs.has(program, state, Route()):
                programs.add(program, *arguments)
            state, metrics = programs(program, *arguments)
            seen.append((float(jax.device_get(metrics)["loss"]), time.monotonic() - began))
    return state, stage, *seen[0]


def step() -> Result:
    """Takes two steps of a small model on all devices. The first is compiled."""
    _, _, loss, seconds = _trained()
    found = f"first loss {loss:.2f} nats on {jax.device_count()} device(s), compiled and run in {seconds:.1f} s"
    if not math.isfinite(loss) or abs(loss - math.log(VOCAB)) > TOLERANCE:
        expected = f"expected about {math.log(VOCAB):.2f}"
        return failed(
            "step", f"{found}; {expected}", "the devices compute wrong numbers: restart or replace the machine"
        )
    return passed("step", found)


def checkpoint(folder: pathlib.Path | None) -> Result:
    """Saves the small model's state, reads it back, and compares what was read with what was saved, bit for bit."""
    state, stage, _, _ = _trained()
    words = vocab.parse("\n".join(vocab.SPECIAL).encode(), "vocab.txt", False, None)
    there = folder if folder and folder.is_dir() else None
    with tempfile.TemporaryDirectory(dir=there, prefix=".doctor-") as root:
        began = time.monotonic()
        saved = checkpoints.save(pathlib.Path(root), state, Description(step=2, stage=stage, vocab=words), set())
        if damage := checkpoints.damage(saved):
            return failed("checkpoint", damage, "the disk changes what is written to it: use another disk")
        restored = checkpoints.restore(saved, state)
        seconds = time.monotonic() - began
    same = jax.tree.map(lambda one, other: np.array_equal(np.asarray(one), np.asarray(other)), state, restored)
    if not all(jax.tree.leaves(same)):
        return failed("checkpoint", "the state that was read back differs", "use another disk, and report this")
    return passed("checkpoint", f"saved and read back bit for bit in {seconds:.1f} s")
