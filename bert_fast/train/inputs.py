"""Which examples a run reads from its shards."""

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
    """Number of positions that training examples spread over: the length of the longest phase; 0: no spreading."""
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


def order_of(stage: Stage) -> str:
    """Name of the example order that a stage reads. Stages with the same length and objective share it."""
    return f"{stage.program.objective}/{stage.program.seq_len}"
