"""Several sources, one after another or in given shares of the text. Interruptions do not change the shards' bytes."""

import json

import pytest

from bert_fast import BadInput
from bert_fast.data import mixture, staging
from bert_fast.data.mixture import Mixture, Stream, open_mixture
from bert_fast.data.prepare import prepare
from helpers.made_corpus import contents

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", *"0123456789", *(f"##{i}" for i in range(10))]


@pytest.fixture
def folder(tmp_path):
    """Three sources: a has 300 documents of 20 bytes, b has 50 of 40 bytes, and c has 40 of 10 bytes in two files."""
    write(tmp_path / "a.txt", "a", 300, 20)
    write(tmp_path / "b.txt", "b", 50, 40)
    write(tmp_path / "c0.txt", "c", 25, 10)
    write(tmp_path / "c1.txt", "c", 15, 10, first=25)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def write(path, letter, count, size, first=0):
    path.write_text("\n\n".join(f"{letter} {first + i:0{size - 2}d}" for i in range(count)))


def read(folder, *sources, repeat=False):
    """All documents of sources such as "2*a", and each source's position at the end."""
    specs = [spec[:-1] + f"files:{folder}/{spec[-1]}*.txt" for spec in sources]
    stream = Stream(open_mixture(specs, repeat), (), skip_bad=False)
    return list(stream), stream.positions_K


def of(letter, documents):
    return [text for text in documents if text.startswith(letter)]


def test_sources_without_weights_follow_each_other(folder):
    documents, positions = read(folder, "b", "a", "c")
    assert [text[0] for text in documents] == ["b"] * 50 + ["a"] * 300 + ["c"] * 40
    assert [(position.passes, position.total) for position in positions] == [(1, 50), (1, 300), (1, 40)]


def test_shares_of_the_text_are_as_given_at_every_point(folder):
    documents, _ = read(folder, "3*a", "1*b")
    read_a = read_b = 0
    for text in documents:
        read_a, read_b = read_a + len(text) * (text[0] == "a"), read_b + len(text) * (text[0] == "b")
        assert abs(read_a - 0.75 * (read_a + read_b)) <= 40
    assert of("a", documents) == read(folder, "a")[0][: len(of("a", documents))]


def test_mixture_ends_when_a_source_runs_out_and_repeats_nothing(folder):
    documents, positions = read(folder, "0.5*a", "0.5*c")
    assert of("c", documents) == read(folder, "c")[0]
    assert len(documents) == len(set(documents))
    assert sum(map(len, of("a", documents))) == pytest.approx(400, abs=20)
    assert [position.passes for position in positions] == [0, 1]


def test_repeat_reads_short_sources_again_until_every_source_was_read_once(folder):
    documents, positions = read(folder, "0.5*a", "0.5*c", repeat=True)
    assert of("a", documents) == read(folder, "a")[0]
    whole = read(folder, "c")[0]
    assert of("c", documents) == (whole * 20)[: len(of("c", documents))]
    assert sum(map(len, of("c", documents))) == pytest.approx(6000, abs=20)
    assert (positions[0].passes, positions[0].total) == (1, 300)
    assert positions[1].passes in (14, 15)


@pytest.mark.parametrize(
    ("sources", "repeat"), [(("a", "c"), False), (("1*a", "2*b", "3*c"), False), (("0.7*a", "0.3*c"), True)]
)
def test_stream_continues_from_any_position(folder, sources, repeat):
    specs = [spec[:-1] + f"files:{folder}/{spec[-1]}*.txt" for spec in sources]
    mixed = open_mixture(specs, repeat)
    whole = Stream(mixed, (), skip_bad=False)
    before = []
    for number, text in enumerate(whole):
        before.append(text)
        if number % 7 == 0:
            after = [mixture.Position(*position) for position in json.loads(json.dumps(whole.positions_K))]
            rest = list(Stream(mixed, after, skip_bad=False))
            assert before + rest == read(folder, *sources, repeat=repeat)[0]


