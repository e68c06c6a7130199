"""The text of the study's pages: the papers' claims, and what each page does and does not establish."""

from collections.abc import Sequence
from typing import NamedTuple


class Page(NamedTuple):
    """A page of the study.

    config: the shipped config. arms: the arms that the page shows, besides dense training. more: prefixes of arm names;
    from parts other than tier 1, the page also shows the arms with such a name. planned: the rows that the page copies
    from the table of costs in tpu_plan.md. shortfall: what did not work, and what was changed. limits: what the page
    does not establish.
    """

    title: str
    claim: str
    config: str
    arms: Sequence[str]
    more: Sequence[str]
    planned: Sequence[str]
    shortfall: str
    limits: str


PAGES = {
    "layer_drop": Page(
        "Layer dropping",
        """Progressive layer dropping ([Zhang and He 2020](https://arxiv.org/abs/2010.13369)) skips layers at random, higher ones more often,
and more of them as training progresses. Its paper reports 24 % less time per sample, training that reaches similar downstream scores 2.5
times as fast, and GLUE scores 1.1 points higher. The paper's run passed over the corpus about 186 times. "No Train No Gain"
([2023](https://arxiv.org/abs/2307.06440)) found no gain at equal budgets under one epoch; its code does not divide a layer's output by the
probability that the layer runs.""",
        "layer_drop",
        ("layer dropping", "shallower"),
        ("layer dropping",),
        ("dense", "layer dropping"),
        """The learning rate was one of the same three for every arm. The paper trains at ten times the rate of a post-LN baseline; the
baseline here is pre-LN too, and has the same rates. All four combinations of rescaling and learning rate are in `tier3`.""",
        """Whether dropping helps in models deep enough to have layers to spare. With 21 passes over a small text it gains, but no more than its
mean with one pass; whether more passes help is not known.""",
    ),
    "token_drop": Page(
        "Token dropping",
        """Token dropping ([Hou et al. 2022](https://arxiv.org/abs/2203.13240)) lets half of the tokens skip the middle layers: those whose
loss has been low. Its paper reports 25 % less pre-training time at similar downstream scores. Dropping random tokens
([random-LTD](https://arxiv.org/abs/2211.11586)) and leaving [MASK] tokens out of the lower layers
([3ML](https://arxiv.org/abs/2211.04898)) promise as much, and neither has to learn which tokens matter.""",
        "token_drop",
        ("token dropping", "shallower"),
        ("token dropping", "random token dropping", "3ML"),
        ("dense", "token dropping", "token dropping, examples_per_row=2"),
        """Every run begins with rows of 8 tokens, which have none to spare. So nothing is dropped in this first part, and nothing is saved. At
512 tokens, attention shrinks too, and more is saved ([speed](speed.md)).""",
        """That choosing tokens by their loss is useless. Random tokens ended lower, but the costs of the two arms' steps, for nearly equal
programs, were measured 5 % apart, and such an error is worth about as much ([budgets](budgets.md)). The same holds for the fraction of the
saving that is realised. Tokens chosen by frequency are in `tier3`. 3ML's paper also masks more tokens; this was not tried. The rivals have dense
training's learning rate, and were not tuned.""",
    ),
    "early_bert": Page(
        "EarlyBERT",
        """EarlyBERT ([Chen et al. 2021](https://arxiv.org/abs/2101.00063)) trains coefficients of heads and neurons for a short while, prunes
those that fall lowest, rewinds the rest to their first values, and trains the slim model. Its paper reports 35 to 45 % less time. The
model stays smaller: two thirds of the heads, 60 % of the neurons.""",
        "early_bert",
        ("EarlyBERT", "shallower"),
        ("EarlyBERT", "random ticket"),
        ("dense", "EarlyBERT, align=128"),
        """The search counts: its steps are part of the budget. Three heads per layer leave little to choose from: one of them is pruned.""",
        """Whether the ticket matters: three seeds cannot tell a random one from it, and there were only three heads per layer to choose from. Nothing
here says what the smaller model is worth where inference must be cheap.""",
    ),
    "stacking": Page(
        "Stacking and MSLT",
        """Progressive stacking ([Gong et al. 2019](https://proceedings.mlr.press/v97/gong19a.html)) trains a few layers, copies the stack on top
of itself, and trains on. MSLT ([Yang et al. 2020](https://arxiv.org/abs/2011.13635)) adds layers in stages and trains only the newest,
until a last stage trains all; its abstract reports 110 % more speed. In "No Train No Gain" ([2023](https://arxiv.org/abs/2307.06440))
stacking had the lowest training loss of three methods at every budget, but at the largest budget almost no gap to the baseline was left.""",
        "stacking",
        ("stacking", "MSLT, longer first stage", "shallower"),
        ("stacking", "MSLT", "late growth", "longer short rows"),
        ("dense", "stacking", "MSLT"),
        """In the released recipe of stacking, the learning rate is still above 0 at the end. At a fixed budget, stacking would then have an
unfinished schedule, and dense training a finished one. So here every arm follows the run's single schedule, which ends at 0
(`stacking.learning_rate=run`). The released schedule is in `tier3`.

The shares of MSLT's stages could not be read in its paper. With equal shares (the default here), its first layers are frozen before they have
learned from context, and the model stays near the loss of a unigram model (*MSLT* in the table of learning rates above). So the arm has a
longer first stage, with all rows of 8 tokens. These rows alone do not explain why it loses: dense training that spends as long on them
(*longer short rows*) ends far below it. Equal shares are also in `tier3`.

*Late growth* ([Bu 2025](https://arxiv.org/abs/2511.04981)) was meant as a rival: stacking with a single, late step from one layer to all. At this
budget it ended below every method and below the shallower model; so it has a config, `late_growth`, and a part of its own, `tier2_growth`. At twice
the budget, three seeds cannot tell it from the shallower model or from stacking with token dropping ([budgets](budgets.md)). Other shares of the
steps were not tried.""",
        """Anything about 12 layers and more, where there is more to grow. Late growth was not tried at smaller budgets. The rivals have dense
training's learning rate, and were not tuned.""",
    ),
    "combined": Page(
        "Methods together",
        """No paper combines these methods. Stacking saves layers at the start, token dropping saves tokens throughout, and they change
different things, so their savings multiply. Late growth, a rival of stacking ([stacking](stacking.md)), was combined with token dropping in the same
way (`tier2_growth`).""",
        "combined",
        ("stacking + token dropping", "stacking", "token dropping", "shallower"),
        ("late growth + token dropping",),
        ("dense", "all four, neurons=layer, examples_per_row=2"),
        """The combination of all four (`combined:all`) is not part of the study: on one seed at 12 layers of width 128 it ended 0.03 nats
above dense training in a third of its time. On words hidden by [MASK], both were still near the loss of a unigram model
([LOG](LOG.md), "Losses of the small-scale test").""",
        """That no pair is better: no others were tried. Stacking with token dropping was chosen beforehand, from one seed of an earlier comparison.
Late growth with token dropping was chosen after late growth alone had been measured. The planner has no row for the pairs; the second row above is
all four methods (`combined:all`).""",
    ),
}

