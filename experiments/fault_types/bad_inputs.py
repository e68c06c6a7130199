"""Input that cannot be used: text, tables, vocabularies, models, paths and settings. Each goes through the command line."""

import gzip
import json
import pathlib
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from bert_fast import methods
from bert_fast.data import vocab
from bert_fast.train import budget, inputs, loop, timeline
from experiments.fault_types import Bench, Outcome, command, fault

PREPARE = ("--out=OUT", "--processes=1", "--valid_fraction=0.1")
STRANGE = (
    b"\xff\xfe", b"\0", b"\xed\xa0\x80", b'{"text": "\\ud800"}', b"[" * 100_000, b"9" * 5000, b"\n" * 1000,
    b'{"text": 1e999}', b'{"text": null}', b"\xef\xbb\xbf", b"x" * 2_000_000,
)  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content, damaged: cut off, with a part missing, changed or doubled, with strange bytes, or empty."""
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return {
        "cut": lambda: content[:a],
        "hole": lambda: content[:a] + content[b:],
        "noise": lambda: content[:a] + rng.randbytes(min(b - a, 100) + 1) + content[b:],
        "doubled": lambda: content[:b] + content[a:],
        "strange": lambda: content[:a] + rng.choice(STRANGE) + content[a:],
        "only strange": lambda: rng.choice(STRANGE),
        "nothing": lambda: b"",
    }[rng.choice(("cut", "hole", "noise", "doubled", "strange", "only strange", "nothing"))]()


def _texts(bench: Bench) -> list[str]:
    return (bench.corpus / "a.txt").read_text().split("\n\n")


@fault(times=150)
def bad_text(bench: Bench, rng: random.Random) -> Outcome:
    """A damaged .txt, .jsonl or .parquet file, with or without gzip, half of the time with --skip_bad."""
    kind = rng.choice((".txt", ".jsonl", ".parquet"))
    path, texts = bench.scratch / f"a{kind}", _texts(bench)
    if kind == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        lines = (json.dumps({"text": text}) for text in texts)
        path.write_text("\n\n".join(texts) if kind == ".txt" else "\n".join(lines))
    content = damaged(path.read_bytes(), rng)
    if rng.random() < 0.3:
        path.unlink()
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content) if rng.random() < 0.5 else damaged(gzip.compress(content), rng)
    path.write_bytes(content)
    more = ["--skip_bad"] if rng.random() < 0.5 else []
    return command(bench, "prepare", f"--source=files:{path}", f"--vocab={bench.shards / 'vocab.txt'}", *PREPARE, *more)


@fault(times=75)
def bad_vocabulary(bench: Bench, rng: random.Random) -> Outcome:
    path = bench.scratch / "vocab.txt"
    path.write_bytes(damaged((bench.shards / "vocab.txt").read_bytes(), rng))
    return command(bench, "prepare", f"--source=files:{bench.corpus}/a.txt", f"--vocab={path}", *PREPARE)


@fault(times=75)
def bad_model(bench: Bench, rng: random.Random) -> Outcome:
    """A Hugging Face folder with one damaged or missing file."""
    folder = shutil.copytree(bench.exported, bench.scratch / "theirs")
    path = rng.choice([path for path in sorted(folder.iterdir()) if path.name != "README.md"])
    if rng.random() < 0.15:
        path.unlink()
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json.dumps(_changed(json.loads(path.read_text()), rng)))
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))
    return command(bench, "import", f"--hf={folder}", "--out=OUT")


VALUES = (None, -1, 0, 1.5, 10**8, "", "x", [], {}, True, [None])


def _changed(tree: dict, rng: random.Random) -> dict:
    """The object with one value replaced, or with one key left out."""
    key = rng.choice(sorted(tree))
    rest = {name: value for name, value in tree.items() if name != key}
    return rest if rng.random() < 0.2 else {**rest, key: rng.choice(VALUES)}


@fault(times=50)
def bad_path(bench: Bench, rng: random.Random) -> Outcome:
    """A checkpoint or shards folder that is a file, empty, missing, or another kind of folder."""
    (bench.scratch / "file").write_bytes(rng.randbytes(50))
    (bench.scratch / "empty").mkdir()
    (bench.scratch / "broken/checkpoints/7").mkdir(parents=True)
    (bench.scratch / "broken/checkpoints/7/checksums.json").write_bytes(rng.choice(STRANGE))
    (bench.scratch / "broken/manifest.json").write_bytes(rng.choice(STRANGE))
    path: pathlib.Path | str = rng.choice(
        [*(bench.scratch / name for name in ("file", "empty", "broken", "missing")), "", "/", "\udcff", "a" * 300]
    )
    checkpoint = f"--checkpoint={path if rng.random() < 0.6 else bench.run}"
    made = [f"--data={path}"] if checkpoint.endswith(str(bench.run)) else []
    return rng.choice(
        (
            lambda: command(bench, "evaluate", checkpoint, *made),
            lambda: command(bench, "export", f"--checkpoint={path}", "--out=OUT"),
            lambda: command(bench, "fill-mask", f"--checkpoint={path}", "a [MASK]"),
            lambda: command(bench, "embed", f"--checkpoint={path}", "a"),
            lambda: command(bench, "report", str(path), "--out=OUT"),
            lambda: command(bench, "prepare", f"--source=files:{path}", *PREPARE),
        )
    )()


NUMBERS = (
    "-1",
    "0",
    "1",
    "nan",
    "inf",
    "-inf",
    "1e20",
    "1e-300",
    "99999999999999999999",
    "",
    "abc",
    "-0.5",
    "2147483648",
)


@fault(times=150)
def bad_setting(bench: Bench, rng: random.Random) -> Outcome:
    """One setting of pre-training with an unusual value. If it is accepted, the run ends before its first step."""
    config = json.loads((bench.run / "config.json").read_text())
    keys = [f"{part}.{key}" for part, values in config.items() if isinstance(values, dict) for key in values]
    keys += [
        key for key, value in config.items() if isinstance(value, int | float | str) and key not in ("seal", "costs")
    ]
    flag = f"--config.{rng.choice(keys)}={rng.choice(NUMBERS)}"
    pretrain = loop.pretrain
    loop.pretrain = _door
    try:
        name = "--config=bert:size=tiny,objective=mlm,debug"
        return command(bench, "pretrain", name, "--workdir=OUT", f"--config.data.dir={bench.shards}", flag)
    finally:
        loop.pretrain = pretrain


def _door(settings, config, workdir, *more) -> dict:
    """Stands in for `pretrain`: does only the checks that `pretrain` does before it touches a device."""
    del config, workdir, more
    method = methods.make(settings.methods)
    settings = budget.resolved(settings, method)
    for stage in timeline.stages(settings, method):
        inputs.training_examples(settings, stage)
    return {}


@fault(times=25)
def bad_manifest_next_to_vocabulary(bench: Bench, rng: random.Random) -> Outcome:
    """A damaged file next to a vocabulary. `prepare` reads this file to learn whether the vocabulary is cased and
    whether accents are stripped.
    """
    for name in ("vocab.txt", "manifest.json", "tokenizer.json"):
        shutil.copy(bench.shards / name, bench.scratch / name)
    path = bench.scratch / rng.choice(("manifest.json", "tokenizer.json"))
    path.write_bytes(damaged(path.read_bytes(), rng))
    vocab.load(bench.scratch / "vocab.txt")
    return command(
        bench, "prepare", f"--source=files:{bench.corpus}/a.txt", f"--vocab={bench.scratch / 'vocab.txt'}", *PREPARE
    )
