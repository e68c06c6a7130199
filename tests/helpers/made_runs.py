"""Run folders and studies made without training. Configs, stages and FLOPs are real; losses and clocks are invented."""

import json
import math
import pathlib
from typing import Any

from bert_fast import methods
from bert_fast.compare import results
from bert_fast.compare.study import Run, Study
from bert_fast.cost.flops import dense_equivalent, step_flops
from bert_fast.train import step_costs, timeline
from bert_fast.train.description import stage_to_json
from bert_fast.train.step_costs import Point, StepCosts, key_of
from helpers.small_runs import make_settings, small_config

TEXT = "size=tiny,debug,norm=pre,objective=mlm"
PIECES = ["the", ",", ".", "of", "<b>&", "##ing", "a", "to", "in", "is", "was", "for"]
KEYS: dict[str, Any] = {
    "layer_drop": lambda share: {"theta": 0.5 + 0.5 * math.exp(-5 * share)},
    "token_drop": lambda share: {
        "kept": 0.5,
        "most_important": PIECES[round(2 * share) :][:8],
        "least_important": PIECES[::-1][:8],
    },
    "early_bert": lambda share: {
        "heads": [2, 1, 2, 1],
        "neurons": [round(40 - 20 * share) + layer for layer in range(4)],
        "head_distance": 0.2 * (1 - share),
        "neuron_distance": 0.3 * (1 - share),
        "neuron_distance_max": 0.4 * (1 - share),
    },
    "stacking": lambda share: {"depth": 2 if share < 0.5 else 4, "learning_layers": 2 if share < 0.5 else 4},
}


