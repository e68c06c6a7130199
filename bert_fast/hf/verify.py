"""Compares our outputs for a checkpoint with the outputs of transformers for its export: `export --verify`.

Only this file imports torch and transformers, and only when it is used.

Axes: as in bert.py.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from bert_fast import BadInput, bert
from bert_fast.bert import Config
from bert_fast.data.vocab import Vocab
from bert_fast.encoder import Encoder
from bert_fast.hf import layouts
from bert_fast.layers import NextHead, apply
from bert_fast.plan import Route, whole
from bert_fast.tasks.model import Head, logits, scale_of
from bert_fast.train.description import TaskHead

LIMIT = 1e-4  # the largest difference that is accepted in any logit or hidden state, in float32
ROWS = 4
OF_ROWS = ("next_logits", "class_logits")  # outputs with one row per example; all others have one row per token
# The name of a task head's logits, by the ending of the name of the transformers class.
OF_TASKS = {
    "ForSequenceClassification": "class_logits",
    "ForTokenClassification": "tag_logits",
    "ForQuestionAnswering": "span_logits",
}
PIECES = 200  # word pieces of the vocabulary to tokenize in addition to TEXTS
# Accents, Chinese characters, a control character, a made-up word, and a mask next to a full stop.
TEXTS = (
    "The capital of France is [MASK].",
    "Ça va, l’été à Zürich? Ἀθῆναι e\u0301te\u0301 İstanbul STRASSE straße",
    "我喜欢 BERT\u0000 and\tso\u200bon... 3.14%-5€ unbelievablenesses",
)


def needs_torch():
    """Raises BadInput if torch or transformers is not installed."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(
            f"--verify needs {' and '.join(missing)}: pip install torch transformers, or leave out --verify: the "
            "export itself needs neither"
        )


def verify(folder: pathlib.Path, trained: Encoder, class_name: str) -> dict[str, float]:
    """The largest difference in the last hidden states and in each head's logits, in float32.

    The batch is as long as the model allows, and has padding and token types. Raises BadInput if a difference is above
    LIMIT, if tensors are missing or left over, or if tokens differ.
    """
    needs_torch()
    model = dataclasses.replace(trained.model, dtype="float32")
    batch = random_batch(model, trained.vocab)
    theirs = of_transformers(folder, class_name, batch, trained.vocab)
    with jax.default_matmul_precision("highest"):  # otherwise a TPU would multiply in bfloat16
        ours = of_ours(model, trained.params, batch, trained.about.task)
    real_BS = batch["segments"] != 0
    differences = {}
    _, deviation = scale_of(trained.about.task)  # a score may be in any unit, so compare in standard deviations
    for name, array in theirs.items():
        apart = np.abs(np.asarray(ours[name], np.float64) - array) / (deviation if name == "class_logits" else 1)
        differences[name] = float((apart if name in OF_ROWS else apart[real_BS]).max())
    listed = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    if not all(difference <= LIMIT for difference in differences.values()):  # False for NaN
        raise BadInput(f"the export differs from the checkpoint by more than {LIMIT:g} ({listed}): it was not kept")
    return differences


def random_batch(model: Config, words: Vocab) -> dict[str, np.ndarray]:
    """Random word pieces and token types. The first example is as long as the model allows; the others are shorter."""
    rng, length = np.random.default_rng(0), model.max_len
    ordinary = np.setdiff1d(np.arange(words.size), list(words.special))
    real_B = np.linspace(length, 1, ROWS).astype(int)
    segments_BS = (np.arange(length) < real_B[:, None]).astype(np.int32)
    ids_BS = np.where(segments_BS, rng.choice(ordinary, (ROWS, length)), words.pad).astype(np.int32)
    ids_BS[:, 0] = words.cls
    return {
        "ids": ids_BS,
        "positions": np.tile(np.arange(length, dtype=np.int32), (ROWS, 1)),
        "types": rng.integers(0, model.type_count, (ROWS, length)).astype(np.int32) * segments_BS,
        "segments": segments_BS,
    }


