"""The text of a compiled module, small enough to count by hand."""

TEXT = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/somewhere/site-packages/flax/linen/normalization.py"
2 "/home/me/bert_fast/layers.py"
3 "/home/me/bert_fast/train/step.py"

FunctionNames
1 "norm"

FileLocations
1 {file_name_id=3 function_name_id=1 line=10 end_line=10 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=55 end_line=55 column=1 end_column=2}
3 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

%fused_gather (a: f32[100,8], b: s32[4]) -> f32[4,8] {
  %a = f32[100,8]{1,0:T(8,128)} parameter(0)
  %b = s32[4]{0} parameter(1)
  ROOT %g = f32[4,8]{1,0:T(8,128)} gather(%a, %b), offset_dims={1}
}

%fused_scatter (a: f32[100,8], b: s32[4], c: f32[4,8]) -> f32[100,8] {
  %a.1 = f32[100,8]{1,0} parameter(0)
  ROOT %s = f32[100,8]{1,0} scatter(%a.1, %a.1, %a.1), to_apply=%add
}

%body (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_add, metadata={op_name="jit(step)/jvp(Block)/mul" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"100"}}
}

%condition (x.1: f32[8]) -> pred[] {
  ROOT %x.1 = pred[]{:T(512)} parameter(0)
}

%skip (x.2: f32[8]) -> f32[8] {
  ROOT %x.2 = f32[8]{0} parameter(0)
}

%run (x.3: f32[8]) -> f32[8] {
  %x.3 = f32[8]{0} parameter(0)
  ROOT %f.3 = f32[8]{0} fusion(%x.3), kind=kLoop, calls=%fused_add, metadata={op_name="jit(step)/transpose(jvp(Block))/dot_general" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"1000"}}
}

%condition.2 (x.4: s32[]) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %x.4 = s32[]{:T(128)} parameter(0)
  ROOT %lt = pred[]{:T(512)} compare(%x.4, %three), direction=LT
}

%send (x.5: f32[8]) -> f32[8] {
  %x.5 = f32[8]{0} parameter(0)
  %half = f32[8]{0} fusion(%x.5), kind=kCustom, calls=%fused_collective, backend_config={"window_config":{"estimated_cycles":"50"}}
  ROOT %rest = f32[8]{0} fusion(%half), kind=kCustom, calls=%fused_collective, backend_config={"window_config":{"estimated_cycles":"50"}}
}

%fused_collective (x.6: f32[8]) -> f32[8] {
  %x.6 = f32[8]{0} parameter(0)
  %piece = f32[16]{0} all-gather(%x.6), channel_id=7, dimensions={0}
  %mark = f32[16]{0} custom-call(%piece), custom_call_target="AsyncCollectiveStart"
  ROOT %product = f32[8]{0} convolution(%mark, %mark), dim_labels=bf_io->bf
}

ENTRY %main (p: f32[100,8], i: s32[4], u: f32[4,8], v: f32[8], w: pred[]) -> (f32[8], f32[100,8]) {
  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[4]{0} parameter(1)
  %u = f32[4,8]{1,0} parameter(2)
  %v = f32[8]{0} parameter(3)
  %w = pred[]{:T(512)} parameter(4)
  %n = f32[8]{0} add(%v, %v), metadata={op_name="jit(step)/add" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"7"}}
  %gather_fusion = f32[4,8]{1,0:T(8,128)} fusion(%p, %i), kind=kCustom, calls=%fused_gather, metadata={stack_frame_id=1}
  %scatter_fusion = f32[100,8]{1,0} fusion(%p, %i, %u), kind=kCustom, calls=%fused_scatter, backend_config={"window_config":{"estimated_cycles":"1"}}
  %loop = f32[8]{0} while(%n), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %loop.2 = f32[8]{0} while(%loop), condition=%condition.2, body=%send
  %c = f32[8]{0} conditional(%w, %loop, %loop), true_computation=%run, false_computation=%skip
  %all-reduce-start.1 = f32[100,8]{1,0} all-reduce-start(%scatter_fusion), replica_groups={{0,1}}, to_apply=%add
  %all-reduce-done.1 = f32[100,8]{1,0} all-reduce-done(%all-reduce-start.1)
  %sort.5 = (f32[8]{0}, s32[8]{0}) sort(%c, %c), dimensions={0}, to_apply=%lt
  %view = f32[100,8]{1,0} custom-call(%p, %p), custom_call_target="ConcatBitcast"
  %kernel = f32[8]{0} custom-call(%v), custom_call_target="tpu_custom_call"
  %copy-start.2 = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%c)
  %slice-start.3 = ((f32[8]{0}), f32[2]{0:S(1)}, s32[]{:S(2)}) slice-start(%c), slice={[0:2]}
  %small = u32[]{:S(6)} xor(%w, %w)
  ROOT %t = (f32[8]{0}, f32[100,8]{1,0}) tuple(%c, %all-reduce-done.1)
}
"""  # noqa: E501
