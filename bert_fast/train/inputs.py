"""Which examples a run reads from its shards."""

from bert_fast.data import batches, masking, shards
from bert_fast.data.examples import ExampleSettings
from bert_fast.method import Stage
from bert_fast.train.settings import Data, PretrainSettings


def example_settings(data: Data, seq_len: int) -> ExampleSettings:
    """How examples of this length are made."""
    return ExampleSettings(seq_len, data.objective, data.masked_share, data.whole_word, data.short_seq_prob)


def training_examples(settings: PretrainSettings, stage: Stage) -> batches.ExampleSource:
    """The training examples at a stage's length. Raises BadInput if the shards do not fill one batch."""
    data, seq_len = settings.data, stage.program.seq_len
    split, vocab = shards.Split(data.dir, "train"), masking.read_vocab(data.dir)
    rows = batches.training_examples(split, vocab, example_settings(data, seq_len), settings.seed)
    batches.check_batch(rows, stage.program.batch_size)
    return rows


def order_of(stage: Stage) -> str:
    """Name of the example order that a stage reads. Stages with the same length and objective share it."""
    return f"{stage.program.objective}/{stage.program.seq_len}"
