"""Timelines of a small model, for the stacking tests."""

import dataclasses

from bert_fast import bert
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.schedule import Schedule

TINY = bert.Config(100, 3, 16, 2, 8, 32, 16, norm="pre", pooler=True, dropout=0.0, attention_dropout=0.0)
GONG = Schedule(8e-4, 400_000, warmup_steps=10_000, start=1e-7)


def plain(model=TINY, steps=400_000, phases=((16, 1.0),), schedule=GONG, slots=2):
    """The timeline before a method changes it: one stage per phase."""
    program = Program(model, whole(model.depth), 4, 1, 0, slots, "mlm")
    return tuple(
        Stage(f"{length}-tokens", dataclasses.replace(program, seq_len=length), round(share * steps), schedule)
        for length, share in phases
    )


def of_depth(depth, **changes):
    return dataclasses.replace(TINY, depth=depth, **changes)
