"""Counts the bytes that 8 emulated devices exchange in a dense step, and in a step with a frozen layer. Prints JSON.

test_stacking_run.py runs this in a separate process, because the number of emulated devices is fixed when JAX starts.
"""

import json
import os
import sys

from helpers import xla_flags

os.environ["XLA_FLAGS"] = xla_flags.devices(8)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from bert_fast import bert
from bert_fast.cost import hlo
from bert_fast.method import Method, Program, Stage
from bert_fast.methods import stacking
from bert_fast.plan import Route, whole
from bert_fast.schedule import Schedule
from bert_fast.train import compile, initial_params, optim
from bert_fast.train.objective import PRETRAINING
from bert_fast.train.sharding import global_batch, make_mesh
from bert_fast.train.state import first_state
from bert_fast.train.step import make_step

jax.config.update("jax_disable_most_optimizations", True)
B, S, P = 16, 16, 3


def measure(program: Program) -> dict:
    """Bytes that one step sends, and bytes of the trainable parameters, of their moments, and of parts of the model."""
    mesh = make_mesh(8, 1, 1)
    optimizer = optim.make(optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, True, 1.0))
    params = initial_params.fresh(program.model, 0, mesh)
    state = first_state(params, Method(), Stage("one", program, 1, Schedule(1e-3, 1)), optimizer, mesh)
    batch = {name: np.ones((B, S), np.int32) for name in ("ids", "types", "positions", "segments")}
    batch |= {name: np.ones((B, P), np.int32) for name in ("slots", "labels")}
    batch |= {"weights": np.ones((B, P), np.float32), "cls": np.zeros(B, np.int32), "next": np.zeros(B, np.int32)}
    programs = compile.Programs(make_step(Method(), optimizer, PRETRAINING), mesh)
    placed = programs.placed(state, global_batch(batch, mesh), Route(), 1e-3, 0)
    text = programs.lower(program, *placed).compile().as_text()
    embeddings, layers = (sum(leaf.nbytes for leaf in jax.tree.leaves(params[name])) for name in ("embed", "layers"))
    found = hlo.collectives(hlo.parse(text))
    return {
        "all-reduce": found.pop("all-reduce"),
        "other": sum(found.values()),
        "learns": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)),
        "moments": sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim),
        "table": params["embed"]["word"].nbytes,
        "embeddings": embeddings,
        "layer": layers // program.model.depth,
    }


def main(names):
    """Measures each case: "dense", or the embedding design of an MSLT stage that freezes one of two layers."""
    model = bert.Config(500, 2, 32, 4, 8, 64, S, pooler=True, dropout=0.0, attention_dropout=0.0)
    plain = (Stage("16-tokens", Program(model, whole(2), B, 1, S, P, "mlm+nsp"), 1000, Schedule(1e-3, 1000)),)
    result = {}
    for name in names:
        stages = plain if name == "dense" else stacking.make("mslt", embedding=name).stages(plain)[1:]
        result[name] = measure(stages[0].program)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
