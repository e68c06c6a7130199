"""BERT-base on a TPU slice, with one seed. Time is counted by the TPU compiler's estimate of each step.

    bert-fast compare paper --data=SHARDS --task_data=GLUE --out=runs/paper --dry_run

--dry_run prints the price. The price is a lower bound: see `bert-fast plan`.
"""

from bert_fast.compare.study import Study
from bert_fast.configs.studies import arms

HOURS = 256  # chip-hours of a run with the larger budget: 16 chips for 16 hours


def get_study() -> Study:
    return Study(
        config="bert:size=base,seq=128,objective=mlm,norm=pre",
        changes={"model.dtype": "bfloat16", "eval.every": 10_000, "checkpoint.every": 5_000},
        arms=arms(depth=12),
        seeds=(0,),
        budgets=(f"chip_hours:{HOURS // 2}@v5e", f"chip_hours:{HOURS}@v5e"),
        tasks=("glue:task=mnli",),
        topology="v5e:4x4",
    )
