"""Statistics of the study, from its records: for study_pages.py and study_budgets.py."""

from collections.abc import Mapping

from bert_fast.compare import page as compared
from bert_fast.compare import records, results
from bert_fast.compare import study as studies
from bert_fast.compare.records import Record
from bert_fast.compare.study import Run, Study
from experiments.study import RECORDS
from experiments.study_words import METHODS

DENSE = "dense"


def read(part: str) -> dict[Run, Record]:
    return records.read_all(RECORDS / part)


def study_of(part: str, kept: Mapping[Run, Record]) -> Study:
    """The study that these records come from, with the arms, seeds and budgets that have run."""
    known = studies.load(part)
    arms = sorted({run.arm for run in kept}, key=[*known.arms, *sorted({run.arm for run in kept})].index)
    changes = {arm: next(r.figures["changes"] for run, r in kept.items() if run.arm == arm) for arm in arms}
    seeds = tuple(sorted({run.seed for run in kept}))
    budgets = tuple(sorted({run.budget for run in kept}, key=lambda text: float(text.partition(":")[2])))
    return Study(changes, seeds=seeds, budgets=budgets)


def summarized(part: str) -> dict[str, dict]:
    """Statistics of a part by budget, then by arm. Empty if no run is recorded."""
    if not (kept := read(part)):
        return {}
    found = results.summarize(study_of(part, kept), {run: record.figures for run, record in kept.items()})
    return {text: budget["arms"] for text, budget in found.items()}


def losses_of(about: Mapping) -> dict[int, float]:
    return {row["seed"]: row["mlm_loss"] for row in about["runs"]}


def difference(losses: Mapping[int, float], reference: Mapping[int, float]) -> str:
    """The mean difference over paired seeds, with its interval. Both map seeds to losses."""
    return compared.difference({**results.paired(losses, reference), "runs": losses}, False)


def headline() -> tuple[str, dict[str, dict]]:
    """The budget and the arms of README.md: those of the main part, and late growth, which was measured later."""
    ((text, arms),) = summarized("tier1").items()
    more = summarized("tier2_growth").get(text, {})
    return text, {**{arm: about for arm, about in more.items() if arm in METHODS}, **arms}
