"""Sources of text: every kind of file gives the same documents, and errors name the location of bad input."""

import gzip
import importlib.util
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_fast import BadInput
from bert_fast.data import corpora, docs, markup

DOCUMENTS = ["First line.\nSecond line, with é.", "Another document.", "第三篇文档。"]


def write(path, content: bytes):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return f"files:{path}"


def read(spec, skip=False, **options):
    bad = corpora.Bad(skip)
    corpus = corpora.open_corpus(spec, **options)
    return [text for part in corpus.parts for text in corpus.documents(part, bad)], bad.count


def as_jsonl(key="text"):
    return "".join(json.dumps({"id": i, key: text}) + "\n" for i, text in enumerate(DOCUMENTS)).encode()


def as_parquet(tmp_path, texts=DOCUMENTS):
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), tmp_path / "made")
    return (tmp_path / "made").read_bytes()


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet", ".parquet.gz"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path, suffix):
    kind = suffix.removesuffix(".gz")
    text = "\ufeff\n\n" + "\r\n \t\r\n\n".join(text.replace("\n", "  \r\n") for text in DOCUMENTS) + "\n\n\n"
    content = {".txt": text.encode(), ".jsonl": as_jsonl()}.get(kind) or as_parquet(tmp_path)
    assert read(write(tmp_path / f"a{suffix}", content)) == (DOCUMENTS, 0)


def test_documents_do_not_depend_on_chunk_boundaries(tmp_path, monkeypatch):
    spec = write(tmp_path / "a.txt", "\n\n".join(DOCUMENTS * 20).encode())
    for size in (1, 7, 64):
        monkeypatch.setattr(corpora, "_CHUNK", size)
        assert read(spec)[0] == DOCUMENTS * 20


def test_one_long_line_is_read_in_small_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "_CHUNK", 64)
    monkeypatch.setattr(corpora, "LONGEST", 100)
    text = "wörter 中文 " * 400
    spec, pending = write(tmp_path / "a.txt", text.encode()), []
    decode = corpora.decode
    monkeypatch.setattr(corpora, "decode", lambda data, *rest: pending.append(len(data)) or decode(data, *rest))
    assert "".join("".join(read(spec)[0]).split()) == "".join(text.split())
    assert max(pending) <= 64 + 3


def test_long_document_is_read_in_bounded_pieces_that_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "LONGEST", 40)
    text = "one two three four\n" * 10 + "x" * 100
    pieces, _ = read(write(tmp_path / "a.txt", text.encode()))
    assert max(map(len, pieces)) <= 40
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_files_are_read_in_order_of_name_and_the_text_key_can_be_set(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, json.dumps({"body": f"in {name}"}).encode())
    assert read(f"files:{tmp_path}/*.jsonl", text_key="body")[0] == ["in a.jsonl", "in b.jsonl"]


def test_identity_of_a_corpus_changes_with_its_files(tmp_path):
    spec = write(tmp_path / "a.txt", b"one")
    before = corpora.open_corpus(spec).identity
    assert corpora.open_corpus(spec).identity == before
    write(tmp_path / "a.txt", b"one more")
    assert corpora.open_corpus(spec).identity != before


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b"fine\n\nna\xefve\n\nfine too", r"a\.txt: not UTF-8: byte 0xef at offset 8.*iconv.*--skip_bad"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "ok"}\n{"body": "x"}\n', r"line 2: no key 'text', found \['body'\].*--text_key"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": " "}\n', r"line 2: an empty document"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": 3}\n', r"line 2: 'text' is int"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\\ud83d"}\n', r"line 2: 'text' has half of a surrogate pair"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "x", "n": ' + b"9" * 5000 + b"}\n", r"line 2: not JSON \(.*digits"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": ' + b"[" * 100_000 + b"\n", r"line 2: not JSON \(.*recursion"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xff"}\n', r"line 2: not UTF-8: byte 0xff at offset 25"),
    ],
)
def test_bad_document_is_an_error_or_skipped_and_counted(tmp_path, name, content, complaint):
    spec = write(tmp_path / name, content)
    with pytest.raises(BadInput, match=complaint):
        read(spec)
    documents, skipped = read(spec, skip=True)
    assert skipped == 1
    assert documents in (["ok"], ["fine", "fine too"])


def test_error_about_truncated_gzip_names_the_file(tmp_path):
    rng = np.random.default_rng(0)
    text = "\n\n".join(str(rng.integers(0, 10**9, 50)) for _ in range(2000)).encode()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text)[:-1000])
    with pytest.raises(BadInput, match=r"a\.txt\.gz: the gzip file is truncated or damaged"):
        read(f"files:{tmp_path}/a.txt.gz")
    assert read(f"files:{tmp_path}/a.txt.gz", skip=True)[1] == 1


def test_missing_empty_and_unknown_sources_are_refused(tmp_path):
    for spec, complaint in [
        (f"files:{tmp_path}/none*.txt", "no file matches"),
        (f"files:{tmp_path}", r"it is a folder: files:.*/\*\.txt"),
        (write(tmp_path / "empty.txt", b""), "all 1 files are empty"),
        (write(tmp_path / "a.pdf", b"x"), r"a\.pdf: expected a name that ends in \.txt"),
        ("wikipedia", "expected docs, files:GLOB, hf:ORG/NAME.* or tfds:"),
        ("tfds:lm1b", "expected tfds:NAME"),
    ]:
        with pytest.raises(BadInput, match=complaint):
            read(spec)


