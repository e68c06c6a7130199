"""Makes shards folders and `ExampleSettings` for tests."""

import dataclasses

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from bert_fast.data import examples, sealed, shards, vocab

# Special tokens have different ids from those in BERT's vocabulary, so code with hard-coded ids fails.
WORDS = [f"word{i}" for i in range(300)] + [f"##piece{i}" for i in range(200)]
WORDS[7:7], WORDS[100:100], WORDS[250:250] = ["[MASK]"], ["[SEP]", "[PAD]"], ["[CLS]", "[UNK]"]
SPECIAL_IDS = [i for i, word in enumerate(WORDS) if word.startswith("[")]
ORDINARY = np.setdiff1d(np.arange(len(WORDS)), SPECIAL_IDS)


def write_folder(folder, splits, words=WORDS):
    """Writes a folder with two shards per split. A document is a list of sentences; a sentence is a list of ids."""
    manifest = {"format": shards.FORMAT, "token_dtype": "uint16", "splits": {}}
    for split, documents in ({key: [] for key in shards.SPLITS} | splits).items():
        lengths_D = np.array([sum(map(len, d)) for d in documents], np.int64)
        np.save(folder / f"{split}-lengths.npy", lengths_D)
        entry = {
            "shards": [],
            "lengths": shards.file_entry(folder / f"{split}-lengths.npy"),
            "tokens": int(lengths_D.sum()),
        }
        half = -(-len(documents) // 2)
        for n, part in enumerate([documents[:half], documents[half:]]):
            path = folder / f"{split}-{n:05d}-of-00002.array_record"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for sentences in part:
                starts_N = np.cumsum([0, *map(len, sentences)])[:-1] if sentences else np.zeros(0, int)
                tokens_T = np.concatenate([np.zeros(0, int), *map(np.asarray, sentences)])
                writer.write(shards.encode(shards.Document(tokens_T, starts_N), "uint16"))
            writer.close()
            entry["shards"].append({**shards.file_entry(path), "documents": len(part)})
        manifest["splits"][split] = entry
    (folder / "vocab.txt").write_bytes("".join(word + "\n" for word in words).encode())
    sha256 = shards.sha256(folder / "vocab.txt")
    special = {word: words.index(word) for word in vocab.SPECIAL if word in words}
    manifest["vocab"] = {
        "size": len(words), "sha256": sha256, "cased": False, "strip_accents": None, "special_ids": special
    }  # fmt: skip
    seal(folder, manifest)
    return folder


def seal(folder, manifest):
    """Writes a manifest with the fingerprint and the seal that belong to it."""
    checksums = [shard["sha256"] for split in shards.SPLITS for shard in manifest["splits"][split]["shards"]]
    manifest["fingerprint"] = shards.fingerprint(manifest["vocab"]["sha256"], checksums)
    sealed.write(folder / "manifest.json", manifest)


def random_documents(count, rng, longest=60):
    return [
        [rng.choice(ORDINARY, rng.integers(1, longest)).tolist() for _ in range(rng.integers(1, 12))]
        for _ in range(count)
    ]


def make_folder(folder):
    """Writes 150 training documents. One is empty, and one is a single long sentence. The first 40 are also in
    `valid`."""
    rng = np.random.default_rng(0)
    documents = random_documents(150, rng)
    documents[3] = []
    documents[4] = [rng.choice(ORDINARY, 700).tolist()]
    return write_folder(folder, {"train": documents, "valid": documents[:40]})


def make_small_folder(folder):
    """Writes a folder for runs that take seconds. A few of its 83 words are frequent, so a small model can learn."""
    rng = np.random.default_rng(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" if i % 5 else f"##c{i}" for i in range(78))]

    def documents(count):
        return [
            [(5 + np.minimum(rng.geometric(0.2, 9), 78) - 1).tolist() for _ in range(rng.integers(4, 20))]
            for _ in range(count)
        ]

    return write_folder(folder, {"train": documents(60), "valid": documents(6)}, words)


def bert(objective="mlm", seq_len=32, **changes):
    """BERT's `ExampleSettings`, but with short examples."""
    settings = examples.ExampleSettings(seq_len, objective, masked_share=0.15, whole_word=False, short_seq_prob=0.1)
    return dataclasses.replace(settings, **changes)


def unmasked(row):
    """The ids of an example before masking."""
    ids_S = row["ids"].copy()
    filled_P = row["weights"] > 0
    ids_S[row["slots"][filled_P]] = row["labels"][filled_P]
    return ids_S
