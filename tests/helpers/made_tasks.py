"""Makes encoders to fine-tune, and files of GLUE, SQuAD and other tasks that a tiny model can learn."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from bert_fast import bert, methods
from bert_fast.configs import glue, own
from bert_fast.data import vocab
from bert_fast.encoder import Encoder
from bert_fast.method import Program, Stage
from bert_fast.plan import whole
from bert_fast.schedule import Schedule
from bert_fast.tasks import data, finetune, settings
from bert_fast.tasks.trainer import Trainer
from bert_fast.train import checkpoint, optim
from bert_fast.train.description import Description
from bert_fast.train.signals import StopSignal
from bert_fast.train.step import TrainState

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "good", "bad", '"', "##ly", *(f"w{i}" for i in range(40))]
# For each task: its folder, the header of train and dev (None: no header), the header of test, and label names.
LAYOUTS = {
    "cola": ("CoLA", None, "index sentence", "0 1"),
    "sst2": ("SST-2", "sentence label", "index sentence", "0 1"),
    "mrpc": ("MRPC", "Quality|#1 ID|#2 ID|#1 String|#2 String", "index|#1 ID|#2 ID|#1 String|#2 String", "0 1"),
    "stsb": (
        "STS-B",
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        "index genre filename year old_index source1 source2 sentence1 sentence2",
        "",
    ),
    "qqp": ("QQP", "id qid1 qid2 question1 question2 is_duplicate", "id question1 question2", "0 1"),
    "mnli": (
        "MNLI",
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
        "sentence1 sentence2 label1 gold_label",
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
        "sentence1 sentence2",
        "entailment neutral contradiction",
    ),
    "qnli": ("QNLI", "index question sentence label", "index question sentence", "entailment not_entailment"),
    "rte": ("RTE", "index sentence1 sentence2 label", "index sentence1 sentence2", "entailment not_entailment"),
    "wnli": ("WNLI", "index sentence1 sentence2 label", "index sentence1 sentence2", "0 1"),
}
LABELS = ("label", "Quality", "score", "is_duplicate", "gold_label")
TEXTS = ("sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String")


def names(header: str) -> list[str]:
    return header.split("|") if "|" in header else header.split()


def text(rng, good: bool, longest: int = 12) -> str:
    words = [f"w{i}" for i in rng.integers(0, 40, rng.integers(2, longest))]
    words.insert(rng.integers(0, len(words)), "good" if good else "bad")
    return " ".join(words)


def rows(task: str, header: str | None, count: int, seed: int) -> list[list[str]]:
    """Rows of a task. Every text contains "good" or "bad", and this word decides the label."""
    rng, (*_, labels) = np.random.default_rng(seed), LAYOUTS[task]
    found = []
    for number in range(count):
        good = bool(rng.integers(2))
        label = labels.split()[good] if labels else f"{4.5 if good else 0.5:.3f}"
        if header is None:
            found.append(["gj04", label, "*", text(rng, good)])
            continue
        row = []
        for name in names(header):
            is_text, is_index = name in TEXTS, name in ("index", "id")
            row.append(label if name in LABELS else text(rng, good) if is_text else str(number) if is_index else "-")
        found.append(row)
    return found


def write_tsv(path: pathlib.Path, header: str | None, found: list[list[str]], mark: str = ""):
    lines = [*([names(header)] if header else []), *found]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((mark + "".join("\t".join(line) + "\n" for line in lines)).encode())


def write_glue(
    root: pathlib.Path, tasks=tuple(LAYOUTS), train: int = 64, dev: int = 32, test: int = 10
) -> pathlib.Path:
    """Writes small files in the official layout. MRPC's train and dev files start with a byte-order mark."""
    for task in tasks:
        folder, header, test_header, _ = LAYOUTS[task]
        mark = "\ufeff" if task == "mrpc" else ""
        dev_files = ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]
        for seed, (name, count) in enumerate({"train": train, **dict.fromkeys(dev_files, dev)}.items()):
            write_tsv(root / folder / f"{name}.tsv", header, rows(task, header, count, seed), mark)
        for seed, name in enumerate(dev_files, 10):
            name = name.replace("dev", "test")
            write_tsv(root / folder / f"{name}.tsv", test_header, rows(task, test_header, test, seed))
        if task == "mnli":
            header = "index sentence1 sentence2"
            write_tsv(root / "diagnostic/diagnostic.tsv", header, rows(task, header, test, 20))
    return root


def make_vocab(folder: pathlib.Path) -> vocab.Vocab:
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return vocab.load(folder / "vocab.txt")


def small_model(**changes) -> bert.Config:
    sizes = {"depth": 2, "width": 16, "heads": 2, "head_size": 8, "mlp_dim": 32, "max_len": 64, "init_std": 0.2}
    ids = tuple(WORDS.index(f"[{name}]") for name in ("PAD", "UNK", "CLS", "SEP", "MASK"))
    return bert.Config(**{"vocab_size": len(WORDS), "special_ids": ids, **sizes, **changes})


def make_encoder(folder: pathlib.Path, **changes) -> Encoder:
    model = small_model(**changes)
    params = jax.tree.map(np.asarray, bert.init(model, jax.random.key(0)))
    program = Program(model, whole(model.depth), 8, 1, 32, 4, "mlm")
    about = Description(step=0, stage=Stage("made", program, 1, Schedule(1e-3, 1)), vocab=make_vocab(folder))
    return Encoder(folder, params, about)


