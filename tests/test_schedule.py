"""The cycles of an instruction: its scheduled bundles times its passes, or a bound if it has no schedule."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from bert_fast.cost import hlo, schedule
from bert_fast.cost.accelerators import TPUS
from bert_fast.cost.hlo import Instruction
from bert_fast.cost.work import Work, walk
from helpers.compiled_text import TEXT

V5E = TPUS["v5e"]
WINDOW = '%f = f32[8] fusion(), backend_config={"window_config":{"iteration_bounds":["3","2"],"estimated_cycles":"9"}}'


def work_of(text, cycles=None, moved=0):
    return Work(1.0, "fusion", cycles, moved, "", "", Instruction("f", "f32[8]", "fusion", (), text))


def test_a_fusion_takes_one_pass_per_window():
    assert schedule.iterations(WINDOW) == 6
    assert schedule.iterations("%f = f32[8] fusion()") is None
    assert schedule.cost(work_of(WINDOW, 9), {"f": 100}, V5E) == (600, False)


def test_an_instruction_takes_at_least_the_time_to_move_its_bytes():
    cycles, bounded = schedule.cost(work_of(WINDOW, 9, moved=819 * 10**6), {"f": 100}, V5E)
    assert cycles == pytest.approx(1e-3 * V5E.clock)  # 819 MB at 819 GB/s
    assert not bounded
    pair = dataclasses.replace(V5E, devices=2)  # two devices share the memory of a chip
    assert schedule.cost(work_of(WINDOW, moved=819 * 10**6), {}, pair).cycles == pytest.approx(2e-3 * V5E.clock)


def test_without_a_schedule_the_estimate_or_a_bound_counts():
    assert schedule.cost(work_of(WINDOW, 9), {}, V5E) == (9, True)
    assert schedule.cost(work_of("%g = f32[8] fusion()", None, moved=819), {"f": 100}, V5E) == (
        pytest.approx(1e-9 * V5E.clock),
        True,
    )


def kernel_text(grid):
    """The lowered text of a Pallas kernel with this grid, written as in a compiled module."""

    def double(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    def run(x):
        block = pl.BlockSpec((8, 128), lambda *at: at)
        cost = pl.CostEstimate(flops=131_072 * 700, transcendentals=0, bytes_accessed=77)
        return pl.pallas_call(
            double, jax.ShapeDtypeStruct(x.shape, x.dtype), grid=grid, in_specs=[block], out_specs=block,
            cost_estimate=cost,
        )(x)  # fmt: skip

    x = jax.ShapeDtypeStruct((8 * grid[0], 128 * grid[1]), jnp.float32)
    text = jax.jit(run).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    config = re.search(r'backend_config = "(\{.*?\})"', text)[1]
    config = config.replace("\\22", '"').replace("\\0A", "")
    return f'%f = f32[8] custom-call(%x), custom_call_target="tpu_custom_call", backend_config={config}'


def test_a_kernel_takes_one_pass_per_point_of_its_grid():
    text = kernel_text((4, 3))
    assert schedule.iterations(text) == 12
    assert schedule.cost(work_of(text), {"f": 100}, V5E) == (1200, False)


def test_no_kernel_is_free():
    # Without a schedule, a kernel costs the FLOPs that its author stated, at the peak rate of v5e: 131,072 per cycle.
    assert schedule.cost(work_of(kernel_text((4, 3))), {}, V5E) == (pytest.approx(700), True)
    kernel = next(work for work in walk(hlo.parse(TEXT)) if work.instruction.name == "kernel")
    assert schedule.cost(kernel, {}, V5E).cycles > 0


EQUALS = """
HloModule step

%fused.1 (x.1: bf16[8,128]) -> bf16[8,128] {
  %x.1 = bf16[8,128]{1,0} parameter(0)
  ROOT %double.1 = bf16[8,128]{1,0} add(%x.1, %x.1), metadata={op_name="jit(step)/layer_0/add"}
}

%fused.2 (x.2: bf16[8,128]) -> bf16[8,128] {
  %x.2 = bf16[8,128]{1,0} parameter(0)
  ROOT %double.2 = bf16[8,128]{1,0} add(%x.2, %x.2), metadata={op_name="jit(step)/layer_1/add"}
}

%fused.3 (x.3: bf16[8,128]) -> bf16[8,128] {
  %x.3 = bf16[8,128]{1,0} parameter(0)
  ROOT %square.3 = bf16[8,128]{1,0} multiply(%x.3, %x.3)
}

ENTRY %main (p.1: bf16[8,128], p.2: bf16[8,128]{1,0:S(1)}) -> bf16[8,128] {
  %p.1 = bf16[8,128]{1,0} parameter(0)
  %p.2 = bf16[8,128]{1,0:S(1)} parameter(1)
  %first = bf16[8,128]{1,0} fusion(%p.1), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"9","n":["2"]}
  %same = bf16[8,128]{1,0} fusion(%first), kind=kLoop, calls=%fused.2, backend_config={"estimated_cycles":"8","n":["2"]}
  %other_body = bf16[8,128]{1,0} fusion(%p.1), kind=kLoop, calls=%fused.3, backend_config={"n":["2"]}
  %other_passes = bf16[8,128]{1,0} fusion(%p.1), kind=kLoop, calls=%fused.2, backend_config={"n":["3"]}
  ROOT %elsewhere = bf16[8,128]{1,0} fusion(%p.2), kind=kLoop, calls=%fused.2, backend_config={"n":["2"]}
}
"""


def test_equal_instructions_share_a_schedule():
    # The compiler writes a schedule for only one of several equal instructions. The last three differ from the
    # first in what they fuse, in their passes, or in where their operand is.
    found = schedule.for_equals(hlo.parse(EQUALS), {"first": 340, "from_another_module": 7})
    assert found == {"first": 340, "same": 340, "from_another_module": 7}


def test_bundles_are_read_from_the_schedules_of_each_instruction(tmp_path):
    for name, count in (("fusion.12", 340), ("attention-forward", 7)):
        path = tmp_path / f"1700000000-{name}-73-schedule-analysis_packed-bundles-post-ra.txt"
        path.write_text(f"// a comment\ntotal scheduled bundles: {count}\n")
    (tmp_path / "1700000000-fusion.12-79-final_bundles.txt").write_text("total scheduled bundles: 1\n")
    assert schedule.read_bundles(tmp_path) == {"fusion.12": 340, "attention-forward": 7}
    assert list(tmp_path.iterdir()) == []
