"""Which examples a run reads from its shards."""

from collections.abc import Mapping

import jax

from bert_fast.data import batches, masking, shards
from bert_fast.data.examples import ExampleSettings
from bert_fast.method import Stage
from bert_fast.train.settings import Evaluation, PretrainSettings


def evaluation_settings(objective: str, settings: Evaluation) -> ExampleSettings:
    """The settings for making held-out examples. Only the objective comes from the training settings."""
    return ExampleSettings(
        settings.seq_len, objective, settings.masked_share, settings.whole_word, settings.short_seq_prob
    )


def room(settings: PretrainSettings) -> int:
    """With random positions, the length of the longest phase: training examples may lie anywhere in it. Otherwise 0."""
    return max(phase.seq_len for phase in settings.phases) if settings.data.random_positions else 0


def training_examples(settings: PretrainSettings, stage: Stage) -> batches.ExampleSource:
    """The training examples at a stage's length. Raises BadInput if the shards do not fill one batch."""
    data, seq_len = settings.data, stage.program.seq_len
    split, vocab = shards.Split(data.dir, "train"), masking.read_vocab(data.dir)
    made = ExampleSettings(
        seq_len, data.objective, data.masked_share, data.whole_word, data.short_seq_prob, room=room(settings)
    )
    rows = batches.training_examples(split, vocab, made, settings.seed)
    batches.check_batch(rows, stage.program.batch_size)
    return rows


def batches_of(rows_of: Mapping[str, batches.ExampleSource], workers: int, stage: Stage, index: int):
    """This process's part of each batch of a stage, starting at example `index` of the stage's order."""
    return batches.batches(
        rows_of[order_of(stage)],
        stage.program.batch_size,
        start=index,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=workers,
    )


def batch_again(rows_of: Mapping[str, batches.ExampleSource], stage: Stage, end: int) -> batches.Batch:
    """This process's part of the batch whose last example has index `end` - 1 in the stage's order."""
    size, index, count = stage.program.batch_size, jax.process_index(), jax.process_count()
    return batches.batch_at(rows_of[order_of(stage)], size, end - size, process_index=index, process_count=count)


def order_of(stage: Stage) -> str:
    """The name of the order in which a stage reads its examples. Stages with equal lengths and objectives share it."""
    return f"{stage.program.objective}/{stage.program.seq_len}"
