"""A run's log: whole, partial and damaged rows; the format of times and counts."""

import json

import pytest

from bert_fast import BadInput
from bert_fast.train.log import MetricWriter, Progress, clock, counted, read_rows

ROWS = [{"step": step, "split": "train", "loss": 1.5} for step in (1, 2, 3)]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]


@pytest.mark.parametrize("end", [b"", b'{"step": 4, "spl', b"\xff\xfe", b"\0\0\0"])
def test_partial_last_line_is_ignored(tmp_path, end):
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(LINES) + end)
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS


def test_complete_last_row_without_a_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(LINES)[:-1])
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS


def test_missing_and_empty_files_have_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").touch()
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize(
    "bad",
    [b'{"step": 2, "spl', b"", b"\0\0\0", b"\xff\xfe", b"7", b"[]", b"null", b'{"split": "train"}', b'{"step": 2}']
    + [b'{"step": "2", "split": "train"}'],
)
def test_damaged_line_is_named_and_no_row_is_dropped(tmp_path, bad, number):
    path = tmp_path / "metrics.jsonl"
    content = b"".join([*LINES[: number - 1], bad + b"\n", *LINES[number - 1 :]])
    path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"metrics.jsonl, line {number}: expected .* delete that line"):
        MetricWriter(tmp_path, after_step=3)
    assert path.read_bytes() == content


def test_every_flipped_bit_of_a_written_row_is_found(tmp_path):
    rows = [{**row, "loss": 1e-5 / (row["step"] + 2), "list": [1, None], "name": "é"} for row in ROWS]
    writer = MetricWriter(tmp_path, after_step=0)
    for row in rows:
        writer.write(row)
    writer.close()
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    assert read_rows(path) == rows
    for at in range(8 * len(content)):
        broken = bytearray(content)
        broken[at // 8] ^= 1 << at % 8
        path.write_bytes(broken)
        with pytest.raises(BadInput, match=r"line \d: expected .* Restore the file"):
            read_rows(path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (185, "3 min 05 s"),
        (2 * 3600 + 600, "2 h 10 min"),
        (48 * 3600 - 1, "47 h 59 min"),
        (48 * 3600, "2 d 0 h"),
        (76.5 * 3600, "3 d 4 h"),
        (1967 * 3600, "81 d 23 h"),
    ],
)
def test_long_times_are_in_days(seconds, text):
    assert clock(seconds) == text


def test_a_count_of_one_is_singular():
    assert [counted(number, "step") for number in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]


def test_time_left_is_shown_only_after_enough_steps_to_estimate_it(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("bert_fast.train.log.time.monotonic", lambda: now[0])
    progress = Progress(total=100, done=0)
    for seconds, step in ((60, 1), (80, 25)):
        now[0] = seconds
        progress.update(step, {})
    assert capsys.readouterr().err.splitlines() == ["step 1/100", "step 25/100  4 min 00 s left"]
