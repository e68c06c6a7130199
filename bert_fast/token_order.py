"""Sorts the tokens of each example, so that the tokens that a plan keeps come first.

Axes: B examples, S tokens of an example.
"""

import jax
import jax.numpy as jnp

MOVED = ("ids", "types", "positions", "segments")


def kept_first(score_BS, batch):
    """The batch with each example's tokens sorted by descending score. Padding comes last, and ties stay in order.

    One sort moves the arrays, and a second one inverts its permutation. Only `slots` and `cls`, the few positions
    that refer to tokens, need a gather.
    """
    key_BS = jnp.where(batch["segments"] != 0, -score_BS, jnp.inf)
    place_BS = jax.lax.broadcasted_iota(jnp.int32, key_BS.shape, 1)
    operands = (key_BS, *(batch[name] for name in MOVED), place_BS)
    _, *moved, order_BS = jax.lax.sort(operands, dimension=1, is_stable=True, num_keys=1)
    _, new_place_BS = jax.lax.sort((order_BS, place_BS), dimension=1, num_keys=1)
    batch = {**batch, **dict(zip(MOVED, moved, strict=True))}
    batch["slots"] = jnp.take_along_axis(new_place_BS, batch["slots"], axis=1)
    if "cls" in batch:
        batch["cls"] = jnp.take_along_axis(new_place_BS, batch["cls"][:, None], axis=1)[:, 0]
    return batch
