import numpy as np
import pytest

from vqgan_jax.plan import hlo

MESH = {"data": 2, "fsdp": 2, "tensor": 1}
NESTED = """
%product (a: f32[4,8], b: f32[8,16]) -> f32[4,16] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%inner_body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %fusion.2 = f32[4,16]{1,0} fusion(%p, %p), kind=kOutput, calls=%product, metadata={op_name="jit(f)/jvp(Net)/up/dot_general"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %tuple.1 = (s32[], f32[4,8]{1,0}) tuple(%p, %p)
}

%inner_condition (p: (s32[], f32[4,8])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%p, %constant.9), direction=LT
}

%outer_body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %copy.1 = f32[4,8]{1,0} copy(%p), backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %while.1 = (s32[], f32[4,8]{1,0}) while(%p), condition=%inner_condition, body=%inner_body
}

%anything (p: (s32[], f32[4,8])) -> pred[] {
  ROOT %c = pred[] constant(true)
}

ENTRY %main.7 (x: f32[4,8]) -> f32[4,8] {
  %while.2 = (s32[], f32[4,8]{1,0}) while(%x), condition=%anything, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  %scatter.1 = f32[16]{0} fusion(%x), kind=kCustom, calls=%product, metadata={op_name="jit(f)/scatter-add"}, backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  ROOT %add.1 = f32[4,8]{1,0} add(%x, %x), backend_config={"window_config":{"estimated_cycles":"1000"}}
}
"""  # noqa: E501


def entry(*lines: str) -> hlo.Program:
    """A program of these instructions."""
    return hlo.read("\n".join(["ENTRY %main (x: f32[2]) -> f32[2] {", *(f"  {line}" for line in lines), "}"]))


# Loops


def test_bodies_count_as_often_as_they_run_and_nested_loops_multiply():
    """The inner loop says how often it runs only by its condition, as a TPU's program does."""
    program = hlo.read(NESTED)
    found = {line.name: (times, cycles) for line, times, cycles in program.cycles()}
    assert found == {"fusion.2": (15, 1500), "copy.1": (3, 21), "add.1": (1, 1000), "scatter.1": (1, 0)}
    assert program.once() == 100 + 7 + 1000


def test_what_takes_time_and_has_no_estimate_is_told():
    program = entry(
        '%s.9 = f32[2]{0} select-and-scatter(%x, %x), metadata={op_name="jit(f)/pool"}',
        "%add.1 = f32[2]{0} add(%x, %x)",
    )
    assert [(line.op_name, cycles) for line, _, cycles in program.cycles()] == [("jit(f)/pool", 0)]


def test_products_inside_fusions_and_loops_are_counted():
    assert hlo.read(NESTED).flops() == (15 + 1) * 2 * 4 * 8 * 16


def test_what_has_no_estimate_is_told_and_not_added():
    lines = [line for line, *_ in hlo.read(NESTED).cycles()]
    assert [line.op_name for line in lines if line.unestimated] == ["jit(f)/scatter-add"]


def test_each_branch_of_a_conditional_is_entered():
    program = hlo.read(
        """
%left (p: f32[2]) -> f32[2] {
  ROOT %a = f32[2]{0} add(%p, %p), backend_config={"estimated_cycles":"3"}
}

%right (p: f32[2]) -> f32[2] {
  ROOT %b = f32[2]{0} add(%p, %p), backend_config={"estimated_cycles":"4"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  ROOT %c = f32[2]{0} conditional(%x, %x, %x), branch_computations={%left, %right}
}
"""
    )
    assert sum(cycles for *_, cycles in program.cycles()) == 7


# Convolutions

CONVOLUTIONS = [
    # 3 x 3 on 4 x 4: of 9 taps the corners have 4 and the edges 6
    ("f32[1,4,4,5]", "f32[1,4,4,2]", "f32[3,3,2,5]", "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
     2 * 2 * 5 * 100),
    # stride 2, padded behind only: one row and one column of the last taps fall off
    ("f32[1,2,2,5]", "f32[1,4,4,2]", "f32[3,3,2,5]", "window={size=3x3 stride=2x2 pad=0_1x0_1}, "
     "dim_labels=b01f_01io->b01f", 2 * 2 * 5 * 25),
    # that one's backward pass: zeros between the rows are not multiplied
    ("f32[1,4,4,2]", "f32[1,2,2,5]", "f32[3,3,2,5]", "window={size=3x3 pad=2_1x2_1 lhs_dilate=2x2 rhs_reversal=1x1}, "
     "dim_labels=b01f_01oi->b01f", 2 * 2 * 5 * 25),
    # a TPU's product of 4 x 4 pairs of matrices: one tap each
    ("bf16[4,4,64,32]", "bf16[4,4,64,16]", "bf16[4,4,16,32]", "window={size=4x4 stride=3x3 lhs_dilate=4x4}, "
     "dim_labels=01bf_01io->01bf", 2 * 16 * 64 * 16 * 32),
]  # fmt: skip


