"""The command `import`: reads a Hugging Face folder as one of our models, and saves it as a checkpoint of step 0."""

import base64
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bert_fast import BadInput, bert, command, encoder
from bert_fast.bert import Config, Params
from bert_fast.data.files import atomic_json, new_folder
from bert_fast.data.masking import prediction_slots
from bert_fast.encoder import Encoder
from bert_fast.hf import layouts, pull, tensors, tokenizer, weights
from bert_fast.hf.tokenizer import read_json
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.schedule import Schedule
from bert_fast.train import checkpoint
from bert_fast.train.description import Description
from bert_fast.train.report import say
from bert_fast.train.settings import Data, Evaluation
from bert_fast.train.step import TrainState

# Types of weights that can be converted to float32 and back without a change.
TYPES = ("float32", "float16", "bfloat16")
# Heads, and their branches in our parameters. A folder must have all tensors of a head, or none. A head without tensors
# is initialised at random.
HEADS: dict[str, str] = dict(zip(encoder.HEADS, ("mlm/", "next/pooler/", "next/next/"), strict=True))
# Embedding tables are often padded to a multiple of 128 or of a smaller number, which adds fewer than 128 rows.
# If a table has 128 extra rows or more, a warning is given.
LANES = 128
SEED = 0  # of the initialised heads
# For `evaluate --data`, as in BERT: the share of masked tokens (arXiv 1810.04805, section 3.1), and `short_seq_prob` of
# google-research/bert (create_pretraining_data.py).
MASKED_SHARE, SHORT_SEQ_PROB = 0.15, 0.1
EVALUATION = Evaluation(every=0, examples=2_000, seq_len=128, batch_size=32, seed=0)


def read(path: str | pathlib.Path, warn: Callable[[str], Any] = say) -> Encoder:
    """The model and the vocabulary of a folder, or of a model on the Hub: see `pull.find`.

    Missing heads are initialised, and reported through `warn`.

    Raises BadInput if a file, setting or tensor is missing or unsupported, or if a tensor is unknown, not finite, or of
    the wrong shape or type. The message names it.
    """
    source = pull.find(path)
    folder = source.folder
    if not (folder / "config.json").is_file():
        raise BadInput(f"no config.json in {folder}: expected a folder written by save_pretrained(DIR)")
    theirs = read_json(folder / "config.json")
    config, pad_id = layouts.config_from_hf(theirs), layouts.pad_id_of(theirs)
    layout = layouts.layout_of(config)
    vocab = tokenizer.read(folder)
    if vocab.size > config.vocab_size:
        raise BadInput(
            f"{folder}: the vocabulary has {vocab.size} word pieces, but the model's table has only "
            f"{config.vocab_size} rows: is it the vocabulary of this model?"
        )
    if layouts.position_shift(layout, pad_id) and pad_id != vocab.pad:
        raise BadInput(
            f"{folder}: pad_token_id is {pad_id} in config.json, but [PAD] is {vocab.pad} in the vocabulary: they must "
            "agree, because positions are counted from this id"
        )
    config = dataclasses.replace(config, special_ids=vocab.special)
    if config.vocab_size - vocab.size >= LANES:
        warn(
            f"{folder}: the vocabulary has {vocab.size} word pieces, but the model's table has {config.vocab_size} "
            "rows: do they belong together? The extra rows are kept but never used"
        )
    as_named = weights.read(folder)
    check_types(folder, as_named, config, pad_id)
    found = {tensors.today(name): array for name, array in as_named.items()}
    params, initialised = with_heads(found, config, pad_id)
    if initialised:
        warn(f"{source.hub or folder} has no {', no '.join(initialised)}: initialised at random")
    program, data, evaluation = program_of(config, "next-sentence head" in initialised)
    stage = Stage("imported", program, steps=0, schedule=Schedule(peak=0.0, steps=0))
    about = Description(
        step=0,
        stage=stage,
        vocab=vocab,
        data=data,
        eval=evaluation,
        imported=description(source.hub or folder.name, found, config, pad_id, initialised),
    )
    return Encoder(folder, params, about, source.hub)


def check_types(folder: pathlib.Path, found: dict[str, np.ndarray], config: Config, pad_id: int):
    """Raises BadInput for types other than TYPES, values that are not finite, and tensors that occur twice."""
    fixed, layout = tensors.constants(config, pad_id), layouts.layout_of(config)
    seen: dict[str, str] = {}
    for name, array in found.items():
        full = tensors.full_name(name, layout)
        if full in seen:
            raise BadInput(f"{folder}: {name} and {seen[full]} are the same tensor: delete one of them")
        seen[full] = name
        if full in fixed:
            continue
        if array.dtype.name not in TYPES:
            raise BadInput(f"{folder}: {name} is {array.dtype.name}, expected one of {', '.join(TYPES)}: convert it")
        if not np.isfinite(array).all():
            raise BadInput(f"{folder}: {name} contains NaN or infinite values: use another checkpoint of the model")


