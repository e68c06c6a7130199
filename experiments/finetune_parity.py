"""Compares the scores of fine-tuning here and in plain PyTorch, from the same encoder with the same settings.

    python -m experiments.finetune_parity --checkpoint=runs/mini --folder=runs/parity [--tasks=mrpc,cola] [--seeds=0,1,2]
    BERT_FAST_HF=FOLDER python -m experiments.finetune_parity --folder=runs/parity     from a Hugging Face BERT folder

PyTorch fine-tunes the checkpoint's export with transformers' AutoModelForSequenceClassification and a plain loop. Both
sides have the same examples, batches, learning rates, weight decay and clipping. Dropout masks and the new head's
initial weights differ, so scores are compared over several seeds. Finished runs are kept. Reads $BERT_FAST_DATA/glue;
writes experiments/finetune_parity.md. Needs requirements-test.txt.
"""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import numpy as np
import torch
import transformers

from bert_fast.configs import glue
from bert_fast.data.files import atomic_json
from bert_fast.tasks import batches, data, encoder, settings, sweep
from bert_fast.tasks.trainer import Trainer
from bert_fast.train.optim import Optimizer
from experiments import common

KEY = {"mrpc": "score", "cola": "matthews"}


class Adam:
    """google-research/bert's `AdamWeightDecayOptimizer` for torch parameters, without bias correction."""

    def __init__(self, model: torch.nn.Module, made: Optimizer):
        self.made = made
        self.slots = [
            # Weight decay applies to matrices, not to biases or LayerNorm.
            (parameter, torch.zeros_like(parameter), torch.zeros_like(parameter), parameter.ndim > 1)
            for parameter in model.parameters()
        ]

    @torch.no_grad()
    def step(self, rate: float):
        made = self.made
        learns = [parameter for parameter, *_ in self.slots if parameter.grad is not None]
        torch.nn.utils.clip_grad_norm_(learns, made.clip_norm)
        for parameter, mean, square, decays in self.slots:
            gradient = parameter.grad
            if gradient is None:  # an unused head
                continue
            mean.mul_(made.b1).add_(gradient, alpha=1 - made.b1)
            square.mul_(made.b2).addcmul_(gradient, gradient, value=1 - made.b2)
            update = mean / (square.sqrt() + made.eps)
            parameter.sub_(rate * (update + made.weight_decay * parameter if decays else update))
            parameter.grad = None


def inputs(batch) -> dict[str, torch.Tensor]:
    tensors = {name: torch.tensor(batch[name]).long() for name in ("ids", "types", "segments")}
    return {"input_ids": tensors["ids"], "token_type_ids": tensors["types"], "attention_mask": tensors["segments"]}


def in_torch(folder: pathlib.Path, trainer: Trainer, rate: float, seed: int) -> dict[str, float]:
    """Fine-tunes in PyTorch, and returns the metrics at the end of training."""
    made, task, pad = trainer.settings, trainer.task, trainer.start.vocab.pad
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=task.head.outputs,
        dtype=torch.float32,
        hidden_dropout_prob=made.dropout,
        attention_probs_dropout_prob=made.dropout,
    )
    optimizer, (stage,) = Adam(model, made.optimizer), trainer.timeline(rate)
    found = batches.train_batches(task.train, trainer.widths, made.batch_size, pad, seed)
    model.train()
    for step in range(stage.steps):
        batch = next(found)
        losses_B = torch.nn.functional.cross_entropy(
            model(**inputs(batch)).logits, torch.tensor(batch["labels"]).long(), reduction="none"
        )
        weights_B = torch.tensor(batch["weights"])
        ((losses_B * weights_B).sum() / weights_B.sum()).backward()
        optimizer.step(stage.schedule(step))
    model.eval()
    logits = {}
    for split, rows in task.held_out.items():
        logits[split] = np.zeros((len(rows.ids_N), task.head.outputs), np.float32)
        for batch in batches.epoch(rows.lengths_N, trainer.widths, made.eval.batch_size, None):
            with torch.no_grad():
                of_batch = model(**inputs(batches.fill(rows, batch, made.eval.batch_size, pad))).logits.numpy()
            logits[split][batch.rows_B] = of_batch[: len(batch.rows_B)]
    return task.score(logits)


