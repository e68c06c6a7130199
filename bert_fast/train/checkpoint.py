"""Checkpoints: Orbax arrays, a JSON description, and checksums, so that a damaged one is never trained on.

    checkpoints/STEP/arrays/          Orbax: step, params, frozen, optimizer, method
    checkpoints/STEP/about.json       stage (with its program), position in the data, counts so far
    checkpoints/STEP/vocab.txt        its word pieces
    checkpoints/STEP/checksums.json   sha256 of every other file; written last

A folder takes its final name only when it is complete. Orbax itself restores flipped bits without
an error and takes an empty newest folder for a step; so neither its manager nor its listing is used.
"""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bert_fast import BadInput
from bert_fast.bert import Config, Params
from bert_fast.data.shards import sha256
from bert_fast.method import Program, Stage
from bert_fast.plan import Span
from bert_fast.schedule import Schedule
from bert_fast.train.step import TrainState, join

DESCRIBED = ("step", "version", "stage", "earlier_stages", "vocab", "data", "eval", "fingerprint", "methods", "book")


def stage_to_json(stage: Stage) -> dict:
    return dataclasses.asdict(stage)


def stage_from_json(tree: dict) -> Stage:
    """The stage of a checkpoint's `about.json`: all that is needed to rebuild its model."""
    program = dict(tree["program"])
    model: dict[str, Any] = program["model"]
    model = {key: tuple(value) if isinstance(value, list) else value for key, value in model.items()}
    program["model"] = Config(**model)
    program["plan"] = tuple(Span(**span) for span in program["plan"])
    program["frozen"] = tuple(program["frozen"])
    return Stage(**{**tree, "program": Program(**program), "schedule": Schedule(**tree["schedule"])})


def _numbered(tree) -> dict:
    """A tree of any types as a dict, since Orbax would keep named tuples by position and empty nodes not at all."""
    return {f"{index:04d}": leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


def _arrays(state: TrainState) -> dict:
    tree = {
        "step": state.step,
        "params": state.params,
        "frozen": state.frozen,
        "optimizer": _numbered(state.opt_state),
        "method": _numbered(state.method),
    }
    return {name: branch for name, branch in tree.items() if jax.tree.leaves(branch)}


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))


def _main_process() -> bool:
    return jax.process_index() == 0


