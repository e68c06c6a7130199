"""What a method has learned so far: its state in a checkpoint."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bert_fast.train import checkpoint


def method_state(path: str | pathlib.Path) -> dict[str, Any]:
    """The methods' state in a checkpoint, or in the newest checkpoint of a run.

    Keys: the place of each method in the chain, as text. Leaves: NumPy arrays.
    """
    folder = checkpoint.find(path)
    wanted = {"method": checkpoint.shapes(folder).get("method", {})}
    restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)) as reader:
        found = reader.restore(
            (folder / "arrays").absolute(),
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=restore, partial_restore=True),
        )
    return dict(found["method"])