def test_error_about_bad_parquet_names_the_file(tmp_path):
    table = as_parquet(tmp_path, ["ok", "", None])
    with pytest.raises(BadInput, match=r"a\.parquet, row 1: an empty document"):
        read(write(tmp_path / "a.parquet", table))
    assert read(f"files:{tmp_path}/a.parquet", skip=True) == (["ok"], 2)
    with pytest.raises(BadInput, match=r"no column 'body', found \['text'\].*--text_key"):
        read(f"files:{tmp_path}/a.parquet", text_key="body")
    with pytest.raises(BadInput, match=r"b\.parquet: not a readable Parquet file"):
        read(write(tmp_path / "b.parquet", table[:-50]))
    assert read(f"files:{tmp_path}/b.parquet", skip=True) == ([], 1)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_parquet_is_an_error_or_skipped_and_counted(tmp_path, suffix):
    whole = as_parquet(tmp_path, [f"document {i} of many" for i in range(50)])
    rng, said = random.Random(0), []
    for _ in range(200):
        content, at = bytearray(whole), rng.randrange(8 * len(whole))
        content[at // 8] ^= 1 << at % 8
        spec = write(tmp_path / f"a.parquet{suffix}", bytes(content))
        try:
            read(spec)
        except BadInput as error:
            said.append(str(error))
            _, skipped = read(spec, skip=True)
            assert skipped
    assert len(said) > 20
    assert all("a.parquet" in error and "--skip_bad" in error for error in said)


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    import tensorflow_datasets as tfds

    class SmallStories(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(40):
                yield i, {"text": f"Story {i}.\n\nIt ends with é.", "n": i}

    folder = tmp_path_factory.mktemp("tfds")
    SmallStories(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def test_tfds_prepared_as_array_record_is_read_without_tensorflow(tfds_folder):
    import sys

    documents, _ = read("tfds:small_stories:train", tfds_data_dir=tfds_folder)
    assert sorted(documents) == sorted(f"Story {i}.\nIt ends with é." for i in range(40))
    assert "tensorflow" not in sys.modules
    with pytest.raises(BadInput, match="no feature 'body'"):
        read("tfds:small_stories:train", tfds_data_dir=tfds_folder, text_key="body")
    with pytest.raises(BadInput, match="cannot be read"):
        read("tfds:small_stories:nosplit", tfds_data_dir=tfds_folder)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_error_says_that_a_tfds_data_set_needs_tensorflow(tmp_path):
    for name in ("glue/cola", "wikipedia/20230601.en"):
        with pytest.raises(
            BadInput, match=r"needs TensorFlow.*pip install tensorflow.*--source=hf:wikimedia/wikipedia"
        ):
            read(f"tfds:{name}:train", tfds_data_dir=str(tmp_path))
    with pytest.raises(BadInput, match="no data set 'no_such_set'"):
        read("tfds:no_such_set:train", tfds_data_dir=str(tmp_path))


def test_data_sets_of_tensorflow_datasets_can_be_prepared_without_tensorflow(tmp_path):
    """Stops before the download. tensorflow-datasets imports importlib_resources, but does not list it as a dependency.
    So it has to be installed for this test.
    """
    import tensorflow_datasets as tfds

    assert tfds.builder("lm1b", data_dir=tmp_path, file_format="array_record").url_infos


def test_documentation_becomes_prose():
    text = """Return the mean of `values`, as :func:`numpy.mean` does.

    Parameters
    ----------
    values : array_like, optional
        The numbers to average, as an array of any shape at all.
    axis : int
        The axis along which the mean is computed [1]_.

    .. code:: python

        mean(values)

    .. note:: It is slow
       for arrays that are large.

    Examples
    --------
    The simplest use is as follows::

        mean([1, 2])

    >>> mean([1, 2])
    1.5

    References
    ----------
    .. [1] A book that nobody has ever read to its end.
    """
    assert markup.paragraphs(text.replace("\n    ", "\n")) == [
        "Return the mean of values, as mean does.",
        "The numbers to average, as an array of any shape at all.",
        "The axis along which the mean is computed.",
        "It is slow for arrays that are large.",
        "The simplest use is as follows",
    ]


def test_each_documented_object_is_one_document_and_no_paragraph_repeats(tmp_path):
    source = tmp_path / "m.py"
    sentence = "A sentence of more than twelve words, so that it is long enough to be kept as one."
    source.write_text(f'"""{sentence}"""\ndef f():\n  """{sentence[:-4]}two."""\n  return f"{{f}} {sentence * 3}"\n')
    found = docs._documents(str(source))
    assert found == [[sentence], [sentence[:-4] + "two."]]
    assert list(docs._unique([*found, *found])) == [sentence, sentence[:-4] + "two."]


@pytest.mark.slow
def test_installed_documentation_is_large_enough_and_independent_of_the_number_of_processes():
    first = docs.collect(2)
    assert 12e6 < sum(map(len, first)) < 30e6
    assert first == docs.collect(1)