@pytest.mark.parametrize(("out", "left", "right", "rest", "expected"), CONVOLUTIONS)
def test_a_convolution_counts_taps_that_meet_a_number(out, left, right, rest, expected):
    program = entry(
        f"%l = {left}{{3,2,1,0}} parameter(0)",
        f"%r = {right}{{3,2,1,0}} parameter(1)",
        f"ROOT %c = {out}{{3,2,1,0}} convolution(%l, %r), {rest}",
    )
    assert program.flops() == expected


# Collectives


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,1},{2,3}}", [0, 1]),
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[2,2]<=[4]", [0, 1]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [0, 2]),
        ("replica_groups=[1,4]<=[4]", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2] {'axis_2'}", [0, 1]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [0, 2]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [0, 1, 2, 3]),
        ("replica_groups={}", [0, 1, 2, 3]),
    ],
)
def test_groups_in_every_notation(groups, first):
    np.testing.assert_array_equal(hlo.groups(f"%x), channel_id=1, {groups}, to_apply=%add", 4)[0], first)


@pytest.mark.parametrize(
    ("line", "kind", "axes", "expected"),
    [
        ("f32[100]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}", "all-reduce", ("fsdp",), 400.0),
        ("f32[]{:T(128)} all-reduce(%x), replica_groups=[1,4]<=[4]", "all-reduce", ("data", "fsdp"), 6.0),
        ("(f32[8]{0}, bf16[8]{0}) all-reduce(%x, %y), replica_groups={{0,2},{1,3}}", "all-reduce", ("data",), 48.0),
        ("bf16[100]{0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}", "all-gather", ("fsdp",), 100.0),
        ("(f32[9]{0}, f32[18]{0}) all-gather-start(%x), replica_groups={{0,1},{2,3}}", "all-gather", ("fsdp",), 36.0),
        ("f32[50]{0} reduce-scatter(%x), replica_groups={{0,1},{2,3}}", "reduce-scatter", ("fsdp",), 200.0),
        ("f32[8]{0} collective-permute(%x), source_target_pairs={{0,2},{2,0}}", "collective-permute", ("data",), 32.0),
        ("(f32[2,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%x, %t), channel_id=9, is_host_transfer=true",
         "send", ("data",), 8192.0),
    ],
)  # fmt: skip
def test_a_collective_sends_what_a_ring_sends_over_its_axes(line, kind, axes, expected):
    program = entry(f"%r = {line}, use_global_device_ids=true")
    assert program.collectives(MESH) == {kind: {"+".join(axes): expected}}


def test_the_reduction_of_a_collective_is_no_work_and_one_device_sends_nothing():
    program = entry("%r = f32[8]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3}}, to_apply=%main")
    assert program.collectives(MESH) == {}


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter():
    program = hlo.read(
        """
%all-reduce-scatter.1 (p: f32[100]) -> f32[50] {
  %r = f32[100]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}
  ROOT %s = f32[50]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={50}
}

ENTRY %main (x: f32[100]) -> f32[50] {
  ROOT %fusion = f32[50]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    )
    assert program.collectives(MESH) == {"reduce-scatter": {"fsdp": 200.0}}


# Names and messages


@pytest.mark.parametrize(
    ("op_name", "module", "kind"),
    [
        ("jit(train_step)/jvp(VQGAN.encode)/encoder/conv_in/conv_general_dilated",
         "VQGAN.encode/encoder/conv_in forward", "conv_general_dilated"),
        ("jit(train_step)/transpose(jvp(Transformer))/while/body/closed_call/checkpoint/rematted_computation/layers/"
         "layers.finish/norm2/reduce_sum", "Transformer/layers.finish/norm2 again", "reduce_sum"),
        ("jit(train_step)/transpose(jvp(Transformer))/while/body/closed_call/checkpoint/layers/layers.finish/up/"
         "dot_general", "Transformer/layers.finish/up backward", "dot_general"),
        ("jit(train_step)/sub", "outside of modules forward", "sub"),
        ("copy", "outside of modules forward", "copy"),
    ],
)  # fmt: skip
def test_where_an_operation_comes_from(op_name, module, kind):
    assert hlo.place(op_name, "copy") == (module, kind)


def test_a_message_about_memory_tells_how_much_was_needed():
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (183.11G)"
    assert hlo.out_of_memory(f"{message} exceeds available HBM (95.74G).") == pytest.approx(183.11 * 2**30)
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 101.5M of"
    assert hlo.out_of_memory(message) == 101.5 * 2**20
    assert hlo.out_of_memory("INTERNAL: no such thing (3.0G)") is None
