"""Checkpoints: Orbax arrays, a JSON description, and checksums, so that a run does not use damaged files.

    checkpoints/STEP/arrays/          Orbax: step, params, frozen, optimizer, method
    checkpoints/STEP/about.json       a `Description`: stage, position in the data, counts so far, ...
    checkpoints/STEP/vocab.txt        the vocabulary's word pieces
    checkpoints/STEP/checksums.json   sha256 of every other file; written last

A folder gets its final name only when it is complete. Orbax's own manager and list of steps are not used:
Orbax loads files with flipped bits without an error, and takes an empty folder for the newest step.
"""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from bert_fast import BadInput, qkv, storage
from bert_fast.bert import Params
from bert_fast.data.files import rename_synced
from bert_fast.data.shards import sha256
from bert_fast.train import description, orbax_messages, remote_checkpoints
from bert_fast.train.checksums import damage
from bert_fast.train.description import Description
from bert_fast.train.step import TrainState, join

T = TypeVar("T")
TRIES = 5  # tries to read a checkpoint while a run deletes old ones
DELETED = (
    "was deleted while it was read, by a run that keeps only its newest checkpoints: give the run folder, or raise "
    "--config.checkpoint.keep in that run"
)


def optimizer_name(path) -> str:
    """Name of a leaf of the optimizer's state: the fields and keys on its path, without the index in `optax.chain`.

    Clipping has no state, so adding or removing it does not change the names.
    """
    return "/".join(str(getattr(key, "key", getattr(key, "name", ""))) for key in path if not hasattr(key, "idx"))


def method_name(path) -> str:
    """Name of a leaf of the methods' state: the method's index in the chain, then the fields and keys on its path."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path) or "state"


NAMES: Mapping[str, Callable] = {"optimizer": optimizer_name, "method": method_name}


def _named(tree, name_of: Callable) -> dict:
    """Any tree as nested dicts, keyed by the names of its leaves.

    Orbax itself stores named tuples by position, and drops empty nodes.
    """
    result: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, last = name_of(path).split("/")
        branch = result
        for parent in parents:
            branch = branch.setdefault(parent, {})
        if last in branch:
            raise ValueError(f"two leaves of the state are both named {name_of(path)}: give each its own name")
        branch[last] = leaf
    return result


def _unnamed(named: Mapping[str, Any], like, name_of: Callable):
    """The inverse of `_named`, with the structure of `like`."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(structure, [_at(named, name_of(path)) for path, _ in paths])


def _at(tree: Any, name: str):
    for part in name.split("/"):
        tree = tree[part]
    return tree


