"""A corpus of simple sentences, its vocabulary, and a call of `prepare` that splits it into small units."""

import random

from bert_fast.data import vocab
from bert_fast.data.prepare import prepare

UNIT = 4000
WORDS = "the a dog cat river bank sleeps runs over under quick lazy brown fox day night".split()


def write_corpus(folder):
    """Writes a.txt and b.txt of 60 documents each, and vocab.txt, which has all of their words."""
    rng = random.Random(0)
    for name in ("a", "b"):
        documents = [
            "\n".join(
                " ".join(rng.choices(WORDS, k=8)).capitalize() + ". And " + rng.choice(WORDS) + "."
                for _ in range(rng.randint(1, 6))
            )
            for _ in range(60)
        ]
        (folder / f"{name}.txt").write_text("\n\n".join(documents))
    (folder / "vocab.txt").write_text("\n".join([*vocab.SPECIAL, *WORDS, "and", ".", "##s"]) + "\n")
    return folder


def run(corpus, out, **options):
    """Prepares a.txt and b.txt into `out`. Returns the manifest."""
    options = {"vocab": corpus / "vocab.txt", "valid_fraction": 0.1, "processes": 1, "unit": UNIT} | options
    return prepare(f"files:{corpus}/[ab].txt", out, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