# For the table of README.md: what is skipped, and the saving of time that the paper reports.
METHODS = {
    "token dropping": (
        "token dropping ([2022](https://arxiv.org/abs/2203.13240))", "unimportant tokens, in the middle layers", "25 %"
    ),
    "EarlyBERT": (
        "EarlyBERT ([2021](https://arxiv.org/abs/2101.00063))", "heads and neurons outside the early-bird ticket", "35-45 %"
    ),
    "stacking": (
        "progressive stacking ([2019](https://proceedings.mlr.press/v97/gong19a.html))", "layers that have not been added yet", ""
    ),
    "MSLT, longer first stage": (
        "MSLT ([2020](https://arxiv.org/abs/2011.13635)), longer first stage", "the same, and the backward pass of finished layers", "52 %"
    ),
    "layer dropping": (
        "layer dropping ([2020](https://arxiv.org/abs/2010.13369))", "random layers, drawn in each step", "24 %"
    ),
    "stacking + token dropping": ("stacking + token dropping", "both", ""),
    "late growth": (
        "late growth ([2025](https://arxiv.org/abs/2511.04981))", "all layers but one, in the first 70 % of the steps", "80 % of the compute, in decoders"
    ),
    "late growth + token dropping": ("late growth + token dropping", "both", ""),
    "shallower": ("dense training of a shallower model", "a third of the layers, left out of the whole run", ""),
}  # fmt: skip
