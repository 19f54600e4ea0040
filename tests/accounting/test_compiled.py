"""Reading compiled programs of each compiler: who takes part, where a collective stands, and what it is called."""

import re

from lsgd_jax.accounting.compiled import Sent, computations, cycles, placed, sent, trips_of

# Of the train step as the compilers print it, cut down to what is read; "@" stands for where a name is in metadata.
PROGRAM = re.sub(
    "@(.*)@",
    r'metadata={op_name="jit(one_round)/\1" stack_frame_id=7}',
    """HloModule jit_one_round, is_scheduled=true

%branch (arg: f32[8]) -> f32[8] {
  %listed = f32[8]{0:T(8)} all-reduce(%arg), channel_id=1, replica_groups={{0,1},{2,3}}, @cond/local/psum@
  ROOT %named = bf16[4,2]{1,0} all-gather(%x), replica_groups=mesh['group'=2,'worker'=4] {'worker'}, @cond/local/gather@
}

%other (arg: f32[8]) -> f32[8] {
  %add = f32[8] add(%arg, %arg), @cond/global/add@
  %send = (u32[86,8,128]{2,1,0}, u32[]{:S(2)}, token[]) send(%p, %after-all), channel_id=2, is_host_transfer=true
}

%body (arg: f32[8]) -> f32[8] {
  %start = (f32[8], f32[8], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,2},{2,0}}, @while/dot@
  %tiled = (bf16[6]{0}, s8[3]{0}) all-reduce(%a, %b), replica_groups=[4,2]<=[2,4]T(1,0), @while/body/gradient/psum@
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = f32[8] while(%p), condition=%condition, body=%body
  %known = f32[8] while(%loop), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %both = f32[8] conditional(%i, %a, %b), branch_computations={%branch, %nothing}
  ROOT %either = f32[8] conditional(%p, %a, %b), true_computation=%other, false_computation=%nothing
}

%condition (arg: f32[8]) -> pred[] {
  %less = pred[] compare(%a, %b), direction=LT
}

%nothing (arg: f32[8]) -> f32[8] {
  %copy = f32[8] copy(%arg)
}
""",
)


def test_each_collective_is_found_where_it_stands() -> None:
    found = placed(PROGRAM)
    unknown, known, local, across = found[:2], found[2:4], found[4:6], found[6:]
    assert [(each.loops, each.times, each.conditional) for each in found] == [
        *[(1, 1, False)] * 2, *[(0, 3, False)] * 2, *[(0, 1, True)] * 3,
    ]  # fmt: skip
    assert unknown[0].sent == known[0].sent == (Sent("collective-permute", "float32", 32, 3),)
    assert unknown[1].sent == (Sent("all-reduce", "bfloat16", 12, 2), Sent("all-reduce", "int8", 3, 2))
    assert [each.sent[0] for each in local] == [
        Sent("all-reduce", "float32", 32, 2),
        Sent("all-gather", "bfloat16", 4, 4),
    ]
    assert across[0].sent == (Sent("send", "uint32", 86 * 8 * 128 * 4, 2),)
    assert [each.asynchronous for each in found] == [True, False, True, False, False, False, False]


# Two loops in that of the local steps, as the compiler for TPUs prints them.
LOOPS = """
%block (arg: f32[8]) -> f32[8] {
  %product = f32[8] fusion(%arg), calls=%inside, backend_config={"window_config":{"estimated_cycles":"100"}}
}

%inside (arg: f32[8]) -> f32[8] {
  %multiply = f32[8] multiply(%arg, %arg), backend_config={"window_config":{"estimated_cycles":"7"}}
}

%until_12 (arg: (s32[], f32[8])) -> pred[] {
  %constant.9.clone = s32[]{:T(128)} constant(12), metadata={op_name="jit(one_round)/shard_map"}
  %count = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %lt.2 = pred[]{:T(512)} compare(%count, %constant.9.clone), direction=LT
}

%until_told (arg: (s32[], s32[])) -> pred[] {
  %constant.1 = s32[] constant(64)
  ROOT %lt.3 = pred[] compare(%count, %told), direction=LT
}

%step (arg: f32[8]) -> f32[8] {
  %forward = f32[8] while(%arg), condition=%until_12, body=%block
  %told = f32[8] while(%arg), condition=%until_told, body=%block, backend_config={"known_trip_count":{"n":"2"}}
  %add = f32[8] add(%arg, %arg), backend_config={"window_config":{"estimated_cycles":"10"}}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %before = f32[8] copy(%p), backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %steps = (s32[], f32[8]) while(%tuple), condition=%until_told, body=%step
}
"""


def test_loops_run_as_often_as_the_compiler_or_their_condition_tells() -> None:
    entry, instructions = computations(LOOPS)
    found = [trips_of(line, instructions) for line in (*instructions["step"], *instructions[entry])]
    assert found == [12, 2, None, None, None]


def test_cycles_are_those_of_a_local_step() -> None:
    assert cycles(LOOPS) == 12 * 100 + 2 * 100 + 10
    assert cycles(PROGRAM) == 0


def test_what_sparse_cores_send_is_asynchronous() -> None:
    program = """
%called_computation (arg: s32[8]) -> s32[8] {
  ROOT %sum = s32[8] fusion(%arg), calls=%fused
}

%fused (arg: s32[8]) -> s32[8] {
  ROOT %sum = s32[8] all-reduce(%arg), channel_id=1, replica_groups={{0,1}}, metadata={op_name="jit(step)/global/psum"}
}

ENTRY %main (p: s32[8]) -> s32[8] {
  %begun = ((), (), (s32[1])) call-start(), async_execution_thread="sparsecore", to_apply=%called_computation
  %given = ((s32[8]), s32[8]) call-update(%begun, %p)
  ROOT %done = s32[8] call-done(%given)
}
"""
    (found,) = placed(program)
    assert found.asynchronous
    assert found.sent == (Sent("all-reduce", "int32", 32, 2),)


def test_an_all_reduce_of_which_a_tpu_keeps_slices_is_a_reduce_scatter() -> None:
    program = """
%all-reduce-scatter.1.clone (input: bf16[8,2]) -> bf16[4,2] {
  %sum = bf16[8,2] all-reduce(%input), channel_id=1, replica_groups={{0,1}}
  ROOT %kept = bf16[4,2] dynamic-slice(%sum, %i, %zero), dynamic_slice_sizes={4,2}
}

ENTRY %main (p: bf16[8,2]) -> bf16[4,2] {
  ROOT %fusion = bf16[4,2] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1.clone
}
"""
    assert [each.sent for each in placed(program)] == [(Sent("reduce-scatter", "bfloat16", 32, 2),)]


def test_members_are_those_of_the_first_group_in_every_notation() -> None:
    permuted, tiled, _, _, listed, named, _ = placed(PROGRAM)
    assert (permuted.members, tiled.members, listed.members, named.members) == ((0, 1), (0, 4), (0, 1), (0, 1, 2, 3))


def test_what_has_lost_its_name_is_called_as_what_stands_beside_it() -> None:
    names = [each.operation for each in placed(PROGRAM)]
    assert names[4:] == [
        "jit(one_round)/cond/local/psum", "jit(one_round)/cond/local/gather", "jit(one_round)/cond/global/add",
    ]  # fmt: skip


def test_branches_are_told_from_what_is_sent_outside_of_them() -> None:
    outside, branches = sent(PROGRAM)
    assert outside[Sent("collective-permute", "float32", 32, 3)] == 4
    assert len(branches) == 2
    assert Sent("all-reduce", "float32", 32, 2) in branches[0]
