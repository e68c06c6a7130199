"""How much a run may use: tokens, examples, FLOPs, time or money."""

import difflib
from typing import NamedTuple

from bert_fast import BadInput
from bert_fast.cost.accelerators import TPUS

# A budget in a unit of TIMED needs the costs of steps (step_costs.py).
COUNTED = ("tokens", "examples", "flops")
TIMED = ("seconds", "chip_hours", "usd")


class Budget(NamedTuple):
    """An amount and its unit. chip: where chip_hours and usd are spent, such as "v5e". Other units have no chip.

    Tokens include padding: a step has batch size times sequence length of them.
    """

    unit: str
    amount: float
    chip: str = ""

    @property
    def timed(self) -> bool:
        """Whether the budget is an amount of reference time, or of money that buys reference time."""
        return self.unit in TIMED

    def __str__(self) -> str:
        return f"{self.unit}:{self.amount:.15g}" + (f"@{self.chip}" if self.chip else "")


def parse(text: str) -> Budget | None:
    """Parses `tokens:2e6`, `examples:1e6`, `flops:1e15`, `seconds:3600`, `chip_hours:2@v5e` or `usd:20@v5e`.

    Returns None if `text` is empty. Raises BadInput if it is not a budget.
    """
    if not text:
        return None
    unit, _, rest = text.partition(":")
    amount, _, chip = rest.partition("@")
    if unit not in (*COUNTED, *TIMED):
        near = difflib.get_close_matches(unit, (*COUNTED, *TIMED), 2, 0.4) or (*COUNTED, *TIMED)
        raise BadInput(
            f"--config.budget={text!r}: unknown unit {unit!r}: did you mean {' or '.join(near)}? "
            "A budget is UNIT:AMOUNT, such as tokens:2e6 or seconds:3600"
        )
    try:
        number = float(amount)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise BadInput(f"--config.budget={text!r}: expected an amount above 0, such as {unit}:2e6")
    on_chip = unit in ("chip_hours", "usd")
    if on_chip and chip not in TPUS:
        raise BadInput(
            f"--config.budget={text!r}: expected {unit}:AMOUNT@CHIP with one of the chips {', '.join(TPUS)}, such as "
            f"{unit}:2@v5e"
        )
    if chip and not on_chip:
        raise BadInput(f"--config.budget={text!r}: {unit} are not counted per chip: leave out @{chip}")
    if on_chip and not TPUS[chip].clock:
        known = ", ".join(name for name, one in TPUS.items() if one.clock)
        raise BadInput(
            f"--config.budget={text!r}: {unit} cannot be counted for {chip}, whose clock is unknown: expected one of "
            f"{known}"
        )
    if unit == "usd" and TPUS[chip].dollars is None:
        raise BadInput(f"--config.budget={text!r}: no list price of {chip} is known: use chip_hours")
    return Budget(unit, number, chip)
