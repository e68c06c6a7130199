"""FLOPs of a train step, computed from its program alone: matrix products, two FLOPs per multiply-add.

Counts what runs: the forward and backward passes over the layers, tokens, heads and neurons of the program.
Recomputation is counted separately. The optimizer and everything that is not a matrix product are left out.
Axes: as in bert.py; A = H E, the width of all heads together.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bert_fast.bert import Config
from bert_fast.method import Program
from bert_fast.plan import frozen_depth, whole


class Flops(NamedTuple):
    """FLOPs of one step over the whole batch.

    executed: those of the forward and backward passes. recomputed: those of recomputation, which `executed` leaves out.
    """

    executed: int
    recomputed: int


class Product(NamedTuple):
    """A matrix product of the forward pass.

    gradients: number of products of the same size in the backward pass: one for each operand that carries a tangent,
        which means that it depends on trained parameters.
    recomputed: whether the backward pass computes this product again if the whole block is recomputed.
    attention: whether it is a product of queries with keys, or of probabilities with values.
    """

    flops: float
    gradients: int
    recomputed: bool = False
    attention: bool = False


def step_flops(program: Program, on_L: Sequence[float] | None = None) -> Flops:
    """FLOPs of one train step of a program whose plan is packed (`plan.pack`).

    on_L: for each layer, the share of micro-batches that run it, or the probability that it runs. `on_L` is
    only read for spans with `cond`, because their plan does not say which layers run. None: all layers run.
    """
    products = list(products_of(program, on_L))
    executed = sum(product.flops * (1 + product.gradients) for product in products)
    return Flops(round(executed), round(sum(product.flops for product in products if product.recomputed)))


def forward_flops(program: Program) -> int:
    """FLOPs of one evaluation step with the same batch size: the forward pass, with every layer and token."""
    program = dataclasses.replace(program, plan=whole(program.model.depth))
    return round(sum(product.flops for product in products_of(program, None)))


def dense_equivalent(program: Program, final: Config) -> int:
    """FLOPs of a step on the same examples and prediction slots in the `final` model, with nothing dropped or
    frozen.
    """
    plan = whole(final.depth)
    return step_flops(dataclasses.replace(program, model=final, plan=plan, frozen_paths=())).executed


def products_of(program: Program, on_L: Sequence[float] | None) -> Iterator[Product]:
    """Every matrix product of the forward pass, in order."""
    config = program.model

    def learns(*paths):
        return any(not any(re.search(pattern, path) for pattern in program.frozen_paths) for path in paths)

    def dense(path, flops, tangent):
        """x . kernel: one gradient for the kernel if it learns, and one for x if x carries a tangent."""
        return Product(flops, learns(f"{path}/kernel") + tangent)

    def norm(path):
        return learns(f"{path}/scale", f"{path}/bias")

    embeds = learns("embed/word", "embed/position", "embed/type") or (config.embed_norm and norm("embed/norm"))
    tangent = embeds and frozen_depth(program.plan) == 0  # whether the vectors so far depend on trained parameters
    for span in program.plan:
        shapes = config.widths_L[span.start : span.stop]
        for offset, (heads, mlp_dim) in enumerate(shapes[: span.run]):
            share = 1.0 if on_L is None or not span.cond else on_L[span.start + offset]
            queries = program.batch_size * (program.seq_len if span.queries is None else span.queries)
            keys = program.seq_len if span.keys is None else span.keys
            seen = keys * span.examples_per_row
            for product in layer_products(config, queries, program.batch_size * keys, seen, heads, mlp_dim, tangent):
                block = product.recomputed and (span.cond or config.recompute == "block")
                again = not span.frozen and (block or (product.attention and config.recompute == "attention"))
                yield Product(product.flops * share, 0 if span.frozen else product.gradients, again)
            tangent = tangent or not span.frozen

    if config.norm == "pre":
        tangent = tangent or norm("final_norm")
    D, slots = config.width, program.batch_size * program.slots  # no slots in fine-tuning
    yield dense("mlm/dense", 2 * slots * D * D, tangent)
    hidden_tangent = tangent or learns("mlm/dense/kernel", "mlm/dense/bias") or norm("mlm/norm")
    table = "embed/word" if config.tied else "mlm/word"
    yield Product(2 * slots * D * config.table_rows, learns(table) + hidden_tangent)
    kind, _, outputs = program.objective.partition(":")
    if kind in ("classes", "score"):  # a fine-tuning head on the [CLS] vector
        yield dense("task/pooler", 2 * program.batch_size * D * D, tangent)
        yield dense("task/output", 2 * program.batch_size * D * int(outputs), True)
    if kind in ("tags", "span"):  # on every token
        yield dense("task/output", 2 * program.batch_size * program.seq_len * D * int(outputs), tangent)
    if "nsp" in program.objective:
        yield dense("next/pooler", 2 * program.batch_size * D * D, tangent)
        pooled_tangent = tangent or learns("next/pooler/kernel", "next/pooler/bias")
        yield dense("next/next", 2 * program.batch_size * D * 2, pooled_tangent)


def layer_products(
    config: Config, queries: int, keys: int, seen: int, heads: int, mlp_dim: int, tangent: bool
) -> Iterator[Product]:
    """The products of one layer that learns. `recomputed` assumes that `jax.checkpoint` is around the layer.

    queries, keys: tokens in the whole batch. seen: keys that each query is multiplied with, masked or not.
    tangent: whether the layer's input carries a tangent. If not, the product for queries, keys and values needs a
    gradient for its kernel only. A pre-LN layer is an exception: there, the product's input comes from a trained
    LayerNorm.
    """
    D, A, pre = config.width, heads * config.head_size, config.norm == "pre"
    into = 1 + (tangent or pre)
    yield Product(2 * min(queries, keys) * D * 3 * A, into, True)  # query, key and value
    if queries != keys:  # query alone, or key and value
        yield Product(2 * abs(queries - keys) * D * A * (1 if queries > keys else 2), into, True)
    yield Product(2 * queries * seen * A, 2, True, True)  # queries with keys
    yield Product(2 * queries * seen * A, 2, True, True)  # probabilities with values
    yield Product(2 * queries * A * D, 2, True)  # attention_output
    yield Product(2 * queries * D * mlp_dim, 2, True)  # mlp_hidden
    # Recomputed only if a LayerNorm follows, since that needs the product's output.
    yield Product(2 * queries * mlp_dim * D, 2, not pre)  # mlp_output
