"""Golden runs: losses of 50 steps at debug size, kept in golden/losses.json as float32 in hexadecimal.

    python -m pytest tests/test_golden.py --accept_goldens      stores the current losses instead of comparing

helpers/xla_flags.py pins what losses depend on: one thread, AVX2 instructions, and how XLA generates code. losses.json
names the JAX version and the processor instructions that it was made with. If both are the same here, the losses must
be equal. Otherwise the loss of the first step must agree within 1e-6 (relative), and the later losses within 1e-3 nats,
because rounding differences grow.
"""

import json
import pathlib

import numpy as np
import pytest

from helpers.golden_cases import CASES, STEPS, losses_of, machine
from helpers.tiers import tiers

KEPT = pathlib.Path(__file__).parent / "golden" / "losses.json"
FIRST, LATER = 1e-6, 1e-3  # relative, and in nats


def read() -> dict:
    return json.loads(KEPT.read_text()) if KEPT.is_file() else {"machine": machine(), "losses": {}}


def difference(found: list[float], kept: list[float], exactly: bool) -> str:
    """A description of the first difference, or "" if the losses agree."""
    if len(found) != len(kept):
        return f"{len(found)} steps instead of {len(kept)}"
    for step, (now, before) in enumerate(zip(found, kept, strict=True)):
        allowed = 0.0 if exactly else FIRST * abs(before) if step == 0 else LATER
        if not abs(now - before) <= allowed:
            return f"the loss of step {step} is {now:.9g} ({now.hex()}), it was {before:.9g} ({before.hex()})"
    return ""


# A run with dropout covers all code of a run without dropout.
QUICK = [("dense", 0.1), ("finetune", 0.1)]
MARKED = tiers(CASES, slow=[case for case in CASES if case[1]], quick=QUICK)


@pytest.mark.parametrize("case", MARKED, ids=lambda case: "-".join(map(str, case)))
def test_losses_of_every_step_match_the_golden_ones(case, small_shards, tmp_path, request):
    name, dropout = case
    found = losses_of(name, dropout, small_shards, tmp_path)
    assert len(found) >= STEPS  # EarlyBERT's search takes additional steps
    assert all(float(np.float32(loss)) == loss for loss in found)
    kept, case = read(), f"{name}, dropout {dropout}"
    if request.config.getoption("--accept_goldens"):
        assert kept["machine"] == machine() or name == CASES[0][0], "accept all cases on one machine"
        kept["machine"] = machine()
        kept["losses"][case] = [loss.hex() for loss in found]
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        return
    before = [float.fromhex(loss) for loss in kept["losses"][case]]
    problem = difference(found, before, exactly=kept["machine"] == machine())
    assert not problem, (
        f"{case}: {problem}. If a change was meant to alter the losses, accept them with --accept_goldens and say why "
        "in the commit. Otherwise it is a bug"
    )


def test_difference_names_the_first_step_that_differs():
    kept = [2.0, 1.5, 1.25]
    assert difference(kept, kept, True) == ""
    assert "step 1" in difference([2.0, 1.5 + 1e-6, 1.25], kept, True)
    assert difference([2.0 + 1e-6, 1.5 + 1e-4, 1.25], kept, False) == ""
    assert "step 0" in difference([2.0 + 1e-5, 1.5, 1.25], kept, False)
    assert "step 2" in difference([2.0, 1.5, float("nan")], kept, False)
    assert "2 steps" in difference(kept[:2], kept, False)