def _barrier(name: str):
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def save(root: pathlib.Path, state: TrainState, about: dict, vocab: bytes, keep: set[int]) -> pathlib.Path:
    """Writes `root/STEP` and then removes every other step that is not in `keep`. `vocab` is the vocab.txt.

    Raises BadInput where it cannot be written (a full disk, say); the older ones are then untouched.
    """
    step = int(state.step)
    final, part = root / str(step), root / f"{step}.part"
    try:
        if _main_process():
            for stale in root.glob("*.part"):  # of saves that were killed
                shutil.rmtree(stale, ignore_errors=True)
            part.mkdir(parents=True)
        _barrier(f"begin {step}")
        with _checkpointer() as checkpointer:
            checkpointer.save((part / "arrays").absolute(), args=ocp.args.PyTreeSave(_arrays(state)))
        if _main_process():
            (part / "about.json").write_text(json.dumps({"step": step, **about}, indent=1))
            (part / "vocab.txt").write_bytes(vocab)
            files = sorted(path for path in part.rglob("*") if path.is_file())
            sums = {str(path.relative_to(part)): sha256(path) for path in files}
            (part / "checksums.json").write_text(json.dumps(sums, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
    except (OSError, ValueError) as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = str(error).strip().splitlines()[0]
        reason = reason if len(reason) < 300 else f"{reason[:100]} ... {reason[-200:]}"
        full = any(word in str(error) for word in ("No space left", "quota"))
        raise BadInput(
            f"the checkpoint of step {step} could not be written to {final}: {reason}. "
            f"Older checkpoints are untouched ({', '.join(map(str, steps(root))) or 'there is none'}): "
            f"{'free some disk space, and' if full else 'when that is mended,'} give the same command again"
        ) from error
    _barrier(f"end {step}")
    if _main_process():
        for other in set(steps(root)) - {step, *keep}:
            shutil.rmtree(root / str(other))
    return final


def steps(root: pathlib.Path) -> list[int]:
    """The steps of which a folder lists a complete checkpoint, oldest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.name.isdigit() and (path / "checksums.json").is_file()]
    return sorted(int(path.name) for path in found)


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        sums = json.loads((folder / "checksums.json").read_text())
    except (OSError, ValueError) as error:
        return f"checksums.json cannot be read ({error})"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} has changed since it was written"
    return None


def newest(root: pathlib.Path, warn=print) -> pathlib.Path | None:
    """The newest undamaged checkpoint, None where there never was one.

    Damaged ones are passed over with one line each. Raises BadInput where all are damaged: starting
    again from nothing would hide it.
    """
    found = steps(root)
    for step in reversed(found):
        problem = damage(root / str(step))
        if problem is None:
            return root / str(step)
        warn(f"checkpoint {root / str(step)} is damaged: {problem}; trying the one before")
    if found:
        raise BadInput(f"every checkpoint in {root} is damaged: delete the folder to start again from step 0")
    return None


def find(path: str | pathlib.Path, warn=print) -> pathlib.Path:
    """The checkpoint that `--checkpoint=PATH` means: a run folder's newest good step, or one `checkpoints/STEP`.

    Raises BadInput where there is none, or where the step that was asked for is damaged.
    """
    path = pathlib.Path(path)
    if (path / "checksums.json").is_file():
        problem = damage(path)
        if problem:
            raise BadInput(f"checkpoint {path} is damaged: {problem}; give another step or the run folder")
        return path
    found = newest(path / "checkpoints", warn)
    if found is None:
        raise BadInput(
            f"no checkpoint in {path}: expected a run folder (--workdir of pretrain) or its checkpoints/STEP"
        )
    return found


def about(folder: pathlib.Path) -> dict:
    """The checkpoint's description. Raises BadInput for one of a version that described less."""
    found = json.loads((folder / "about.json").read_text())
    if missing := [name for name in DESCRIBED if name not in found]:
        raise BadInput(
            f"{folder} was written by another version of bert_fast ({found.get('version', 'unknown')}): its "
            f"description lacks {', '.join(missing)}. Go on with that version, or export it there and import it here"
        )
    return found


def shapes(folder: pathlib.Path) -> tuple[Params, Params, list]:
    """Shapes and types of the parameters that learn, of those that do not, and of the leaves of the methods' state."""
    with _checkpointer() as checkpointer:
        tree = checkpointer.metadata((folder / "arrays").absolute()).item_metadata.tree

    def of(name):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree.get(name, {}))

    return of("params"), of("frozen"), jax.tree.leaves(of("method"))


def restore(folder: pathlib.Path, target: TrainState) -> TrainState:
    """The state of a checkpoint, with the structure and shardings of `target` (arrays, or shapes with shardings)."""
    arrays = _arrays(target)
    args = ocp.checkpoint_utils.construct_restore_args(arrays)
    with _checkpointer() as checkpointer:
        restored = checkpointer.restore(
            (folder / "arrays").absolute(), args=ocp.args.PyTreeRestore(item=arrays, restore_args=args)
        )

    def branch(name, like):
        return jax.tree.unflatten(jax.tree.structure(like), list(restored.get(name, {}).values()))

    return TrainState(
        restored["step"],
        restored["params"],
        restored.get("frozen", {}),
        branch("optimizer", target.opt_state),
        branch("method", target.method),
    )


def restore_params(folder: pathlib.Path) -> Params:
    """The whole parameter tree of a checkpoint, what learned and what did not, as NumPy arrays."""
    learns, frozen, _ = shapes(folder)
    wanted = {"params": learns, **({"frozen": frozen} if frozen else {})}
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    with _checkpointer() as checkpointer:
        restored = checkpointer.restore(
            (folder / "arrays").absolute(),
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True),
        )
    return jax.tree.map(np.asarray, join(restored["params"], restored.get("frozen", {})))
