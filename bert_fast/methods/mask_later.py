"""3ML, "mask more and mask later": [MASK] tokens skip the lower layers, which have nothing to read from them.

Liao et al. 2022, arXiv 2211.04898. Only the abstract could be read, so every default is unverified. The paper also
masks half of the tokens: --config.data.masked_share=0.5.
"""

import dataclasses

import jax.numpy as jnp

from bert_fast import BadInput
from bert_fast.method import Method
from bert_fast.plan import drops_tokens, edit
from bert_fast.token_order import kept_first


def make(layers: float = 0.5, left_out: float = 0.8) -> Method:
    """3ML.

    layers: share of the layers, from the bottom, without [MASK] tokens.
    left_out: number of positions that these layers leave out, as a share of the prediction slots. 80 % of the predicted
        tokens become [MASK]. In each example, padding is left out first, then [MASK] tokens from the last to the first,
        then ordinary tokens from the last to the first.

    Raises BadInput for shares out of range.
    """
    for name, share in (("layers", layers), ("left_out", left_out)):
        if not 0 < share <= 1:
            raise BadInput(f"--config.mask_later.{name}={share}: expected a share above 0 and at most 1")

    def leaving_out(stage):
        program, depth = stage.program, stage.program.model.depth
        lower, kept = round(layers * depth), program.seq_len - round(left_out * program.slots)
        if drops_tokens(program.plan):
            raise BadInput(f"--config.methods: another method already leaves out tokens in stage {stage.name}")
        if depth == 1:
            return stage  # the top layer sees all positions
        if lower in (0, depth) or kept == program.seq_len:
            raise BadInput(
                f"--config.mask_later: stage {stage.name} leaves out {program.seq_len - kept} positions in {lower} "
                f"of {depth} layers, expected at least 1 of each, but not the top layer: change layers or left_out"
            )
        plan = edit(program.plan, 0, lower, queries=kept, keys=kept)
        return dataclasses.replace(stage, program=dataclasses.replace(program, plan=plan))

    def order(state, batch, program, key):
        if not drops_tokens(program.plan):
            return batch
        _, _, *framing, mask = program.model.special_ids  # [CLS] and [SEP] are kept first
        is_framing_BS = jnp.isin(batch["ids"], jnp.array(framing))
        score_BS = is_framing_BS.astype(jnp.float32) - (batch["ids"] == mask).astype(jnp.float32)
        return kept_first(score_BS, batch)

    return Method("mask_later", stages=lambda stages: tuple(map(leaving_out, stages)), order=order)
