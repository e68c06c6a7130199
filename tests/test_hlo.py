"""Reading the text of compiled programs. The module in these tests is small enough to count by hand."""

import pytest

from bert_fast.cost import hlo
from helpers.compiled_text import TEXT


@pytest.mark.parametrize(
    ("result", "size"),
    [("f32[8,128]{1,0:T(8,128)S(1)}", 4096), ("(bf16[2,3]{1,0}, s32[4]{0}, u32[]{:S(2)})", 32), ("pred[]", 1)],
)
def test_sizes_of_types(result, size):
    assert hlo.size_of(result) == size


def test_a_split_or_asynchronous_collective_is_counted_once_each_time_it_runs():
    # One all-gather is split over two fusions in a loop that runs three times.
    assert hlo.collectives(hlo.parse(TEXT)) == {
        "all-reduce": 3200, "all-gather": 3 * 16 * 4, "reduce-scatter": 0, "collective-permute": 0, "all-to-all": 0,
    }  # fmt: skip
