"""One training step at BERT-base widths against Hugging Face transformers and PyTorch, on this CPU.

    python -m experiments.step_speed [--depth=12] [--pairs=7]

Forward, backward and AdamW, batch 8 x 128, dropout 0.1 everywhere, float32; PyTorch as users run it (logits at
all positions, SDPA, torch.optim.AdamW), and once more with its MLM head on the predicted positions only. The
three take turns in one process. Writes experiments/step_speed.md. Needs requirements-test.txt.
"""

import pathlib
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
from bert_fast.schedule import Schedule
from bert_fast.train import compile, initial_params, optim
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import make_mesh
from bert_fast.train.state import first_state
from bert_fast.train.step import make_step
from experiments.timing import Stepper, alternate, make_batch, peak

DEPTH = flags.DEFINE_integer("depth", 12, "Layers.")
PAIRS = flags.DEFINE_integer("pairs", 7, "Rounds; each runs every program once.")
BATCH, SEQ, SLOTS, VOCAB = 8, 128, 20, 30_522


def our_program() -> Program:
    config = bert.Config(vocab_size=VOCAB, depth=DEPTH.value)
    return Program(config, whole(config.depth), BATCH, 1, SEQ, SLOTS, "mlm")


def ours(program: Program):
    """A function that runs one step and waits for it."""
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    optimizer = optim.make(optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, True, 0.0))
    stage = Stage("speed", program, 1, Schedule(1e-4, 1))
    state = first_state(initial_params.fresh(program.model, 0, mesh), Method(), stage, optimizer, mesh)
    return Stepper(compile.Programs(make_step(Method(), optimizer, PRETRAINING), mesh), state, mesh).add(program)


def theirs(batch, gathered: bool):
    """The same step by Hugging Face transformers."""
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


def shares(seconds, one: str, other: str) -> tuple[float, float, float]:
    """Median, least and largest of the pairs' ratios."""
    pairs = sorted(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
    return statistics.median(pairs), pairs[0], pairs[-1]


def main(_):
    torch.set_num_threads(2)
    program = our_program()
    batch, step, flops = make_batch(program), ours(program), step_flops(program).executed
    product, product_flops = peak()
    alone = alternate({"ours": step, "product": product}, PAIRS.value)
    rates = sorted((product_flops / p) / (flops / a) for a, p in zip(alone["ours"], alone["product"], strict=True))
    utilisation = [1 / rate for rate in (statistics.median(rates), rates[-1], rates[0])]
    runs = {"ours": step, "hf": theirs(batch, False), "hf gathered": theirs(batch, True)}
    seconds = alternate(runs, PAIRS.value)

    lines = [
        "# One training step against Hugging Face and PyTorch, on a CPU",
        "",
        f"`python -m experiments.step_speed --depth={DEPTH.value} --pairs={PAIRS.value}` on {platform.machine()}, "
        f"2 threads; jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}. "
        f"{DEPTH.value} layers of width 768, batch 8 x 128, dropout 0.1, float32, AdamW included.",
        "",
        "| ours, as a share of | median | least | most |",
        "|---|---|---|---|",
        "| transformers as users run it | {:.3f} | {:.3f} | {:.3f} |".format(*shares(seconds, "ours", "hf")),
        "| transformers, head on predicted positions only | {:.3f} | {:.3f} | {:.3f} |".format(
            *shares(seconds, "ours", "hf gathered")
        ),
        "",
        "Utilisation, the step's matrix-product FLOPs a second over those of one 3072 x 3072 float32 product by the same "
        "library, the two taking turns without PyTorch: median {:.3f} ({:.3f} to {:.3f}).".format(*utilisation),
        "",
        f"Seconds a step, median: ours {statistics.median(seconds['ours']):.2f}, transformers "
        f"{statistics.median(seconds['hf']):.2f}, gathered {statistics.median(seconds['hf gathered']):.2f}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if DEPTH.value == 12:
        (pathlib.Path(__file__).parent / "step_speed.md").write_text(text)


if __name__ == "__main__":
    app.run(main)