@pytest.mark.parametrize(("weights", "repeat"), [(("", ""), False), (("2*", "1*"), False), (("1*", "4*"), True)])
def test_bad_documents_are_counted_once_per_pass_despite_an_interruption(tmp_path, weights, repeat):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_bytes(b"".join(b"good %d\n\nna\xefve\n\n" % i for i in range(20)))
    specs = [f"{weight}files:{tmp_path}/{name}.txt" for weight, name in zip(weights, "ab", strict=True)]
    mixed = open_mixture(specs, repeat)
    whole = Stream(mixed, (), skip_bad=True)
    list(whole)
    for position in whole.positions_K:
        assert abs(position.skipped - position.total) <= 1
    for stop in (1, 5, 19, 21, 25, 70):
        first = Stream(mixed, (), skip_bad=True)
        for _, _ in zip(range(stop), first, strict=False):
            pass
        second = Stream(mixed, first.positions_K, skip_bad=True)
        list(second)
        assert second.positions_K == whole.positions_K


def prepared(folder, out, **options):
    specs = [f"0.7*files:{folder}/a*.txt", f"0.3*files:{folder}/c*.txt"]
    options = {
        "vocab": folder / "vocab.txt",
        "valid_fraction": 0.1,
        "processes": 1,
        "unit": 300,
        "repeat": True,
    } | options
    return prepare(specs, out, **options)


def test_shards_of_a_mixture_do_not_depend_on_processes_or_interruptions(folder, tmp_path, monkeypatch, capsys):
    manifest = prepared(folder, tmp_path / "whole")
    assert "0.7*files:" in capsys.readouterr().out
    prepared(folder, tmp_path / "two", processes=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "whole")
    write_, count = staging.Unit.write, 0

    def interrupted(*args, **kwargs):
        nonlocal count
        count += 1
        if count % 5 == 0:
            raise KeyboardInterrupt
        return write_(*args, **kwargs)

    monkeypatch.setattr(staging.Unit, "write", interrupted)
    for _ in range(20):
        try:
            prepared(folder, tmp_path / "out")
            break
        except KeyboardInterrupt:
            pass
    assert count > 10
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    first, second = manifest["mixture"]
    assert (first["documents"], first["bytes"], first["passes"]) == (300, 6000, 1)
    assert first["share"] == pytest.approx(0.7, abs=0.005)
    assert second["share"] == pytest.approx(0.3, abs=0.005)
    assert second["passes"] > 1
    assert manifest["source"] == f"0.7*files:{folder}/a*.txt + 0.3*files:{folder}/c*.txt"


def test_vocabulary_is_trained_on_the_shares_of_the_mixture(folder):
    mixed = Mixture(open_mixture([f"1*files:{folder}/a.txt", f"3*files:{folder}/b.txt"], False).sources, [0.25, 0.75])
    texts = list(mixed.sample(800, skip_bad=False))
    assert sum(map(len, of("a", texts))) == pytest.approx(200, abs=40)
    assert sum(map(len, of("b", texts))) == pytest.approx(600, abs=40)


def test_shares_of_the_vocabularys_text_are_shares_of_bytes(folder):
    (folder / "d.txt").write_text("\n\n".join("日本語" * 4 for _ in range(100)))  # 36 bytes each, 12 characters
    made = Mixture(open_mixture([f"1*files:{folder}/a.txt", f"1*files:{folder}/d.txt"], False).sources, [0.5, 0.5])
    texts = list(made.sample(1000, skip_bad=False))
    assert sum(len(text.encode()) for text in texts if text[0] != "a") == pytest.approx(500, abs=40)


@pytest.mark.parametrize(
    ("sources", "repeat", "complaint"),
    [
        (("0.5*a", "b"), False, r"--source=files:.*/b\*\.txt has no weight.*give all of them a weight, or none"),
        (("0*a", "1*b"), False, r"the weight is 0: expected a positive number"),
        (("1e*a", "1*b"), False, r"the weight is 1e: expected a positive number"),
        (("a", "b"), True, "--repeat needs weights"),
        (("1*a", "1*e"), True, r"files:.*/e\*\.txt has no documents"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(folder, sources, repeat, complaint):
    (folder / "e.txt").write_text("\n \n")
    with pytest.raises(BadInput, match=complaint):
        read(folder, *sources, repeat=repeat)


def test_star_in_a_file_pattern_is_not_mistaken_for_a_weight(folder):
    documents, _ = read(folder, "2 * a")
    assert len(documents) == 300
    assert open_mixture(f"files:{folder}/[ab]*.txt", False).shares_K is None


def test_sample_of_a_source_of_unknown_size_is_not_empty(folder, monkeypatch):
    made = open_mixture([f"files:{folder}/a.txt"], False)
    monkeypatch.setattr(made.sources[0], "parts", [part._replace(bytes=0) for part in made.sources[0].parts])
    assert 0 < sum(map(len, made.sample(200, False))) <= 220
