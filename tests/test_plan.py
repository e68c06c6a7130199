import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_fast.plan import Route, Span, at_length, edit, frozen_depth, pack, whole

DEPTH = 6
FIELDS = {
    "queries": st.integers(1, 8),
    "keys": st.integers(1, 8),
    "frozen": st.booleans(),
    "cond": st.booleans(),
}
edges = st.tuples(st.integers(0, DEPTH), st.integers(0, DEPTH)).map(sorted)


@st.composite
def edits(draw, fields=tuple(FIELDS)):
    """Edits of a plan: (start, stop, {field: value})."""
    start, stop = draw(edges)
    field = draw(st.sampled_from(fields))
    return start, stop, {field: draw(FIELDS[field])}


def apply(plan, *changes):
    for start, stop, fields in changes:
        plan = edit(plan, start, stop, **fields)
    return plan


def settings(plan, layer):
    (span,) = (span for span in plan if span.start <= layer < span.stop)
    return span.queries, span.keys, span.frozen, span.cond


@given(edits(fields=("queries",)), edits(fields=("keys", "cond")), edits(fields=("frozen",)))
def test_edits_of_different_fields_commute(a, b, c):
    plan = whole(DEPTH)
    assert apply(plan, a, b, c) == apply(plan, c, a, b) == apply(plan, b, c, a) == apply(plan, c, b, a)


@given(st.lists(edits(), max_size=5))
def test_every_layer_is_covered_once_in_order(changes):
    plan = apply(whole(DEPTH), *changes)
    assert [i for span in plan for i in range(span.start, span.stop)] == list(range(DEPTH))


@given(st.lists(edits(), max_size=3), edits())
def test_edit_changes_only_its_own_layers(before, change):
    plan, (start, stop, fields) = apply(whole(DEPTH), *before), change
    (field,), (value,) = fields, fields.values()
    at = list(FIELDS).index(field)
    for layer in range(DEPTH):
        expected = list(settings(plan, layer))
        if start <= layer < stop:
            expected[at] = value
        assert settings(edit(plan, start, stop, **fields), layer) == tuple(expected)


def test_frozen_layers_are_a_prefix():
    plan = whole(DEPTH)
    assert frozen_depth(plan) == 0
    assert frozen_depth(edit(edit(plan, 0, 4, frozen=True), 1, 3, queries=5)) == 4
    assert frozen_depth(edit(plan, 0, DEPTH, frozen=True)) == DEPTH
    with pytest.raises(ValueError, match="frozen spans must come first"):
        frozen_depth(edit(plan, 1, 3, frozen=True))


def test_pack_without_a_draw_changes_nothing():
    plan = edit(whole(DEPTH), 1, 3, queries=4)
    assert pack(plan, None) == (plan, Route())


def test_pack_lists_the_layers_that_run_in_each_span():
    plan = (Span(0, 3), Span(3, 4), Span(4, 6, cond=True))
    scale_ML = np.array([[1, 0, 2, 0, 0, 3], [0, 4, 5, 0, 6, 0]])
    packed, route = pack(plan, scale_ML)
    assert packed == (Span(0, 3, run=2), Span(3, 4, run=0), Span(4, 6, cond=True))
    np.testing.assert_array_equal(route.layers_R, [[0, 2, 4, 5], [1, 2, 4, 5]])
    np.testing.assert_array_equal(route.scale_R, [[1, 2, 0, 3], [4, 5, 6, 0]])


def test_a_span_with_layers_of_different_widths_is_packed_for_cond():
    plan, scale_ML = edit(whole(DEPTH), 2, 4, queries=4), np.array([[1, 0, 1, 0, 1, 0.5]])
    shapes_L = [(4, 16), (4, 16), (4, 16), (3, 16), (4, 9), (4, 9)]
    packed, route = pack(plan, scale_ML, shapes_L)
    assert packed == (Span(0, 2, run=1), Span(2, 4, queries=4, cond=True), Span(4, 6, run=2))
    np.testing.assert_array_equal(route.layers_R, [[0, 2, 3, 4, 5]])
    np.testing.assert_array_equal(route.scale_R, [[1, 1, 0, 1, 0.5]])


def test_plan_at_another_length_keeps_its_shares_of_tokens():
    plan = (Span(0, 1), Span(1, 2, queries=64), Span(2, 5, queries=64, keys=96, frozen=False), Span(5, 6))
    assert at_length(plan, 128, 512) == (
        Span(0, 1), Span(1, 2, queries=256), Span(2, 5, queries=256, keys=384), Span(5, 6),
    )  # fmt: skip
    assert at_length(plan, 128, 1)[1].queries == 1
    assert at_length(plan, 128, 128) == plan


def test_equal_numbers_of_layers_that_run_give_the_same_program():
    plan = edit(whole(DEPTH), 2, 4, queries=4)
    one, _ = pack(plan, np.array([[1, 0, 1, 0, 1, 1.0]]))
    other, _ = pack(plan, np.array([[0, 0.5, 0, 1, 1, 1.0]]))
    assert one == other
    assert hash(one) == hash(other)


def test_pack_raises_if_micro_batches_run_different_numbers_of_layers():
    scale_ML = np.array([[1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1.0]])
    with pytest.raises(ValueError, match="the numbers must be equal"):
        pack(whole(DEPTH), scale_ML)
    pack(edit(whole(DEPTH), 0, DEPTH, cond=True), scale_ML)