def _numbered(tree) -> dict:
    """A tree as format 1 stored it: leaves by position."""
    return {f"{index:04d}": leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


def _is_numbered(folder: pathlib.Path) -> bool:
    return json.loads((folder / "about.json").read_text()).get("format", 1) == 1


def _arrays(state: TrainState, numbered: bool = False) -> dict:
    """The arrays that Orbax stores: by name, or by position (as in format 1) if `numbered`."""
    kept = {"optimizer": state.opt_state, "method": state.method}
    branches = {name: _numbered(tree) if numbered else _named(tree, NAMES[name]) for name, tree in kept.items()}
    tree = {"step": state.step, "params": state.params, "frozen": state.frozen, **branches}
    return {name: branch for name, branch in tree.items() if jax.tree.leaves(branch)}


def not_finite(tree) -> str:
    """Name of the first leaf that holds NaN or infinity; "" if none does. Checks only this process's part of the
    arrays.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts = [part.data for part in leaf.addressable_shards] if isinstance(leaf, jax.Array) else [leaf]
        if jax.numpy.issubdtype(leaf.dtype, np.floating) and not all(np.isfinite(np.asarray(p)).all() for p in parts):
            return method_name(path)
    return ""


def _checkpointer() -> ocp.Checkpointer:
    orbax_messages.silence()
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))


def _main_process() -> bool:
    return jax.process_index() == 0


def _barrier(name: str):
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def save(root: pathlib.Path, state: TrainState, about: Description, keep: set[int], warn=print) -> pathlib.Path:
    """Writes `root/STEP`, then removes every other step that is not in `keep`, and reports those that it cannot remove.

    Raises BadInput if the state is not finite or cannot be written (a full disk, for example). Older
    checkpoints are untouched in that case.
    """
    step = about.step
    refuse_not_finite(state, f"step {step} is not saved")
    final, part = root / str(step), root / f"{step}.part"
    try:
        if _main_process():
            for stale in (*root.glob("*.part"), *root.glob("*.old")):  # left by saves that were killed
                shutil.rmtree(stale, ignore_errors=True)
            part.mkdir(parents=True)
        _barrier(f"begin {step}")
        with _checkpointer() as checkpointer:
            checkpointer.save((part / "arrays").absolute(), args=ocp.args.PyTreeSave(_arrays(state)))
        if _main_process():
            (part / "about.json").write_text(json.dumps(about.to_json(), indent=1))
            (part / "vocab.txt").write_bytes(about.vocab.content)
            files = sorted(path for path in part.rglob("*") if path.is_file())
            sums = {str(path.relative_to(part)): sha256(path) for path in files}
            (part / "checksums.json").write_text(json.dumps(sums, indent=1))
            rename_synced(part, final, old := root / f"{step}.old")
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, ValueError) as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = str(error).strip().splitlines()[0]
        reason = reason if len(reason) < 300 else f"{reason[:100]} ... {reason[-200:]}"
        full = any(word in str(error) for word in ("No space left", "quota"))
        raise BadInput(
            f"the checkpoint of step {step} could not be written to {final}: {reason}. "
            f"Older checkpoints are untouched ({', '.join(map(str, steps(root))) or 'there are none'}): "
            f"{'free some disk space' if full else 'fix the cause'}, then run the same command again"
        ) from error
    _barrier(f"end {step}")
    if _main_process():
        for other in set(steps(root)) - {step, *keep}:
            try:
                discard(root / str(other))
            except OSError as error:  # the run continues, but needs more space
                warn(f"checkpoint {other} in {root} is no longer needed, but cannot be deleted: {error}")
    return final


def discard(folder: pathlib.Path):
    """Deletes a checkpoint. Renames it first, so that a kill in between does not leave a damaged one."""
    old = folder.with_name(f"{folder.name}.old")
    folder.rename(old)
    shutil.rmtree(old)


def steps(root: pathlib.Path) -> list[int]:
    """Steps with a complete checkpoint, oldest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.name.isdigit() and _is_complete(path)]
    return sorted(int(path.name) for path in found)


def newest(root: pathlib.Path, warn=print) -> pathlib.Path | None:
    """The newest undamaged checkpoint, or None if none was ever saved.

    Skips damaged checkpoints, with a one-line warning for each. Raises BadInput if all are damaged:
    starting over silently would hide the damage.
    """
    found = steps(root)
    for step in reversed(found):
        problem = damage(root / str(step))
        if problem is None:
            return root / str(step)
        if not _is_complete(root / str(step)):  # deleted in the meantime by a run, which has newer ones
            return newest(root, warn)
        warn(f"checkpoint {root / str(step)} is damaged: {problem}; trying the previous one")
    if found:
        raise BadInput(f"every checkpoint in {root} is damaged: delete the folder to start again from step 0")
    return None


def identity(folder: pathlib.Path | None) -> dict[str, str]:
    """What distinguishes a checkpoint from others: its step, and a checksum over its checksums."""
    if folder is None:
        return {"step": "none"}
    return {"step": folder.name, "sha256": sha256(folder / "checksums.json")}


def find(path: str | pathlib.Path, warn=print) -> pathlib.Path:
    """The checkpoint that `--checkpoint=PATH` names: the newest undamaged one of a run, or a single `checkpoints/STEP`.

    Raises BadInput if there is none, or if the requested step is damaged.
    """
    path = remote_checkpoints.local(path, warn)
    if _is_complete(path):
        problem = damage(path)
        if problem and not _is_complete(path):
            raise BadInput(f"{path} {DELETED}")
        if problem:
            raise BadInput(f"checkpoint {path} is damaged: {problem}; give another step or the run folder")
        return path
    found = newest(path / "checkpoints", warn)
    if found is None:
        raise BadInput(
            f"no checkpoint in {path}: expected a run folder (--workdir of pretrain, or WORKDIR/TASK/lr=R,seed=S of "
            "finetune) or one of its checkpoints/STEP"
        )
    return found


