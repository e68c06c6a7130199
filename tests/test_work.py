"""The work of a step: cycles and bytes. The module in these tests is small enough to count by hand."""

from bert_fast.cost import hlo
from bert_fast.cost.work import walk
from helpers.compiled_text import TEXT


def works(running):
    return list(walk(hlo.parse(TEXT), lambda branch: running if branch == 1 else 1 - running))


def counted(running):
    return sum(work.times * work.cycles for work in works(running) if work.cycles is not None)


def test_loops_and_branches_are_counted_as_often_as_they_run():
    assert counted(1.0) == 7 + 4 * 100 + 3 * 100 + 1000
    assert counted(0.25) == 7 + 4 * 100 + 3 * 100 + 250
    assert counted(0.0) == 7 + 4 * 100 + 3 * 100


def test_work_without_an_estimate_is_listed_with_the_bytes_it_moves():
    found = {work.operation: work.bytes for work in works(1.0) if work.cycles is None}
    assert found == {
        "gather": 2 * 4 * 8 * 4,  # its output, and as many bytes read from the table
        "scatter": 3 * 4 * 8 * 4,  # its updates are read; the rows that change are read and written
        "sort": 2 * 8 * 4 + 2 * 8 * 4,
        "custom-call": 2 * 8 * 4,  # the kernel alone, because the view moves nothing
        "copy-start": 2 * 8 * 4,
        "slice-start": 2 * 2 * 4,  # the slice, not the whole array
    }


def test_work_is_attributed_to_the_innermost_line_of_this_package():
    by_name = {work.name.rsplit("/", 1)[-1]: work.source for work in works(1.0) if work.name}
    assert by_name == {"add": "train/step.py:10", "mul": "layers.py:55", "dot_general": "layers.py:55"}


def test_a_loop_whose_trip_count_is_unknown_is_counted_once_and_listed():
    text = TEXT.replace("direction=LT", "direction=NE")
    found = list(walk(hlo.parse(text)))
    assert [work.cycles for work in found if work.operation == "while"] == [None]
    assert sum(work.times * work.cycles for work in found if work.cycles) == counted(1.0) - 2 * 100


def test_updates_of_a_scatter_may_be_larger_than_its_table():
    text = TEXT.replace("%u = f32[4,8]{1,0} parameter(2)", "%u = f32[400,8]{1,0} parameter(2)")
    scatter = next(work for work in walk(hlo.parse(text)) if work.operation == "scatter")
    assert scatter.bytes == 3 * 400 * 8 * 4


def test_libraries_inside_a_clone_named_bert_fast_are_not_part_of_the_package():
    text = TEXT.replace("/somewhere/site-packages", "/home/me/bert_fast/.venv/lib/site-packages")
    sources = {work.source for work in walk(hlo.parse(text)) if work.name}
    assert sources == {"train/step.py:10", "layers.py:55"}
