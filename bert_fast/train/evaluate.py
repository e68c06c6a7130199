"""Held-out loss: the same examples and masks for every run with the same shards and evaluation settings."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast.bert import Params
from bert_fast.data import batches, masking, shards
from bert_fast.method import Program
from bert_fast.plan import at_length, drops_tokens, whole
from bert_fast.train.inputs import evaluation_settings
from bert_fast.train.objective import means
from bert_fast.train.settings import Data, Evaluation
from bert_fast.train.sharding import global_batch


def fingerprint(manifest: Mapping, data: Data, settings: Evaluation) -> str:
    """Short hash of everything that a held-out loss depends on, except the model. Compare only losses with equal
    hashes.
    """
    parts = {"shards": manifest["fingerprint"], "objective": data.objective, **dataclasses.asdict(settings)}
    parts = {key: value for key, value in parts.items() if key not in ("every", "batch_size")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def eval_batches(data: Data, settings: Evaluation) -> list[batches.Batch]:
    """This process's part of every evaluation batch. Raises BadInput if the held-out examples cannot be made."""
    rows = batches.evaluation_examples(
        shards.Split(data.dir, "valid"),
        masking.read_vocab(data.dir),
        evaluation_settings(data.objective, settings),
        settings.seed,
        settings.examples,
    )
    index, count = jax.process_index(), jax.process_count()
    return list(batches.evaluation_batches(rows, settings.batch_size, process_index=index, process_count=count))


class Evaluator:
    """Computes held-out losses. Compiles a program for each training program that it is called with."""

    def __init__(self, eval_step, held_out: list[batches.Batch], mesh: Mesh):
        step = jax.jit(eval_step, static_argnames="program", out_shardings=NamedSharding(mesh, P()))
        self.step, self.held_out, self.mesh = step, held_out, mesh

    def full_and_dropping(self, params: Params, frozen: Params, method_state, program: Program) -> dict[str, float]:
        """Like `full`. If the program drops tokens, the result also has the MLM loss and accuracy with these dropped.

        Their names end in `_dropping`.
        """
        means = self.full(params, frozen, method_state, program)
        if drops_tokens(program.plan):
            restricted = self(params, frozen, method_state, program)
            means |= {f"{key}_dropping": restricted[key] for key in ("mlm_loss", "mlm_accuracy")}
        return means

    def full(self, params: Params, frozen: Params, method_state, program: Program) -> dict[str, float]:
        """`loss` and its parts in nats, and accuracies, over all held-out examples. All layers and tokens take part."""
        return self(params, frozen, method_state, dataclasses.replace(program, plan=whole(program.model.depth)))

    def __call__(self, params: Params, frozen: Params, method_state, program: Program) -> dict[str, float]:
        """Like `full`, but with only the tokens that the program's plan keeps, at the evaluation's sequence length."""
        seq_len = self.held_out[0]["ids"].shape[1]
        plan = at_length(program.plan, program.seq_len, seq_len)
        program = dataclasses.replace(program, model=program.model.portable(), plan=plan, seq_len=seq_len)
        total: dict[str, float] = {}
        for batch in self.held_out:
            batch = global_batch(batch, self.mesh)
            with jax.set_mesh(self.mesh):  # kernels look up the mesh: see attention/
                sums = jax.device_get(self.step(params, frozen, method_state, batch, program=program))
            total = {key: total.get(key, 0.0) + float(value) for key, value in sums.items()}
        parts = means(total)
        loss = parts["mlm_loss"] + parts.get("nsp_loss", 0.0)
        return {"loss": loss, **parts, "predictions": int(total["predictions"])}
