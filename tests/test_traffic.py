"""The bytes that an instruction moves: only those in main memory, and only the slices that it reads or writes."""

import pytest

from bert_fast.cost import hlo
from bert_fast.cost.traffic import in_memory, moved

TEXT = """\
%inner (a.1: f32[12,8,128], i.1: s32[]) -> f32[8,128] {
  %a.1 = f32[12,8,128]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %layer = f32[8,128]{1,0} dynamic-slice(%a.1, %i.1, %i.1, %i.1), dynamic_slice_sizes={1,8,128}
}

%take (a: f32[12,8,128], i: s32[], b: f32[8,128]) -> f32[8,128] {
  %a = f32[12,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[8,128]{1,0} parameter(2)
  %nested = f32[8,128]{1,0} fusion(%a, %i), kind=kLoop, calls=%inner
  %flat = f32[96,128]{1,0} bitcast(%a)
  %rows = f32[4,128]{1,0} slice(%flat), slice={[0:4], [0:128]}
  ROOT %sum = f32[8,128]{1,0} add(%nested, %b)
}

%put (c: f32[12,8,128], i.2: s32[], d: f32[1,8,128]) -> (f32[12,8,128], f32[1,8,128]) {
  %c = f32[12,8,128]{2,1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %d = f32[1,8,128]{2,1,0} parameter(2)
  %e = f32[1,8,128]{2,1,0} negate(%d)
  %into = f32[12,8,128]{2,1,0} dynamic-update-slice(%c, %e, %i.2, %i.2, %i.2)
  ROOT %both = (f32[12,8,128]{2,1,0}, f32[1,8,128]{2,1,0}) tuple(%into, %e)
}

%all (f: f32[12,8,128]) -> f32[12,8,128] {
  %f = f32[12,8,128]{2,1,0} parameter(0)
  %g = f32[1,8,128]{2,1,0} slice(%f), slice={[0:1], [0:8], [0:128]}
  ROOT %h = f32[12,8,128]{2,1,0} negate(%f)
}

ENTRY %main (p: f32[12,8,128], n: s32[], q: f32[8,128], r: f32[1,8,128]) -> f32[8,128] {
  %p = f32[12,8,128]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %q = f32[8,128]{1,0:T(8,128)S(1)} parameter(2)
  %r = f32[1,8,128]{2,1,0} parameter(3)
  %taken = f32[8,128]{1,0:T(8,128)} fusion(%p, %n, %q), kind=kLoop, calls=%take
  %placed = (f32[12,8,128]{2,1,0}, f32[1,8,128]{2,1,0}) fusion(%p, %n, %r), kind=kLoop, calls=%put
  ROOT %whole = f32[12,8,128]{2,1,0} fusion(%p), kind=kLoop, calls=%all
}
"""
LAYER = 8 * 128 * 4


def bytes_of(name):
    module = hlo.parse(TEXT)
    entry = module.computations[module.entry]
    (instruction,) = [each for each in entry if each.name == name]
    return moved("fusion", module, {each.name: each.result for each in entry}, instruction)


def test_fusion_that_slices_an_operand_reads_only_the_slices():
    # One layer and four rows of the stack, a scalar, and the result. The other operand is in vector memory.
    assert bytes_of("taken") == LAYER + LAYER // 2 + 4 + LAYER


def test_fusion_that_updates_a_slice_in_place_writes_only_the_slice():
    # The fusion reads the update and a scalar, and writes the update twice: into the stack and as a second result.
    assert bytes_of("placed") == LAYER + 4 + 2 * LAYER


def test_fusion_that_also_uses_the_whole_operand_reads_all_of_it():
    assert bytes_of("whole") == 2 * 12 * LAYER


@pytest.mark.parametrize(
    ("result", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 0),
        ("(f32[8,128]{1,0:T(8,128)}, bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)})", 4096),
    ],
)
def test_arrays_in_vector_memory_are_not_in_main_memory(result, size):
    assert in_memory(result) == size
