"""Time of a training step at BERT-base widths, compared with Hugging Face transformers in PyTorch, on a CPU.

    python -m experiments.step_speed [--depth=12] [--pairs=7]

A step is forward pass, backward pass and AdamW, with batches of 8 x 128, dropout 0.1 everywhere, float32. PyTorch is
timed twice: as users run it (logits at all positions, SDPA, torch.optim.AdamW), and with its MLM head on the predicted
positions only. The three steps take turns in one process. Writes experiments/step_speed.md. Needs
requirements-test.txt.
"""

import platform
import statistics

import jax
import torch
import transformers
from absl import app, flags

from bert_fast import bert
from bert_fast.cost.flops import step_flops
from bert_fast.method import Method, Program, Stage
from bert_fast.plan import whole
from bert_fast.planner.timing import Stepper, alternate, make_batch
from bert_fast.schedule import Schedule
from bert_fast.train import compile, initial_params
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.state import first_state
from bert_fast.train.step import make_step
from experiments.common import extremes, ratios, write_page
from experiments.timing import adamw, one_device, peak

DEPTH = flags.DEFINE_integer("depth", 12, "Layers.")
PAIRS = flags.DEFINE_integer("pairs", 7, "Rounds. Each runs every program once.")
BATCH, SEQ, SLOTS, VOCAB = 8, 128, 20, 30_522


def our_program() -> Program:
    config = bert.Config(vocab_size=VOCAB, depth=DEPTH.value)
    return Program(config, whole(config.depth), BATCH, 1, SEQ, SLOTS, "mlm")


def ours(program: Program):
    """A function that runs one step of bert_fast and blocks until it is done."""
    mesh, optimizer = one_device(), adamw(clip_norm=0.0)
    stage = Stage("speed", program, 1, Schedule(1e-4, 1))
    state = first_state(initial_params.fresh(program.model, 0, mesh), Method(), stage, optimizer, mesh)
    return Stepper(compile.Programs(make_step(Method(), optimizer, PRETRAINING), mesh), state, mesh).add(program)


def theirs(batch, gathered: bool):
    """The same step in Hugging Face transformers. `gathered`: the MLM head runs on the predicted positions only."""
    config = transformers.BertConfig(num_hidden_layers=DEPTH.value, attn_implementation="sdpa")
    model = transformers.BertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    ids, mask = torch.tensor(batch["ids"]).long(), torch.ones(BATCH, SEQ).long()
    slots, labels = torch.tensor(batch["slots"]).long(), torch.tensor(batch["labels"]).long()
    labels_BS = torch.full((BATCH, SEQ), -100).scatter(1, slots, labels)

    def step():
        optimizer.zero_grad()
        if gathered:
            x = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            x = torch.gather(x, 1, slots[..., None].expand(-1, -1, x.shape[-1]))
            loss = torch.nn.functional.cross_entropy(model.cls(x).flatten(0, 1), labels.flatten())
        else:
            loss = model(input_ids=ids, attention_mask=mask, labels=labels_BS).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main(_):
    torch.set_num_threads(2)
    program = our_program()
    batch, step, flops = make_batch(program), ours(program), step_flops(program).executed
    product, product_flops = peak()
    alone = alternate({"ours": step, "product": product}, PAIRS.value)
    rates = [product_flops / flops * ratio for ratio in ratios(alone["ours"], alone["product"])]
    median, least, most = extremes(rates)
    utilisation = [1 / median, 1 / most, 1 / least]
    runs = {"ours": step, "hf": theirs(batch, False), "hf gathered": theirs(batch, True)}
    seconds = alternate(runs, PAIRS.value)
    usual, gathered = (extremes(ratios(seconds["ours"], seconds[name])) for name in ("hf", "hf gathered"))

    lines = [
        "# A training step compared with Hugging Face and PyTorch, on a CPU",
        "",
        f"`python -m experiments.step_speed --depth={DEPTH.value} --pairs={PAIRS.value}` on {platform.machine()}, "
        f"2 threads; jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}. "
        f"{DEPTH.value} layers of width 768, batches of 8 x 128, dropout 0.1, float32, AdamW included.",
        "",
        "| time of our step / time of a step of | median | least | most |",
        "|---|---|---|---|",
        "| transformers as users run it | {:.3f} | {:.3f} | {:.3f} |".format(*usual),
        "| transformers with the MLM head on predicted positions only | {:.3f} | {:.3f} | {:.3f} |".format(*gathered),
        "",
        "Utilisation is {:.3f} (median; {:.3f} to {:.3f}): the matrix-product FLOPs per second of our step, divided by the "
        "FLOPs per second of one 3072 x 3072 float32 product in JAX. "
        "In these rounds, only our step and this product took turns.".format(*utilisation),
        "",
        f"Median seconds per step: ours {statistics.median(seconds['ours']):.2f}, transformers "
        f"{statistics.median(seconds['hf']):.2f}, transformers with the head on predicted positions only "
        f"{statistics.median(seconds['hf gathered']):.2f}.",
    ]
    text = "\n".join(lines) + "\n"
    if DEPTH.value == 12:
        write_page("step_speed", text)
    else:
        print(text)


if __name__ == "__main__":
    app.run(main)
