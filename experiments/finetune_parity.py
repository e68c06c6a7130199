"""Fine-tuning here against plain PyTorch, from the same encoder with the same settings.

    python -m experiments.finetune_parity --checkpoint=runs/mini --folder=runs/parity [--tasks=mrpc,cola] [--seeds=0,1,2]
    BERT_FAST_HF=FOLDER python -m experiments.finetune_parity --folder=runs/parity     a BERT folder of Hugging Face

PyTorch fine-tunes the checkpoint's export, with transformers' AutoModelForSequenceClassification and a plain loop: the
same rows, batches, learning rates, weight decay and clipping; dropout and the new head have draws of their own, which
is why scores are compared over seeds. Runs that are finished are kept. Reads $BERT_FAST_DATA/glue; writes
experiments/finetune_parity.md. Needs requirements-test.txt.
"""

import argparse
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

from bert_fast.data.files import atomic_json
from bert_fast.tasks import batches, data, encoder, settings, sweep
from bert_fast.tasks.trainer import Trainer
from bert_fast.train.optim import Optimizer
from configs import glue

KEY = {"mrpc": "score", "cola": "matthews"}


class Adam:
    """`AdamWeightDecayOptimizer` of google-research/bert on torch parameters: no bias correction."""

    def __init__(self, model: torch.nn.Module, made: Optimizer):
        self.made = made
        self.slots = [
            # Matrices decay, biases and LayerNorm do not.
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
            if gradient is None:  # the table of a head that is not used
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
    """The metrics at the end of a run in PyTorch."""
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


def compare(task: str, args, hf: str, exported: pathlib.Path) -> dict[str, dict[str, float]]:
    """Mean and deviation over seeds of the task's metric, here and in PyTorch."""
    folder = pathlib.Path(args.folder)
    config = glue.get_config(f"task={task}")
    config.update_from_flattened_dict(
        {"data.dir": str(pathlib.Path(os.environ["BERT_FAST_DATA"], "glue")), "seeds": args.seeds}
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
    return {
        name: {"mean": statistics.fmean(found), "deviation": statistics.stdev(found)}
        for name, found in (("here", wanted), ("torch", theirs))
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="", help="one of ours; not used where BERT_FAST_HF is set")
    parser.add_argument("--folder", required=True, help="where results are kept")
    parser.add_argument("--tasks", default="mrpc,cola")
    parser.add_argument("--seeds", default="0,1,2", help="at least two")
    parser.add_argument("--rate", default="5e-5", help="the learning rate")
    args = parser.parse_args()
    hf = os.environ.get("BERT_FAST_HF", "")
    if "BERT_FAST_DATA" not in os.environ or not (hf or args.checkpoint):
        sys.exit("error: set BERT_FAST_DATA to the folder that holds glue/, and give --checkpoint or BERT_FAST_HF")
    if unknown := [task for task in args.tasks.split(",") if task not in KEY]:
        parser.error(f"--tasks: {unknown[0]!r} is none of {', '.join(KEY)}")
    if len(args.seeds.split(",")) < 2:
        parser.error(f"--seeds={args.seeds}: at least two are needed for a deviation")
    exported = pathlib.Path(hf) if hf else pathlib.Path(args.folder) / "export"
    if not exported.exists():
        command = ["export", f"--checkpoint={args.checkpoint}", f"--out={exported}", "--verify"]
        subprocess.run([sys.executable, "-m", "bert_fast", *command], check=True)
    seeds, lines = len(args.seeds.split(",")), []
    for task in args.tasks.split(","):
        found = compare(task, args, hf, exported)
        here, there = found["here"], found["torch"]
        apart = here["mean"] - there["mean"]
        noise = 2 * ((here["deviation"] ** 2 + there["deviation"] ** 2) / seeds) ** 0.5
        lines.append(
            f"| {task} | {KEY[task]} | {here['mean']:.2f} ± {here['deviation']:.2f} | {there['mean']:.2f} ± "
            f"{there['deviation']:.2f} | {apart:+.2f} | {noise:.2f} | {'yes' if abs(apart) <= noise else 'no'} |"
        )
    source = "the folder of BERT_FAST_HF" if hf else args.checkpoint
    text = f"""# Fine-tuning here and in PyTorch

`python -m experiments.finetune_parity`, {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}; from {source},
learning rate {args.rate}, seeds {args.seeds}, otherwise `configs/glue.py`. Percent on the held-out set at the end of training,
mean ± sample deviation over seeds; the noise is twice the standard error of the difference.

| task | metric | here | PyTorch | difference | noise | within |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
    pathlib.Path(__file__).with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
