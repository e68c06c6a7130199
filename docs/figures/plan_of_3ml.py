"""Draws plan_of_3ml.png: which tokens each layer updates in dense training and with 3ML.

    python -m docs.figures.plan_of_3ml

The plan and the order of the tokens come from the method itself.
"""

import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bert_fast import bert
from bert_fast.method import Program, Stage
from bert_fast.methods import mask_later
from bert_fast.plan import whole
from bert_fast.schedule import Schedule

TOKENS = "[CLS] the [MASK] sat on the [MASK] . [SEP]".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({token for token in TOKENS if token[0] != "["})]
DEPTH = 4
BLUE, GREY = "#0072b2", "#e6e6e6"  # Okabe and Ito's blue, which differs from grey in brightness too


def planned() -> tuple:
    """3ML's plan for these tokens, and the tokens in the order in which its layers see them."""
    model = bert.Config(
        vocab_size=len(PIECES), special_ids=(0, 1, 2, 3, 4), depth=DEPTH, width=8, heads=1, head_size=8, mlp_dim=8,
        max_len=16,
    )  # fmt: skip
    program = Program(model, whole(DEPTH), 1, 1, len(TOKENS), TOKENS.count("[MASK]"), "mlm")
    method = mask_later.make()
    (stage,) = method.stages((Stage("all", program, 1, Schedule(1e-3, 1)),))
    ids_BS = np.array([[PIECES.index(token) for token in TOKENS]], np.int32)
    place_BS = np.arange(len(TOKENS), dtype=np.int32)[None]
    batch = {"ids": ids_BS, "types": 0 * ids_BS, "positions": place_BS, "segments": 0 * ids_BS + 1}
    slots_BP = np.flatnonzero(ids_BS[0] == PIECES.index("[MASK]")).astype(np.int32)[None]
    ordered = method.order((), {**batch, "slots": slots_BP}, stage.program, None)
    return stage.program.plan, [PIECES[index] for index in np.asarray(ordered["ids"])[0]]


def draw(axes, title: str, plan, tokens):
    for span in plan:
        for layer in range(span.start, span.stop):
            for place in range(len(tokens)):
                runs = span.queries is None or place < span.queries
                axes.add_patch(plt.Rectangle((place + 0.06, layer + 0.1), 0.88, 0.8, color=BLUE if runs else GREY))
                if not runs:
                    axes.text(place + 0.5, layer + 0.5, "skips", ha="center", va="center", fontsize=7)
    axes.set(xlim=(0, len(tokens)), ylim=(0, DEPTH), title=title)
    axes.set_xticks(np.arange(len(tokens)) + 0.5, tokens, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(DEPTH) + 0.5, [f"layer {layer}" for layer in range(DEPTH)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def main(path: pathlib.Path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.9), layout="constrained")
    draw(left, "dense: every layer updates every token", whole(DEPTH), TOKENS)
    draw(right, "3ML: [MASK] tokens wait for the upper layers", *planned())
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if sys.argv[1:] else pathlib.Path(__file__).with_suffix(".png"))