def write_run(
    folder: pathlib.Path,
    data: pathlib.Path,
    names: str = "",
    better: float = 0.0,
    fingerprint: str = "f00",
    finished: bool = True,
    evaluated: bool = True,
    costs: bool = True,
    until: int = 40,
    **changes,
) -> pathlib.Path:
    """Writes a run of 40 steps. names: its methods. better: nats below the usual loss. until: the last logged step."""
    config = small_config(
        data, TEXT, methods=names, steps=40, phases="16:1", model__depth=4, model__heads=2, log_every=5, **changes
    )
    made = make_settings(config)
    method = methods.make(made.methods)
    stages = timeline.stages(made, method)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    trees = [stage_to_json(stage) for stage in stages]
    (folder / "stages.json").write_text(json.dumps({"stages": trees}))
    if costs:
        curve = (Point(1e3, 1e-3), Point(1e9, 1.0))
        keys = [key_of(stage, made.methods, made.optimizer.name) for stage in stages]
        step_costs.write(StepCosts("measured", "a test", dict.fromkeys(keys, curve)), folder / "costs.json")

    rows, counts, step = [], dict.fromkeys(("examples", "tokens_real", "tokens_padded", "flops", "flops_dense"), 0), 0
    times = dict.fromkeys(("seconds", "compile_seconds", "eval_seconds", "save_seconds"), 0.0)
    total = sum(stage.steps for stage in stages)
    for index, stage in enumerate(stages):
        for within in range(stage.steps):
            clock = timeline.clock_of(stages, index, step, 0)
            program, _, on_L = timeline.drawn(method, stage, clock, timeline.rng_of(made.seed, step))
            step += 1
            counts["examples"] += program.batch_size
            counts["tokens_real"] += program.batch_size * program.seq_len
            counts["tokens_padded"] += program.batch_size * program.seq_len
            counts["flops"] += step_flops(program, on_L.tolist()).executed
            counts["flops_dense"] += dense_equivalent(program, made.model)
            times["seconds"] += 0.5 if step in (1, 23) else 0.01  # step 23 stalls
            times["compile_seconds"] = 1.0 + index
            if (step % 5 and within + 1 < stage.steps) or step > until:
                continue
            loss = 4 + 4 * math.exp(-step / 15) - better * step / total
            losses = {"loss": loss, "mlm_loss": loss, "mask_loss": loss, "mlm_accuracy": 0.3 * step / total}
            common = {**losses, **counts, **times, "fingerprint": fingerprint}
            keys = {
                f"{name}/{key}": value for name, _ in made.methods for key, value in KEYS[name](step / total).items()
            }
            where = {"step": step, "stage": stage.name}
            rows.append({**where, "split": "train", "layers_run": float(on_L.sum()), **common, **keys})
            if evaluated and (step % 10 == 0 or step == total):
                times["eval_seconds"] += 0.1
                rows.append({**where, "split": "valid", **common})
    write_rows(folder, rows)
    if finished:
        summary = {
            "steps": step,
            "valid": rows[-1] if evaluated else {},
            **counts,
            **times,
            "devices": "1 x cpu (data=1)",
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_rows(folder: pathlib.Path, rows: list[dict]):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# arm: (methods, nats below dense training, nats between its two seeds)
ARMS = {
    "dense": ("", 0.0, 0.01),
    "layer dropping": ("layer_drop", -0.02, 0.06),
    "tokens <b>&": ("token_drop", 0.1, 0.011),
    "all four": ("stacking,early_bert,token_drop,layer_drop", 0.3, 0.012),
}


def write_study(
    out: pathlib.Path, data: pathlib.Path, seeds=(0, 1), budgets=("tokens:1e4", "tokens:2e4"), arms=tuple(ARMS)
) -> pathlib.Path:
    """Writes a study's folder: its runs and its results."""
    changes = {arm: ({"methods": ARMS[arm][0]} if ARMS[arm][0] else {}) for arm in arms}
    study = Study(changes, seeds=seeds, budgets=budgets, tasks=("glue:task=mrpc",))
    found: dict[Run, dict[str, Any]] = {}
    for arm in arms:
        names, better, noise = ARMS[arm]
        for budget in budgets:
            for seed in seeds:
                run = Run(arm, budget, seed)
                gain = better + noise * seed + (0.5 if budget == budgets[-1] else 0)
                folder = write_run(out / run.folder, data, names, gain, seed=seed, early_bert__search=0.2)
                last = json.loads((folder / "summary.json").read_text())
                losses = {key: last["valid"][key] for key in ("mlm_loss", "mask_loss", "mlm_accuracy")}
                amounts = {"tokens": last["tokens_padded"], "flops": last["flops"], "seconds": 20.0 - 10 * better}
                found[run] = {"seed": seed, **losses, **amounts, "clock_seconds": last["seconds"], "overhead": 1.0}
                found[run]["scores"] = {"glue:task=mrpc": 80.0 + seed}
                write_scores(folder / "tasks/glue-task=mrpc", 80.0 + 10 * better)
    tree = {
        "arms": changes,
        "config": study.config,
        "changes": {},
        "seeds": list(seeds),
        "tasks": list(study.tasks),
        "costs": {"instrument": "measured", "machine": "a test", "fingerprint": "f"},
        "missing": [],
        "budgets": results.summarize(study, found),
    }
    (out / "results.json").write_text(json.dumps(tree))
    return out


def write_scores(folder: pathlib.Path, mean: float, deviation: float | None = 1.5) -> pathlib.Path:
    """Writes a results.json as finetune does."""

    def numbers(mean: float) -> dict:
        return {"mean": mean, "deviation": deviation, "median": mean}

    last = {"score": numbers(mean), "f1": numbers(mean)}
    best = {"score": numbers(mean + 1), "f1": numbers(mean + 1)}
    about = {"learning_rates": {"3e-05": {"seeds": [0, 1]}}, "chosen": "3e-05", "last": last, "best": best}
    if deviation is not None:  # None stands for a folder of an older version, which has no baseline
        about["baseline"] = {"prediction": "always 1", "score": 68.4}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"encoder": {}, "tasks": {"mrpc": about}}))
    return folder
