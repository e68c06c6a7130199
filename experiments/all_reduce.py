"""How many bytes a data-parallel step all-reduces, in dense training and in each stage of MSLT.

    python -m experiments.all_reduce [--depth=12]

Compiles the train steps at BERT-base size for 8 emulated CPU devices and reads the collectives from the compiled
programs. Runs no step. Writes experiments/all_reduce.md.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from absl import app, flags

from bert_fast import bert
from bert_fast.cost import hlo
from bert_fast.cost.flops import step_flops
from bert_fast.method import Method, Program, Stage
from bert_fast.methods import stacking
from bert_fast.plan import Route, whole
from bert_fast.planner.timing import make_batch
from bert_fast.schedule import Schedule
from bert_fast.train import compile
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import BATCH, NamedSharding, make_mesh
from bert_fast.train.step import TrainState, make_step, partition
from experiments.common import write_page
from experiments.timing import adamw

DEPTH = flags.DEFINE_integer("depth", 12, "Layers.")


def measure(program: Program, mesh) -> tuple[int, int]:
    """Bytes that a step of the program all-reduces, and bytes of the parameters that it trains."""
    optimizer = adamw(clip_norm=1.0)

    def fresh():
        learns, frozen = partition(bert.init(program.model, jax.random.key(0)), program)
        return TrainState(np.int32(0), learns, frozen, optimizer.init(learns), ())

    shapes = jax.eval_shape(fresh)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        compile.state_shardings(shapes, mesh),
    )
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, BATCH)), make_batch(program)
    )
    programs = compile.Programs(make_step(Method(), optimizer, PRETRAINING), mesh)
    numbers = (np.float32(0), np.uint32(0), np.float32(1))
    text = programs.lower(program, state, batch, Route(), *numbers).compile().as_text()
    found = hlo.collectives(hlo.parse(text))
    return found["all-reduce"], sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes.params))


def main(_):
    mesh = make_mesh(8, 1, 1)
    model = bert.Config(vocab_size=30_522, depth=DEPTH.value, pooler=True)
    program = Program(model, whole(model.depth), 64, 1, 128, 20, "mlm+nsp")
    dense = Stage("dense", program, 1000, Schedule(1e-4, 1000))
    timeline = stacking.make("mslt").stages((dense,))
    stages = {"dense": dense} | {f"MSLT, {stage.name}": stage for stage in timeline}
    sent, lines = {}, []
    for name, stage in stages.items():
        sent[name], learns = measure(stage.program, mesh)
        flops = step_flops(stage.program).executed / step_flops(program).executed
        lines.append(
            f"| {name} | {stage.steps / 10:.0f} % | {sent[name] / 2**20:.0f} | {sent[name] / sent['dense']:.3f} | "
            f"{learns / 2**20:.0f} | {flops:.3f} |"
        )
        print(lines[-1], flush=True)
    total = sum(stage.steps * sent[f"MSLT, {stage.name}"] for stage in timeline) / 1000 / sent["dense"]
    text = "\n".join(
        [
            "# How much a data-parallel step all-reduces",
            "",
            f"`python -m experiments.all_reduce --depth={DEPTH.value}`: BERT-base, float32, compiled for 8 emulated CPU "
            f"devices (jax {jax.__version__}). The table counts the bytes that the all-reduce instructions of the compiled "
            "program return. Where the tied embedding table is trained, XLA all-reduces its gradient twice, which adds 90 MiB. "
            "Frozen parameters have no gradient, so nothing is sent for them.",
            "",
            "| | share of the steps | MiB all-reduced per step | / dense | MiB of trained parameters | FLOPs / dense |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            f"Averaged over all its steps, MSLT (multi-stage layerwise training) all-reduces {total:.2f} times as many bytes as dense training.",
            "",
        ]
    )
    if DEPTH.value == 12:
        write_page("all_reduce", text)
    else:
        print(text)


if __name__ == "__main__":
    app.run(main)
