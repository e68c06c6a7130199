"""Attention by cuDNN's kernel, for NVIDIA GPUs. Its dropout masks would differ from the other backends', so it is used
only in steps without attention dropout.

Axes: as in layers.py.
"""

import jax

from bert_fast.attention.plain import heads_of


def problem(shape, platform: str) -> str:
    """Why cuDNN cannot be used for this shape; "" if it can."""
    if platform not in ("gpu", "cuda"):
        return "cuDNN needs an NVIDIA GPU"
    if shape.dtype == "float32":
        return "cuDNN's attention does not support float32"
    if shape.rate:
        return "cuDNN draws its own dropout masks, so it is used only without attention dropout"
    if shape.head_size % 8 or shape.head_size > 128:
        return "cuDNN's attention is used only for head sizes that are multiples of 8 and at most 128"
    # In training: jax._src.cudnn.fused_attention_stablehlo.check_is_flash_attention.
    return "cuDNN's attention is used only for even numbers of tokens" if shape.queries % 2 or shape.keys % 2 else ""


def attend(product_BNW, bias_W, segments_BN, shape):
    """See `attention.attend`."""
    q_BQHE, k_BKHE, v_BKHE, allowed_BQK = heads_of(product_BNW, bias_W, segments_BN, shape)
    out = jax.nn.dot_product_attention(q_BQHE, k_BKHE, v_BKHE, mask=allowed_BQK[:, None], implementation="cudnn")
    return out.reshape(*out.shape[:2], -1)