def write_checkpoint(root: pathlib.Path, names=(), **changes) -> pathlib.Path:
    """Writes a checkpoint of step 0, with the parameters that the named methods add. Returns the run folder."""
    model, words = small_model(**changes), make_vocab(root)
    params = bert.init(model, jax.random.key(1))
    params, _ = methods.make([(name, {}) for name in names]).init(params, model)
    objective = "mlm+nsp" if model.pooler else "mlm"
    program = Program(model, whole(model.depth), 8, 1, 32, 4, objective)
    stage = Stage("32-tokens", program, 1, Schedule(1e-3, 1))
    optimizer = optim.make(optim.Optimizer("adamw", 0.9, 0.999, 1e-6, 0.01, False, 1.0))
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), ())
    about = Description(step=0, stage=stage, vocab=words, methods=tuple((name, {}) for name in names))
    checkpoint.save(root / "checkpoints", state, about, set())
    return root


def make_settings(
    data_dir, task: str = "mrpc", recipe: str = "bert", **changes
) -> tuple[settings.FinetuneSettings, dict]:
    """Settings for runs that take seconds, and their config. `changes` are config values by key, with `__` for dots."""
    return small(glue.get_config(f"task={task},recipe={recipe}"), **{"data.dir": str(data_dir), **changes})


def own_settings(data_dir, arguments: str, **changes) -> tuple[settings.FinetuneSettings, dict]:
    """Like `make_settings`, but for the config `own` with these arguments."""
    return small(own.get_config(arguments), **{"data.dir": str(data_dir), **changes})


def small(config, **changes) -> tuple[settings.FinetuneSettings, dict]:
    values = {
        "data.seq_len": 48,
        "seeds": "0",
        "learning_rates": "3e-3",
        "batch_size": 8,
        "epochs": 2.0,
        "widths": 2,
        "dropout": 0.0,
        "eval.batch_size": 16,
    }
    config.update_from_flattened_dict(values | {key.replace("__", "."): value for key, value in changes.items()})
    return settings.make(config.to_dict()), config.to_dict()


def make_trainer(folder: pathlib.Path, data_dir, task: str = "mrpc", shape=(), **changes) -> Trainer:
    """A trainer for a GLUE task with the settings of `make_settings`. Writes the encoder's vocabulary to `folder`."""
    made, _ = make_settings(data_dir, task, **changes)
    start = make_encoder(folder, **dict(shape))
    return Trainer(data.make(task, data.read(task, made), start.vocab, made), start, made)


def train(trainer: Trainer, folder: pathlib.Path, rate=3e-3, seed=0, stop=None, seen=None) -> finetune.Finished:
    """Trains and scores one run."""
    return finetune.train_and_score(
        trainer, rate, seed, folder, stop or StopSignal(), seen or (lambda step, numbers: None)
    )


def replaced(made: settings.FinetuneSettings, **changes) -> settings.FinetuneSettings:
    return dataclasses.replace(made, **changes)


def write_squad(folder: pathlib.Path, version: str, count: int = 10):
    """Writes questions in the official layout, each with its own context.

    In version 2.0, every other question has no answer.
    """
    for kind in ("train", "dev"):
        paragraphs = []
        for number in range(count):
            before = number % 30
            context = " ".join(["w1"] * before + ["good"] + ["w2"] * (30 - before))
            found = {
                "id": f"{kind}{number}",
                "question": "w3 w4",
                "answers": [{"text": "good", "answer_start": 3 * before}],
            }
            if version == "2.0":
                found["is_impossible"] = number % 2 == 0
                found |= {"answers": []} if number % 2 == 0 else {}
            paragraphs.append({"context": context, "qas": [found]})
        content = {"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]}
        (folder / f"{kind}-v{version}.json").write_text(json.dumps(content))


def write_sentences(path: pathlib.Path, count: int, seed: int = 0, longest: int = 12):
    """Writes sentences in CoNLL's format. "good" and the word after it are an entity of type X. "Bad" is one of type Y.

    The second token of an entity of type X has two word pieces.
    """
    rng, lines = np.random.default_rng(seed), []
    for _ in range(count):
        for _ in range(rng.integers(1, longest)):
            kind = rng.integers(4)
            if kind == 0:
                lines += ["good NN B-X", f"w{rng.integers(40)}ly NN I-X"]
            elif kind == 1:
                lines += ["Bad NN B-Y"]
            else:
                lines += [f"w{rng.integers(40)} VB O"]
        lines.append("")
    path.write_text("-DOCSTART- -X- O\n\n" + "\n".join(lines) + "\n")


def write_own(folder: pathlib.Path):
    """Writes the files that the commands in configs/own.py read: reviews.csv and train.conll."""
    rng = np.random.default_rng(0)
    rows = [(text(rng, good), ("one", "five")[good]) for good in rng.integers(0, 2, 64).tolist()]
    (folder / "reviews.csv").write_text("review,stars\n" + "".join(f"{review},{stars}\n" for review, stars in rows))
    write_sentences(folder / "train.conll", 32)