def with_heads(found: dict[str, np.ndarray], config: Config, pad_id: int) -> tuple[Params, tuple[str, ...]]:
    """Our parameters, and the names of the heads that had no tensors and were initialised.

    Raises BadInput as `tensors.from_hf` does.
    """
    layout, rows = layouts.layout_of(config), tensors.rows_of(config)
    there = {tensors.full_name(name, layout) for name in found}
    there |= {of for copy, of in tensors.TIED.items() if copy in there}
    names_of = {head: tensors.names_at(at, config) for head, at in HEADS.items()}
    missing = tuple(head for head, names in names_of.items() if names and not names & there)
    shapes = jax.eval_shape(make := lambda: bert.init(config, jax.random.key(SEED)))
    theirs = {name: array.astype(np.float32) if array.dtype.name in TYPES else array for name, array in found.items()}
    for name, path, change in rows:
        if any(path.startswith(HEADS[head]) for head in missing):
            zeros = np.broadcast_to(np.float32(0), tensors.leaf_at(shapes, path).shape)
            theirs[name] = tensors.theirs_from(change, zeros, config, pad_id)
    params = tensors.from_hf(theirs, config, pad_id)
    if missing:  # all checks have passed: only now use a device, and compute only these heads
        wanted = [path for _, path, _ in rows if any(path.startswith(HEADS[head]) for head in missing)]
        fresh = jax.jit(lambda: {path: tensors.leaf_at(make(), path) for path in wanted})()
        for path, leaf in fresh.items():
            *parents, last = path.split("/")
            tensors.leaf_at(params, "/".join(parents))[last] = np.asarray(leaf)
    return params, missing


def program_of(config: Config, without_next: bool) -> tuple[Program, Data, Evaluation]:
    """How to evaluate an imported model: like BERT, as far as the model's heads and length allow."""
    objective = "mlm+nsp" if config.pooler and not without_next else "mlm"
    evaluation = dataclasses.replace(EVALUATION, seq_len=min(EVALUATION.seq_len, config.max_len))
    data = Data("", objective, MASKED_SHARE, whole_word=False, short_seq_prob=SHORT_SEQ_PROB, workers=0)
    program = Program(
        model=config,
        plan=whole(config.depth),
        batch_size=evaluation.batch_size,
        micro_batches=1,
        seq_len=evaluation.seq_len,
        slots=prediction_slots(evaluation.seq_len, MASKED_SHARE),
        objective=objective,
    )
    return program, data, evaluation


def description(came: str, found: dict, config: Config, pad_id: int, initialised: tuple[str, ...]) -> dict:
    """What an export needs to write the same tensors again.

    folder: the name of the folder that was read, or NAME@COMMIT for a model of the Hub.
    tensors: the type of each tensor, by the tensor's name.
    initialised: the heads that were initialised.
    unused_positions: the rows of RoBERTa's position table that no token uses, as base64 of float32. It is empty if all
        of these rows are zero.
    """
    layout = layouts.layout_of(config)
    unused = b""
    if shift := layouts.position_shift(layout, pad_id):
        name = f"{tensors.ROOTS[layout]}.embeddings.position_embeddings.weight"
        (table,) = (array for theirs, array in found.items() if tensors.full_name(theirs, layout) == name)
        unused = table[:shift].astype(np.float32).tobytes() if np.any(table[:shift]) else b""
    return {
        "folder": came,
        "tensors": {name: array.dtype.name for name, array in found.items()},
        "initialised": list(initialised),
        "unused_positions": base64.b64encode(unused).decode(),
    }


def as_they_came(
    arrays: dict[str, np.ndarray], config: Config, pad_id: int, description: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The tensors that were imported, under their original names and in their original types."""
    layout = layouts.layout_of(config)
    arrays = {**arrays, **tensors.constants(config, pad_id)}
    if unused := base64.b64decode(description["unused_positions"]):
        name = f"{tensors.ROOTS[layout]}.embeddings.position_embeddings.weight"
        table = arrays[name].copy()
        table[: pad_id + 1] = np.frombuffer(unused, np.float32).reshape(pad_id + 1, -1)
        arrays[name] = table
    result = {}
    for name, dtype in description["tensors"].items():
        full = tensors.full_name(name, layout)
        result[name] = np.ascontiguousarray(arrays[tensors.TIED.get(full, full)].astype(dtype))
    return result


def save(imported: Encoder, out: str | pathlib.Path) -> pathlib.Path:
    """Writes a run folder with the model as `checkpoints/0`, and returns the checkpoint's folder.

    Raises BadInput if `out` is not empty, or cannot be written.
    """
    with new_folder(pathlib.Path(out)) as part:
        state = TrainState(np.zeros((), np.int32), imported.params, {}, (), ())
        checkpoint.save(part / "checkpoints", state, imported.about, set())
        # If `pretrain` tries to continue in this folder, it finds a different config and refuses.
        atomic_json(part / "config.json", {"imported": imported.origin})
    return pathlib.Path(out) / "checkpoints" / "0"


def next_commands(imported: Encoder, out: str | pathlib.Path) -> str:
    """The commands that prepare text for an imported model, evaluate the model, and pre-train it further."""
    model, start = imported.model, command()
    same = ("depth", "width", "heads", "head_size", "mlp_dim", "max_len", "type_count", "norm", "embed_norm")
    flags = " ".join(f"--config.model.{name}={getattr(model, name)}" for name in (*same, "activation", "norm_eps"))
    pairs = imported.program.objective
    return (
        f"to prepare text with its vocabulary, run `{start} prepare` with --vocab={out}/checkpoints/0/vocab.txt"
        + (" --cased" if imported.vocab.cased else "")
        + ("" if imported.vocab.strip_accents is None else f" --strip_accents={imported.vocab.strip_accents}")
        + f"\ntry: {start} evaluate --checkpoint={out} --data=SHARDS\n"
        f"     {start} pretrain --config=bert:objective={pairs} --config.init={out} \\\n"
        f"       {flags} \\\n       --config.data.dir=SHARDS --workdir=DIR"
    )