def compare(task: str, args, hf: str, exported: pathlib.Path) -> tuple[list[float], list[float]]:
    """The task's metric for each seed: first here, then in PyTorch."""
    folder = pathlib.Path(args.folder)
    config = glue.get_config(f"task={task}")
    config.update_from_flattened_dict(
        {"data.dir": str(common.data_root("glue/") / "glue"), "seeds": args.seeds}
        | {"learning_rates": args.rate, "predict_test": False, "keep": "none"}
    )
    made = settings.make(config.to_dict())
    (rate,) = made.rates_of(task)
    checkpoint = "" if hf else args.checkpoint
    ours = sweep.finetune(made, config.to_dict(), folder / task, checkpoint, hf)["tasks"][task]["runs"]
    start = encoder.load(checkpoint, hf, made)
    trainer = Trainer(data.make(task, data.read(task, made), start.vocab, made), start, made)
    theirs = []
    for seed in made.seeds:
        path = folder / f"torch/{task}/lr={rate:g},seed={seed}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_json(path, in_torch(exported, trainer, rate, seed))
        theirs.append(json.loads(path.read_text())[KEY[task]])
    wanted = [run["last"][KEY[task]] for run in ours if run["seed"] in made.seeds and run["learning_rate"] == rate]
    return wanted, theirs


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--checkpoint", default="", help="a bert_fast checkpoint; ignored if BERT_FAST_HF is set")
    parser.add_argument("--folder", required=True, help="where results are kept")
    parser.add_argument("--tasks", default="mrpc,cola")
    parser.add_argument("--seeds", default="0,1,2", help="at least two")
    parser.add_argument("--rate", default="5e-5", help="the learning rate")
    args = parser.parse_args()
    hf = os.environ.get("BERT_FAST_HF", "")
    common.data_root("glue/")
    if not (hf or args.checkpoint):
        sys.exit("error: no encoder: pass --checkpoint, or set BERT_FAST_HF to a Hugging Face BERT folder")
    tasks = common.chosen(args.tasks, ",", KEY, "task")
    seeds = len(args.seeds.split(","))
    if seeds < 2:
        parser.error(f"--seeds={args.seeds}: expected at least two seeds, because a deviation needs two")
    exported = pathlib.Path(hf) if hf else pathlib.Path(args.folder) / "export"
    if not exported.exists():
        command = ["export", f"--checkpoint={args.checkpoint}", f"--out={exported}", "--verify"]
        subprocess.run([sys.executable, "-m", "bert_fast", *command], check=True)
    lines = []
    for task in tasks:
        here, there = compare(task, args, hf, exported)
        apart = statistics.fmean(here) - statistics.fmean(there)
        noise = 2 * ((statistics.stdev(here) ** 2 + statistics.stdev(there) ** 2) / seeds) ** 0.5
        lines.append(
            f"| {task} | {KEY[task]} | {common.with_deviation(here, '.2f')} | {common.with_deviation(there, '.2f')} | "
            f"{apart:+.2f} | {noise:.2f} | {'yes' if abs(apart) <= noise else 'no'} |"
        )
    source = "the BERT_FAST_HF folder" if hf else args.checkpoint
    text = f"""# Fine-tuning here and in PyTorch

`python -m experiments.finetune_parity`, {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}. Both fine-tune
{source} with learning rate {args.rate}, seeds {args.seeds} and otherwise the settings of `configs/glue.py`. Scores are percentages on the held-out set
at the end of training, mean ± sample deviation over seeds. *noise* is twice the standard error of the difference.

| task | metric | here | PyTorch | difference | noise | within noise |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
    common.write_page("finetune_parity", text)


if __name__ == "__main__":
    main()
