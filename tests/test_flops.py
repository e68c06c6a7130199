"""The analytic FLOP count equals the matrix products in the program that XLA compiles."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from bert_fast import bert
from bert_fast.cost.flops import dense_equivalent, forward_flops, step_flops
from bert_fast.method import Program, chain
from bert_fast.plan import Route, Span, edit, pack, whole
from bert_fast.tasks import model as tasks
from bert_fast.tasks.model import Head
from bert_fast.train import optim
from bert_fast.train.objective import PRETRAINING, make_eval_step
from bert_fast.train.step import TrainState, make_step, partition
from helpers.reference import random_batch

POST = bert.Config(
    vocab_size=150, depth=4, width=24, heads=3, head_size=8, mlp_dim=40, max_len=16, dropout=0.0, attention_dropout=0.0
)
PRE = dataclasses.replace(POST, norm="pre")
UNEVEN = {"heads": (3, 1, 2, 3), "mlp_dim": (40, 16, 8, 24)}
DENSE = whole(4)
LAMB = optim.make(optim.Optimizer("lamb", 0.9, 0.999, 1e-6, 0.01, True, 1.0))


def program_of(model, plan=DENSE, **changes):
    settings = {"batch_size": 4, "micro_batches": 1, "seq_len": 16, "slots": 3, "objective": "mlm", "frozen_paths": ()}
    return Program(model, plan, **(settings | changes))


def dot_flops(text: str) -> int:
    """FLOPs of the `dot` instructions in an unoptimised HLO module. A loop body counts once per trip.

    The branches of a conditional are added up. At most one branch of a conditional in our programs has products.
    """
    computations, entry = {}, None
    for line in text.splitlines():
        if opened := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            computations[opened[2]] = body = []
            entry = opened[2] if opened[1] else entry
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.+?) ([\w-]+)\((.*)", line):
            body.append(instruction.groups())

    def sizes(shape):
        return [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]

    def flops(name):
        shapes = {result: shape for result, shape, _, _ in computations[name]}
        total = 0
        for _, shape, opcode, rest in computations[name]:
            if opcode == "dot":
                left = sizes(shapes[re.match(r"%?([\w.-]+)", rest)[1]])
                contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", rest)[1].split(",")
                total += 2 * int(np.prod(sizes(shape))) * int(np.prod([left[int(axis)] for axis in contracted]))
            elif opcode == "while":
                condition, body = (re.search(rf"{key}=%?([\w.-]+)", rest)[1] for key in ("condition", "body"))
                (trips,) = (
                    int(arguments.split(")")[0]) for _, _, op, arguments in computations[condition] if op == "constant"
                )
                total += trips * flops(body)
            elif opcode == "conditional":
                total += sum(
                    flops(branch.strip("% "))
                    for branch in re.search(r"branch_computations=\{(.*?)\}", rest)[1].split(",")
                )
            elif opcode == "call":
                total += flops(re.search(r"to_apply=%?([\w.-]+)", rest)[1])
        return total

    return flops(entry)


def lowered_step(program, scale_ML=None, evaluate=False):
    """The program with its plan packed, and its train or evaluation step, which is lowered from shapes alone."""
    model = program.model
    batch = random_batch(model, program.batch_size, program.seq_len, program.slots)
    if "nsp" not in program.objective:
        del batch["next"], batch["cls"]
    plan, route = pack(program.plan, scale_ML)
    program = dataclasses.replace(program, plan=plan)

    def fresh():
        params, frozen = partition(bert.init(model, jax.random.key(0)), program)
        return TrainState(np.int32(0), params, frozen, LAMB.init(params), ())

    state = jax.eval_shape(fresh)
    if evaluate:
        evaluation = jax.jit(make_eval_step(chain()), static_argnums=4)
        full = dataclasses.replace(program, plan=whole(model.depth))
        return program, evaluation.lower(state.params, state.frozen, (), batch, full)
    step = jax.jit(make_step(chain(), LAMB, PRETRAINING), static_argnums=5)
    return program, step.lower(state, batch, route, np.float32(0), np.uint32(0), program)


def lowered_finetuning(program):
    """A program's fine-tuning step, lowered from shapes alone. The program's objective names the task head."""
    kind, outputs = program.objective.split(":")
    head, B, S = Head(kind, int(outputs)), program.batch_size, program.seq_len
    batch = {name: np.ones((B, S), np.int32) for name in ("ids", "types", "segments", "positions")}
    labels = {"classes": np.zeros(B, np.int32), "score": np.zeros(B, np.float32)}
    labels |= {"tags": np.zeros((B, S), np.int32), "span": np.zeros((B, 2), np.int32)}
    batch |= {"weights": np.ones(B, np.float32), "tags" if kind == "tags" else "labels": labels[kind]}

    def fresh():
        encoder = bert.init(program.model, jax.random.key(0))
        params = tasks.init(program.model, head, encoder, jax.random.key(1))
        return TrainState(np.int32(0), params, {}, LAMB.init(params), ())

    step = jax.jit(make_step(chain(), LAMB, tasks.objective(head)), static_argnums=5)
    return step.lower(jax.eval_shape(fresh), batch, Route(), np.float32(0), np.uint32(0), program)


def hlo_flops(lowered) -> int:
    return dot_flops(lowered.compiler_ir(dialect="hlo").as_hlo_text())


FROZEN = edit(DENSE, 0, 2, frozen=True)
TOKENS = edit(DENSE, 1, 3, queries=8, keys=8)
TWO_OF_THREE = np.array([[1, 0, 1, 1.0]])
EMBED = r"embed/"
CASES = {
    "dense": (program_of(POST), None),
    "pre-LN": (program_of(PRE), None),
    "pre-LN, no embedding LayerNorm": (program_of(dataclasses.replace(PRE, embed_norm=False)), None),
    "next sentence": (program_of(dataclasses.replace(POST, pooler=True), objective="mlm+nsp"), None),
    "dropout": (program_of(dataclasses.replace(POST, dropout=0.1, attention_dropout=0.1)), None),
    "untied": (program_of(dataclasses.replace(POST, tied=False)), None),
    "untied, embeddings frozen": (program_of(dataclasses.replace(POST, tied=False), frozen_paths=(EMBED,)), None),
    "tokens": (program_of(POST, TOKENS), None),
    "tokens, pre-LN": (program_of(PRE, TOKENS), None),
    "tokens, two examples per row": (program_of(PRE, edit(TOKENS, 1, 3, examples_per_row=2)), None),
    "tokens, every key": (program_of(POST, edit(DENSE, 1, 3, queries=8)), None),
    "fewer keys": (program_of(PRE, edit(DENSE, 1, 3, keys=8)), None),
    "layers": (program_of(POST), TWO_OF_THREE),
    "layers and tokens": (program_of(PRE, TOKENS), TWO_OF_THREE),
    "frozen": (program_of(POST, FROZEN), None),
    "frozen, pre-LN": (program_of(PRE, FROZEN), None),
    "frozen, layers": (program_of(POST, FROZEN), np.array([[1, 1, 0, 1.0]])),
    "frozen, next span skipped": (program_of(POST, edit(FROZEN, 2, 3, queries=8)), np.array([[1, 1, 0, 1.0]])),
    "every layer frozen": (program_of(PRE, edit(DENSE, 0, 4, frozen=True)), None),
    "frozen table": (program_of(POST, frozen_paths=(r"embed/word$",)), None),
    "frozen embeddings": (program_of(POST, frozen_paths=(EMBED,)), None),
    "frozen embeddings, pre-LN": (program_of(PRE, frozen_paths=(EMBED,)), None),
    "frozen below the heads": (
        program_of(
            dataclasses.replace(POST, pooler=True),
            edit(DENSE, 0, 4, frozen=True),
            objective="mlm+nsp",
            frozen_paths=(EMBED, "mlm/dense", "next/pooler/kernel"),
        ),
        None,
    ),
    "widths": (program_of(dataclasses.replace(POST, **UNEVEN)), None),
    "widths, tokens, frozen": (program_of(dataclasses.replace(PRE, **UNEVEN), edit(FROZEN, 1, 4, queries=8)), None),
    "micro-batches": (program_of(POST, TOKENS, micro_batches=2), np.array([[1, 0, 1, 1], [1, 1, 0, 1.0]])),
}


@pytest.mark.parametrize("case", CASES)
def test_analytic_count_equals_the_products_in_hlo(case):
    program, scale_ML = CASES[case]
    program, lowered = lowered_step(program, scale_ML)
    flops = step_flops(program)
    assert flops.recomputed == 0
    assert flops.executed == hlo_flops(lowered)


@pytest.mark.parametrize("objective", ["classes:2", "classes:3", "score:1", "tags:3", "span:2"])
@pytest.mark.parametrize(
    ("model", "micro_batches"),
    [
        (POST, 1),
        (PRE, 1),
        (dataclasses.replace(POST, **UNEVEN), 1),
        (dataclasses.replace(POST, dropout=0.1, attention_dropout=0.1), 1),
        (PRE, 2),
    ],
    ids=["post", "pre", "widths", "dropout", "micro-batches"],
)
def test_analytic_count_of_fine_tuning_equals_the_products_in_hlo(model, micro_batches, objective):
    program = program_of(model, slots=0, objective=objective, micro_batches=micro_batches)
    flops = step_flops(program)
    assert flops.recomputed == 0
    assert flops.executed == hlo_flops(lowered_finetuning(program))


@pytest.mark.parametrize("model", [POST, PRE, dataclasses.replace(POST, **UNEVEN)])
@pytest.mark.parametrize("plan", [DENSE, FROZEN])
def test_conditional_layers_recompute_their_forward_pass(model, plan):
    program, lowered = lowered_step(program_of(model, edit(plan, 0, 4, cond=True)), np.ones((1, 4)))
    flops = step_flops(program)
    assert flops.executed == step_flops(dataclasses.replace(program, plan=plan)).executed
    assert flops.executed + flops.recomputed == hlo_flops(lowered)


def test_gate_scales_the_count_of_its_layer():
    conditional = program_of(POST, edit(DENSE, 0, 4, cond=True))
    run, _ = lowered_step(program_of(POST), np.array([[1, 1, 0, 1.0]]))
    assert step_flops(conditional, [1, 1, 0, 1]).executed == step_flops(run).executed
    upper = program_of(POST, edit(DENSE, 2, 4, cond=True))  # scales of the lower layers are not read
    assert step_flops(upper, [1, 0, 0, 1]).executed == step_flops(run).executed
    half, on, off = (step_flops(conditional, [1, 1, share, 1]) for share in (0.5, 1, 0))
    assert 2 * half.executed == on.executed + off.executed
    assert 2 * half.recomputed == on.recomputed + off.recomputed


def test_evaluation_counts_one_forward_pass_of_the_whole_model():
    program, lowered = lowered_step(program_of(PRE, edit(TOKENS, 0, 1, frozen=True)), evaluate=True)
    assert forward_flops(program) == hlo_flops(lowered)


def test_dense_equivalent_is_a_dense_step_of_the_final_model():
    shallow = dataclasses.replace(POST, depth=2)
    stage = program_of(shallow, (Span(0, 1, frozen=True), Span(1, 2, queries=8)), frozen_paths=("embed/",))
    assert dense_equivalent(stage, POST) == step_flops(program_of(POST)).executed


def test_count_equals_a_value_computed_by_hand():
    # As in Chinchilla: 6 FLOPs per weight and token for the matrices, and the two products of attention.
    program = program_of(POST)
    tokens, slots, weights = 4 * 16, 4 * 3, 4 * (4 * 24 * 24 + 2 * 24 * 40)
    by_hand = 6 * (tokens * weights + 4 * 2 * tokens * 16 * 24 + slots * (24 * 24 + 24 * 256))
    assert step_flops(program).executed == by_hand


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_compiler_counts_nearly_the_same_flops_at_base_width(norm):
    model = bert.Config(vocab_size=1000, depth=2, norm=norm, max_len=128, dropout=0.0, attention_dropout=0.0)
    program, lowered = lowered_step(program_of(model, whole(2), batch_size=16, seq_len=128, slots=20))
    assert lowered.compile().cost_analysis()["flops"] == pytest.approx(step_flops(program).executed, rel=0.02)