def read(path: str | pathlib.Path, use: Callable[[pathlib.Path], T], warn=print) -> T:
    """Calls `use` with the checkpoint that `find` finds, and returns the result. If a run deletes this checkpoint
    meanwhile, takes a newer one.

    Raises BadInput as `find` does, and if `path` names a single checkpoint that is deleted.
    """
    for _ in range(TRIES):
        folder = find(path, warn)
        try:
            return use(folder)
        except Exception as error:  # if files are missing, Orbax may raise any of several exceptions
            if _is_complete(folder):
                raise
            if storage.is_url(path):  # another command has replaced the local copy
                warn(f"{folder}, the copy of {path}, was deleted while it was read: copying it again")
                continue
            if folder == pathlib.Path(path):
                raise BadInput(f"{folder} {DELETED}") from error
            warn(f"checkpoint {folder} was deleted by a run in progress while it was read: reading the newest one")
    raise BadInput(f"{path}: {TRIES} times in a row, the newest checkpoint {DELETED}")


def _is_complete(folder: pathlib.Path) -> bool:
    return (folder / "checksums.json").is_file()


def about(folder: pathlib.Path) -> Description:
    """The checkpoint's description. Raises BadInput if this version cannot read it."""
    return description.read(folder)


def shapes(folder: pathlib.Path) -> dict[str, Any]:
    """Shapes and types of a checkpoint's arrays, by name."""
    with _checkpointer() as checkpointer:
        tree = checkpointer.metadata((folder / "arrays").absolute()).item_metadata.tree
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(tree))


def branch(folder: pathlib.Path, kept: Mapping[str, Any], name: str, like):
    """The "optimizer" or "method" branch of a checkpoint's arrays or shapes, with the structure of `like`."""
    found = kept.get(name, {})
    if _is_numbered(folder):
        return jax.tree.unflatten(jax.tree.structure(like), [found[key] for key in sorted(found)])
    return _unnamed(found, like, NAMES[name])


def restore(folder: pathlib.Path, target: TrainState) -> TrainState:
    """The state in a checkpoint, with the structure and shardings of `target` (arrays, or shapes with shardings).

    Raises BadInput if the state holds NaN or infinity.
    """
    arrays = _arrays(target, _is_numbered(folder))
    args = ocp.checkpoint_utils.construct_restore_args(arrays)
    with _checkpointer() as checkpointer:
        restored = checkpointer.restore(
            (folder / "arrays").absolute(), args=ocp.args.PyTreeRestore(item=arrays, restore_args=args)
        )
    state = TrainState(
        restored["step"],
        restored["params"],
        restored.get("frozen", {}),
        branch(folder, restored, "optimizer", target.opt_state),
        branch(folder, restored, "method", target.method),
    )
    refuse_not_finite(state, f"{folder} cannot be used")
    return state


def any_not_finite(tree) -> str:
    """Like `not_finite`, but over all processes: either every process gets "", or every process gets a reason."""
    found = not_finite(tree)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        everywhere = np.atleast_1d(multihost_utils.process_allgather(np.array(bool(found))))
        return found or ("an array of another process" if everywhere.any() else "")
    return found


def refuse_not_finite(tree, consequence: str):
    """Raises BadInput on every process if any array of the tree holds NaN or infinity."""
    if found := any_not_finite(tree):
        raise BadInput(
            f"{found} is not finite (NaN or infinity), so {consequence}. Try a lower learning rate or a longer warm-up"
        )


def restore_params(folder: pathlib.Path) -> Params:
    """All parameters of a checkpoint, trained and frozen, as one tree of NumPy arrays.

    Raises BadInput if any parameter is not finite.
    """
    wanted = {name: tree for name, tree in shapes(folder).items() if name in ("params", "frozen")}
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    with _checkpointer() as checkpointer:
        restored = checkpointer.restore(
            (folder / "arrays").absolute(),
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True),
        )
    params = jax.tree.map(np.asarray, join(restored["params"], restored.get("frozen", {})))
    params = qkv.in_layers(qkv.join, params) if qkv.is_separate(params) else params
    refuse_not_finite(params, f"{folder} cannot be used")
    return params
