"""The entry that others have to beat: dense training, with the recipe of experiments/plateau.md.

python -m experiments.speedrun baseline --track=tiny --data=SHARDS
"""

from bert_fast.configs import common, quickstart

# For each track, the number of steps in which the baseline reaches the target.
STEPS = {"tiny": 100, "base": 12_000}


def get_config(text=None):
    args = common.parse(text, track="tiny")
    config = quickstart.get_config("size=base" if args["track"] == "base" else None)
    config.steps = STEPS[args["track"]]
    config.learning_rate.warmup_steps = 20
    if args["track"] == "base":
        config.phases = "32@4096:0.3,128@1024:0.7"
        config.model.update(dtype="bfloat16", init_std=0.02)
        config.learning_rate.update(peak=2e-3, warmup_steps=500)
    return config
