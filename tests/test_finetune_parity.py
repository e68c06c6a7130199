"""Fine-tuning matches plain PyTorch: the same weights, task head included, give the same loss at every step."""

import dataclasses

import numpy as np
import pytest

from bert_fast.hf import tensors
from bert_fast.tasks import batches, data
from bert_fast.tasks.trainer import Trainer
from helpers.made_tasks import make_encoder, make_settings, write_glue

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from experiments.finetune_parity import Adam, inputs  # noqa: E402  imports torch

STEPS = 7  # the learning rate of the first step is 0
LAYOUTS = {
    "bert": (transformers.BertConfig, transformers.BertForSequenceClassification, {}),
    "megatron-bert": (
        transformers.MegatronBertConfig,
        transformers.MegatronBertForSequenceClassification,
        {"norm": "pre", "embed_norm": False},
    ),
}


@pytest.fixture(params=LAYOUTS)
def both(request, tmp_path):
    """A trainer, and a transformers model with the same weights."""
    made, _ = make_settings(write_glue(tmp_path, ("rte",)), "rte", widths=1)
    config_class, model_class, changes = LAYOUTS[request.param]
    start = make_encoder(tmp_path, pooler=True, **changes)
    trainer = Trainer(data.make("rte", data.read("rte", made), start.vocab, made), start, made)
    model = start.model
    theirs = model_class(
        config_class(
            vocab_size=model.vocab_size,
            num_hidden_layers=model.depth,
            hidden_size=model.width,
            num_attention_heads=model.heads,
            intermediate_size=model.mlp_dim,
            max_position_embeddings=model.max_len,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=2,
        )
    ).eval()

    found = tensors.to_hf(start.params, dataclasses.replace(model, pooler=True), start.vocab.pad)
    task = trainer.first_params(0)["task"]
    found["classifier.weight"] = np.asarray(task["output"]["kernel"]).T
    found["classifier.bias"] = np.asarray(task["output"]["bias"])
    state = {name: torch.tensor(np.array(array)) for name, array in found.items()}
    missing, _ = theirs.load_state_dict(state, strict=False)
    assert all("position_ids" in name for name in missing)
    return trainer, theirs


def test_losses_of_every_step_match_torch(both):
    trainer, theirs = both
    engine, optimizer = trainer.engine(1e-2, 0), Adam(theirs, trainer.settings.optimizer)
    engine.begin(trainer.first_params(0))
    found = batches.train_batches(trainer.task.train, trainer.widths, 8, trainer.start.vocab.pad, 0)
    for step in range(STEPS):
        batch, rate = next(found), engine.learning_rate(step)
        assert (rate > 0) == (step > 0)
        engine.train_step()
        engine.settle()
        loss_of = torch.nn.functional.cross_entropy(
            theirs(**inputs(batch)).logits, torch.tensor(batch["labels"]).long()
        )
        loss_of.backward()
        optimizer.step(rate)
        assert engine.counters.take_sums()["loss"] == pytest.approx(loss_of.item(), abs=1e-4), step
    rows = trainer.task.held_out["dev"]
    ours = trainer.logits(engine.state.params, rows, engine.stage.program)
    batch = batches.fill(rows, batches.Batch(trainer.widths[-1], np.arange(16)), 16, trainer.start.vocab.pad)
    with torch.no_grad():
        np.testing.assert_allclose(ours[:16], theirs(**inputs(batch)).logits.numpy(), atol=1e-3)
