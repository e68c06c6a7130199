"""The lower layers stop learning late in training, as in FreezeOut (Brock et al. 2017, arXiv 1706.04983).

FreezeOut freezes layer after layer. Here all lower layers freeze at once, which is enough for an example.
"""

import dataclasses

from bert_fast import BadInput
from bert_fast.method import Method, cut
from bert_fast.plan import edit

BELOW = ("^embed/(?!word$)",)  # the word table still learns through the head, which shares it


def make(layers: float = 0.5, tail: float = 0.3) -> Method:
    """The method.

    layers: share of the layers that freeze, from the bottom. tail: share of the steps, at the end, in which they are
    frozen.
    """
    for name, share in (("layers", layers), ("tail", tail)):
        if not 0 < share < 1:
            raise BadInput(f"--config.freeze_late.{name}={share}: expected a share above 0 and below 1")

    def freeze(stage):
        program, lower = stage.program, round(layers * stage.program.model.depth)
        plan = edit(program.plan, 0, lower, frozen=True)
        frozen = dataclasses.replace(program, plan=plan, frozen_paths=BELOW)
        return dataclasses.replace(stage, name=f"{stage.name}-frozen", program=frozen)

    def stages(stages):
        total = sum(stage.steps for stage in stages)
        at, begins, result = total - round(tail * total), 0, []
        for stage in cut(stages, at):
            result.append(stage if begins < at else freeze(stage))
            begins += stage.steps
        return tuple(result)

    return Method("freeze_late", stages=stages)
