"""Sources `hf:...`, read from a stand-in for the Hugging Face Hub.

Errors name the remedy. A short outage only causes a delay.
"""

import io
import json
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_fast import BadInput
from bert_fast.data import corpora, hf_datasets
from bert_fast.data.prepare import prepare
from helpers import hub_server

pytest.importorskip("datasets")
STORIES = [[f"Story {part}-{i} ends." for i in range(25)] for part in range(2)]


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=10)
    return buffer.getvalue()


def parquet_files():
    return {f"data/train-{i:05d}-of-00002.parquet": parquet(id=[0] * 25, text=texts) for i, texts in enumerate(STORIES)}


def lines(count):
    return "".join(json.dumps({"id": i, "body": f"Line {i}."}) + "\n" for i in range(count)).encode()


def configs():
    """Two configs of JSON lines, the second with a name that has a full stop."""
    card = "---\nconfigs:\n- config_name: small\n  data_files: s/train.jsonl\n"
    card += "- config_name: 2024.en\n  data_files: e/train.jsonl\n---\n"
    return {"README.md": card.encode(), "s/train.jsonl": lines(3), "e/train.jsonl": lines(20)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import datasets

    with hub_server.Hub() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between two tries
        hub.commit = hub.add("org/stories", parquet_files(), kind="dataset")
        yield hub


def read(spec, **options):
    corpus = corpora.open_corpus(f"hf:{spec}", **options)
    bad = corpora.Bad()
    return corpus, [text for part in corpus.parts for text in corpus.documents(part, bad)]


def test_documents_of_every_file_are_streamed_in_order(hub):
    corpus, documents = read("org/stories:train")
    assert documents == STORIES[0] + STORIES[1]
    assert corpus.identity == hub.commit
    assert [part.bytes for part in corpus.parts] == [len(content) for content in parquet_files().values()]


def test_config_column_and_revision_are_part_of_the_source(hub):
    old = hub.add("org/lines", configs(), kind="dataset")
    new = hub.add("org/lines", {"e/train.jsonl": lines(5)}, kind="dataset")
    for spec, key, commit, count in [
        ("org/lines/2024.en:train:body", "text", new, 5),
        (f"org/lines@{old}/2024.en:train", "body", old, 20),
    ]:
        corpus, documents = read(spec, text_key=key)
        assert corpus.identity == commit
        assert documents == [f"Line {i}." for i in range(count)]
    with pytest.raises(BadInput, match=r"'nothing' not found\. Available: \['small', '2024\.en'\]"):
        read("org/lines/nothing:train")


def test_folder_is_read_like_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.jsonl").write_bytes(lines(20))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    corpus, documents = read("./mine:train:body")
    assert documents == [f"Line {i}." for i in range(20)]
    (tmp_path / "mine/train.jsonl").write_text('{"body": "One."}\n')
    assert read("./mine:train:body")[0].identity != corpus.identity


@pytest.mark.parametrize("pattern", ["/api/datasets/org/stories", "HEAD /datasets/.*README", "GET .*00001-of.*parquet"])
def test_read_succeeds_after_a_short_outage(hub, pattern):
    hub.fail(pattern, 503, times=2)
    assert read("org/stories:train")[1] == STORIES[0] + STORIES[1]
    assert hub.faults[0].times == 0


def test_long_outage_ends_with_an_error_that_names_the_remedy(hub):
    hub.fail("/api/datasets/org/stories", 503, times=1000)
    with pytest.raises(BadInput, match=r"cannot be read, after 4 tries .*same command again to continue"):
        read("org/stories:train")


def test_long_outage_while_reading_ends_with_an_error(hub):
    corpus = corpora.open_corpus("hf:org/stories:train")
    hub.fail("GET .*00001-of.*parquet", 503, times=1000)
    with pytest.raises(BadInput, match="cannot be read, after 4 tries"):
        list(corpus.documents(corpus.parts[1], corpora.Bad()))


def test_reading_continues_at_the_row_where_it_failed():
    class Part:
        """Rows that fail twice, at different places."""

        fails = [7, 12]  # noqa: RUF012

        def __init__(self, first=0):
            self.first = first

        def skip(self, count):
            return Part(count)

        def __iter__(self):
            for i in range(self.first, 20):
                if i in self.fails:
                    self.fails.remove(i)
                    raise ConnectionError("cut")
                yield {"text": str(i)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)
        assert list(hf_datasets._rows("org/x:train", "org/x", Part(), "text")) == [str(i) for i in range(20)]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("org/none:train", r"no data set at http.*/datasets/org/none, or it is private.*hf auth login"),
        ("org/secret:train", r"only by people who accepted its terms.*/datasets/org/secret.*HF_TOKEN"),
        ("org/stories@v9:train", "no such revision: leave out @REVISION"),
        ("org/stories:test", r"Bad split: test\. Available splits: \['train'\]"),
        ("org/stories:train:body", r"no column 'body', found \['id', 'text'\].*SPLIT:COLUMN"),
        ("org/stories:train[:5]", "a part of a split cannot be streamed"),
        ("org/stories", "expected hf:ORG/NAME"),
        ("stories:train", "expected hf:ORG/NAME"),
        ("org/stories:train:text:more", "expected hf:ORG/NAME"),
        ("./nowhere:train", "no folder ./nowhere"),
    ],
)
def test_error_says_what_is_wrong_with_a_source(hub, spec, complaint):
    hub.fail("org/secret", 401, times=100, X_Error_Code="GatedRepo")
    with pytest.raises(BadInput, match=complaint):
        read(spec)


def test_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"pip install 'bert_fast\[hf\]'"):
        read("org/stories:train")


def test_commit_is_in_the_manifest_and_a_new_one_is_refused(hub, tmp_path):
    def prepared():
        return prepare("hf:org/stories:train", tmp_path / "out", vocab_size=120, processes=1)

    assert prepared()["settings"]["source_identity"] == hub.commit
    hub.add("org/stories", {"data/train-00001-of-00002.parquet": parquet(text=["New."])}, kind="dataset")
    with pytest.raises(BadInput, match=f"source_identity: '{hub.commit}' there"):
        prepared()