def of_ours(model: Config, params, batch, task: TaskHead | None) -> dict[str, np.ndarray]:
    """Our outputs: `hidden` [B, S, D], `mlm_logits` [B, S, V] and, with a next-sentence head, `next_logits` [B, 2].

    A fine-tuned model has `hidden` and the logits of its task: `class_logits` [B, C], `tag_logits` [B, S, C] or
    `span_logits` [B, S, 2].
    """

    @jax.jit
    def outputs(params, batch):
        x_BSD = bert.encode(model, params, {}, batch, whole(model.depth), Route(), None)
        if task is not None:
            found = logits(model, Head(task.kind, task.outputs), params, batch, whole(model.depth), None)
            return {"hidden": x_BSD, OF_TASKS[layouts.TASK_HEADS[task.kind]]: found}
        logits_BSV = bert.predict(model, params, {}, x_BSD, batch["positions"])[..., : model.vocab_size]
        found = {"hidden": x_BSD, "mlm_logits": logits_BSV}
        if model.pooler:
            found["next_logits"] = apply(NextHead(model), params["next"], x_BSD[:, 0])
        return found

    return jax.tree.map(np.asarray, outputs(params, batch))


def of_transformers(folder: pathlib.Path, class_name: str, batch, words: Vocab) -> dict[str, np.ndarray]:
    """The outputs of transformers, named as in `of_ours`: the hidden states, and the logits of each head of the class.

    Raises BadInput if transformers does not load exactly the tensors of the folder, or tokenises a text differently.
    """
    import torch
    import transformers

    with quiet(transformers.logging):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            their_class = getattr(transformers, class_name)
            model, found = their_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        except OSError as error:
            raise BadInput(f"transformers {transformers.__version__} does not load the export: {error}") from error
        texts = (*TEXTS, own := " ".join(some_pieces(words)), own.title())
        tokens = [tokenizer(text)["input_ids"] for text in texts]
    # The bare encoder of transformers has a pooler even if the export has none. A task's class must match exactly.
    of_task = next((name for head, name in OF_TASKS.items() if class_name.endswith(head)), None)
    strange = {
        kind: sorted(map(str, names))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (names := [name for name in found[kind] if of_task or "pooler" not in str(name)])
    }
    if strange:
        raise BadInput(f"transformers {transformers.__version__} does not load all of {folder}: {strange}")
    for text, made in zip(texts, tokens, strict=True):
        expected = [words.cls, *words.tokenizer.encode(text, add_special_tokens=False).ids, words.sep]
        if made != expected:
            raise BadInput(
                f"transformers {transformers.__version__} turns {text[:80]!r} into tokens {made}, expected {expected}"
            )
    tensor_of = {key: torch.tensor(array).long() for key, array in batch.items()}
    with torch.no_grad():
        output = model.eval()(
            input_ids=tensor_of["ids"],
            token_type_ids=tensor_of["types"],
            attention_mask=tensor_of["segments"],
            output_hidden_states=True,
        )
    hidden = {"hidden": output.hidden_states[-1].numpy()}
    if of_task == "span_logits":
        ends = [output[key].numpy() for key in ("start_logits", "end_logits")]
        return {**hidden, "span_logits": np.stack(ends, axis=-1)}
    heads = {"mlm_logits": ("prediction_logits", "logits"), "next_logits": ("seq_relationship_logits",)}
    if class_name.endswith("ForNextSentencePrediction"):
        heads = {"next_logits": ("logits",)}
    if of_task:
        heads = {of_task: ("logits",)}
    found = {name: output[key].numpy() for name, keys in heads.items() for key in keys if output.get(key) is not None}
    return {**hidden, **found}


def some_pieces(words: Vocab) -> list[str]:
    """Up to PIECES word pieces that begin a word, spread evenly over the vocabulary."""
    begin = np.setdiff1d(np.flatnonzero(~words.continues_W), list(words.special))
    some = np.unique(np.linspace(0, len(begin) - 1, PIECES).astype(int))
    return [str(words.tokenizer.id_to_token(i)) for i in begin[some].tolist()]


@contextlib.contextmanager
def quiet(logging) -> Iterator[None]:
    """Silences the progress bars and warnings of transformers. This file itself checks what the warnings are about."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
