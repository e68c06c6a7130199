"""Draws loss_and_time.png: the loss of every method against its time, relative to dense training.

    python -m docs.figures.loss_and_time

Reads the table of experiments/small_truth.md, which experiments/small_truth.py writes.
"""

import pathlib
import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).parents[2]
SEEDS = ("dense", "dense, seed 1", "dense, seed 2")
NOT_DRAWN = ("dense, post-LN",)  # a model of another kind
# Offsets of names from their dots: (dx, dy) in points.
PLACES = {"stacking + token dropping": (-60, 9), "stacking": (9, 4)}
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#d0d0d0"  # Okabe and Ito's colours; the dots also differ in shape


def read(page: pathlib.Path) -> dict[str, tuple[float, float]]:
    """For each arm in the table: its time divided by dense training's, and its loss minus dense training's."""
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in page.open() if line.startswith("|")]
    head, _, *rows = rows
    loss, time = head.index("minus dense"), head.index("seconds / dense")
    return {row[0]: (float(row[time]), float(row[loss])) for row in rows}


def sizes(page: pathlib.Path) -> str:
    """The comparison's size, in the words of the page."""
    found = re.search(r"The model has (.*?), and\s+each arm trains on (.*?) tokens", page.read_text(), re.DOTALL)
    assert found, f"{page} does not state the sizes of the model and the data"
    return f"{found[1]}, {found[2]} tokens, one seed"


def main(path: pathlib.Path):
    page = ROOT / "experiments/small_truth.md"
    arms = {name: point for name, point in read(page).items() if name not in NOT_DRAWN}
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    losses = [arms[name][1] for name in SEEDS]
    axes.axhspan(min(losses), max(losses), color=GREY, alpha=0.6, lw=0)
    axes.text(0.315, (min(losses) + max(losses)) / 2, "dense training, three seeds", va="center", fontsize=9)
    for name, (time, loss) in arms.items():
        dense = name in SEEDS
        axes.plot(time, loss, "s" if dense else "o", color=ORANGE if dense else BLUE, ms=7)
        if name not in SEEDS[1:]:
            axes.annotate(name, (time, loss), PLACES.get(name, (9, -4)), textcoords="offset points", fontsize=9)
    axes.set(
        xlim=(0.3, 1.1),
        ylim=(-0.03, 0.08),
        xlabel="time / dense training's",
        ylabel="held-out loss minus dense training's (nats)",
    )
    axes.set_title(sizes(page), fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if sys.argv[1:] else pathlib.Path(__file__).with_suffix(".png"))
