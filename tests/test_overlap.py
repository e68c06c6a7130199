"""The time of a collective is hidden only while other work overlaps it."""

import pytest

from bert_fast.cost import hlo, overlap
from bert_fast.cost.accelerators import TPUS
from bert_fast.cost.hlo import Instruction

V5E = TPUS["v5e"]
MIB = 2**20
# An all-reduce of 1 MiB over 16 chips. Each chip sends 30 / 16 MiB. A chip in a corner of the slice has two links.
SECONDS = 30 / 16 * MIB / (2 * 50e9)


def text(collective, done="", ready="%collective"):
    return f"""\
%fused (a: f32[262144]) -> f32[262144] {{
  %a = f32[262144]{{0}} parameter(0)
  %piece = f32[262144]{{0}} all-reduce(%a), channel_id=7, replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %mark = f32[262144]{{0}} custom-call(%piece), custom_call_target="AsyncCollectiveStart"
}}

%awaited (b: f32[262144]) -> f32[262144] {{
  %b = f32[262144]{{0}} parameter(0)
  %piece.2 = f32[262144]{{0}} all-reduce(%b), channel_id=7, replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %mark.2 = f32[262144]{{0}} custom-call(%piece.2), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (p: f32[262144]) -> f32[262144] {{
  %p = f32[262144]{{0}} parameter(0)
  {collective}
  %work = f32[262144]{{0}} negate(%p)
  {done}
  ROOT %after = f32[262144]{{0}} negate({ready})
}}
"""


GROUPS = "replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}, to_apply=%add"
WAITS = text(f"%collective = f32[262144]{{0}} all-reduce(%p), {GROUPS}")
STARTS = text(
    f"%begun = f32[262144]{{0}} all-reduce-start(%p), {GROUPS}",
    "%collective = f32[262144]{0} all-reduce-done(%begun)",
)
WRAPPED = text(
    "%begun = ((f32[262144]), f32[262144]{0}) async-start(%p), calls=%fused",
    "%collective = f32[262144]{0} async-done(%begun)",
)
FUSED = text(
    "%begun = f32[262144]{0} fusion(%p), kind=kCustom, calls=%fused",
    "%collective = f32[262144]{0} fusion(%begun), kind=kCustom, calls=%awaited",
)


def found(program, **work):
    return overlap.communication(hlo.parse(program), work, "v5e:4x4", V5E)


@pytest.mark.parametrize(
    ("line", "bytes_received"),
    [
        ("%g = (f32[16], f32[256]) all-gather-start(%p), dimensions={0}", 1024),
        ("%g = ((f32[16], f32[8]), (f32[256], f32[128])) all-gather-start(%p, %q), dimensions={0}", 1536),
        ("%g = (f32[16], f32[16], u32[], u32[]) collective-permute-start(%p)", 64),
        ("%g = f32[16] all-reduce-start(%p), to_apply=%add", 64),
        ("%g = f32[256] all-gather(%p), dimensions={0}", 1024),
    ],
)
def test_operands_that_a_started_collective_returns_are_not_counted(line, bytes_received):
    program = hlo.parse(f"ENTRY %main (p: f32[16]) -> f32[16] {{\n  {line}\n}}")
    assert hlo.received(program.computations["main"][0]) == bytes_received


def test_collective_that_is_not_started_early_is_not_hidden():
    assert found(WAITS, work=1.0, after=1.0) == (pytest.approx(SECONDS), pytest.approx(SECONDS))


@pytest.mark.parametrize("program", [STARTS, WRAPPED, FUSED])
def test_work_between_start_and_end_hides_a_collective(program):
    assert found(program, work=1.0) == (pytest.approx(SECONDS), pytest.approx(0))
    assert found(program, work=SECONDS / 4, after=1.0) == (pytest.approx(SECONDS), pytest.approx(SECONDS * 3 / 4))


def test_work_that_is_fused_with_a_collective_hides_it():
    assert found(FUSED, begun=SECONDS / 2, collective=SECONDS / 4).exposed == pytest.approx(SECONDS / 4)


def test_two_collectives_share_the_network():
    second = f"%other = f32[262144]{{0}} all-reduce-start(%p), {GROUPS}\n  %work ="
    program = STARTS.replace("%work =", second).replace("negate(%collective)", "all-reduce-done(%other)")
    assert found(program, work=SECONDS) == (pytest.approx(2 * SECONDS), pytest.approx(SECONDS))


@pytest.mark.parametrize(
    ("operation", "share"),
    [
        ("all-reduce", 2 * 3 / 4),
        ("all-gather", 3 / 4),
        ("reduce-scatter", 3),  # its result is a quarter of what it reduces
        ("collective-permute", 2),  # over one link instead of two
    ],
)
def test_bytes_that_a_chip_sends(operation, share):
    line = f"%c = f32[262144] {operation}(%p), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}"
    sent = Instruction("c", "f32[262144]", operation, ("p",), line)
    assert overlap.seconds_of(sent, "v5e:2x4", V5E) == pytest.approx(share * MIB / 100e9)


@pytest.mark.parametrize(
    ("topology", "count"), [("v5e:1x1", 0), ("v5e:2x4", 2), ("v5e:16x16", 4), ("v5p:2x2x1", 2), ("v5p:4x4x4", 6)]
)
def test_links_of_a_corner_chip(topology, count):
    assert overlap.links(topology, TPUS[topology.split(":")[0]]) == count


def test_one_chip_sends_nothing():
    alone = text("%collective = f32[262144]{0} all-reduce(%p), replica_groups={{0}}, to_apply=%add")
    assert overlap.communication(hlo.parse(alone), {}, "v5e:1x1", V5E) == (0, 0)
