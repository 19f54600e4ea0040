"""Reading compiled programs: where do they communicate, and what?

In text, as XLA prints them for CPUs, GPUs and TPUs, and by jax 0.10 as by newer ones.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lsgd_jax.accounting.traffic import Collective

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast|send)(-start)?\("
)
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|async_wrapped)=%?([\w.\-]+)|called_computations=\{([^}]*)\}")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
PAIR = re.compile(r"\{(\d+),(\d+)\}")
LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
TILED_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# So the compiler for TPUs calls fusions of an all-reduce and the slices of it that devices keep; and those of other
# work with a step of a collective that is under way meanwhile, whose text they repeat, as do its beginning and its end.
SCATTERED, WOVEN = "all-reduce-scatter", "async_collective_fusion"
# What sparse cores do meanwhile.
CALL = " call-start("
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
BOUND = re.compile(r"ROOT .* compare\(\S+, %?([\w.\-]+)\), direction=LT")
CONSTANT = re.compile(r" %?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
OPERATION = re.compile(r'op_name="([^"]*)"')
DTYPES = {
    "pred": "bool", "s8": "int8", "u8": "uint8", "s16": "int16", "u16": "uint16", "s32": "int32", "u32": "uint32",
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64",
}  # fmt: skip


class Sent(NamedTuple):
    """One array of a collective, as the compiler has it.

    Attributes:
      kind: as XLA calls it.
      dtype: as JAX calls it.
      bytes: of one device's operand.
      devices: those that take part together; for a collective-permute, all that send.
    """

    kind: str
    dtype: str
    bytes: int
    devices: int


class Placed(NamedTuple):
    """A collective where it stands.

    Attributes:
      sent: its arrays.
      members: devices that take part together, by their place in the mesh: the first of such groups.
      operation: what it is called in the trace: "jit(train_step)/shard_map/cond/branch_1_fun/local/psum". Where the
        compiler has dropped that, as for several slices of TPUs, what is called so in the same computation.
      asynchronous: whether something may be computed while it is under way.
      conditional: whether it stands in a branch.
      loops: in how many loops of unknown length it stands.
      times: how often the loops of known length that it stands in run.
    """

    sent: tuple[Sent, ...]
    members: tuple[int, ...]
    operation: str
    asynchronous: bool
    conditional: bool
    loops: int
    times: int


def as_compiled(sent: Iterable[Collective], times: int = 1, *, devices: int) -> Counter[Sent]:
    """What the ledger has traced, as often, as it would stand in a program for so many devices, one a worker."""
    found = Counter[Sent]()
    for one in sent:
        together = one.senders * devices // one.workers if one.kind == "collective-permute" else one.workers
        found[Sent(one.kind, one.dtype, one.bytes, together)] += one.times * times
    return found


def computations(program: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the entry computation, and the instructions of each computation."""
    entry, current, found = "", "", dict[str, list[str]]()
    for line in program.splitlines():
        if not line.startswith((" ", "}")) and (start := COMPUTATION.match(line)):
            current = start[2]
            found[current] = []
            entry = current if start[1] else entry
        elif line.startswith(" ") and current:
            found[current].append(line)
    return entry, found


def collectives(program: str) -> list[str]:
    """All instructions that communicate."""
    return [line for lines in computations(program)[1].values() for line in lines if COLLECTIVE.search(line)]


def placed(program: str) -> list[Placed]:
    """All collectives that are reached from the entry, each where it stands; one that is reached twice counts twice."""
    entry, instructions = computations(program)
    found = list(_placed(entry, instructions, asynchronous=False, conditional=False, loops=0, times=1))
    woven = {_told(each) for name, each in found if name.startswith(WOVEN)}
    once: dict[Any, Placed] = {}
    for number, (_, each) in enumerate(found):
        told = _told(each)
        if told in woven:  # its beginning comes first
            once.setdefault(told, each._replace(asynchronous=True))
        else:
            once[number] = each
    return list(once.values())


def _told(collective: Placed) -> Any:
    """What the text of one that is repeated has in common."""
    return collective.sent, collective.members, collective.operation


def collectives_outside_conditionals(program: str) -> list[str]:
    """Those that run whatever the predicates: reached from the entry without entering a branch."""
    return [line for line, _ in _unconditional(*computations(program))]


def sent(program: str) -> tuple[Counter[Sent], list[Counter[Sent]]]:
    """What is sent outside of all conditionals, and in each of their branches that sends anything.

    A loop counts as often as the compiler knows that it runs; one of unknown length counts once.
    Collectives of several arrays, into which the compiler puts equal ones, count array by array.
    """
    entry, instructions = computations(program)
    names = [name for lines in instructions.values() for line in lines for name in branches_of(line)]
    branches = [_sent_in(name, instructions) for name in names]
    return _sent_in(entry, instructions), [branch for branch in branches if branch]


def _sent_in(computation: str, instructions: dict[str, list[str]]) -> Counter[Sent]:
    found = Counter[Sent]()
    for line, times in _unconditional(computation, instructions):
        for array in _arrays(line):
            found[array] += times
    return found


def _unconditional(computation: str, instructions: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    """The collectives that are reached without entering a branch, and how often each runs."""
    for line in instructions[computation]:
        if COLLECTIVE.search(line):
            yield line, 1
        elif " conditional(" not in line:
            trips = trips_of(line, instructions) or 1
            for called in called_by(line):
                for inner, times in _unconditional(called, instructions):
                    yield inner, times * trips


def _placed(
    computation: str,
    instructions: dict[str, list[str]],
    *,
    asynchronous: bool,
    conditional: bool,
    loops: int,
    times: int,
) -> Iterator[tuple[str, Placed]]:
    """Each with the name of the computation that it stands in."""
    for line in instructions[computation]:
        if found := COLLECTIVE.search(line):
            operation = OPERATION.search(line)
            name = operation[1] if operation else " ".join(OPERATION.findall("\n".join(instructions[computation])))
            sent = tuple(_arrays(line))
            if computation.startswith(SCATTERED):
                sent = tuple(array._replace(kind="reduce-scatter") for array in sent)
            begins = asynchronous or bool(found[2])
            yield computation, Placed(sent, _members(line), name, begins, conditional, loops, times)
            continue
        branches, trips = branches_of(line), trips_of(line, instructions)
        unknown = " while(" in line and trips is None
        for called in [*branches, *called_by(line)]:
            yield from _placed(
                called,
                instructions,
                asynchronous=asynchronous or CALL in line,
                conditional=conditional or bool(branches),
                loops=loops + unknown,
                times=times * (trips or 1),
            )


def trips_of(line: str, instructions: dict[str, list[str]]) -> int | None:
    """How often a loop runs, if the compiler tells, or its condition: a counter, from 0, less than a constant."""
    if told := TRIP_COUNT.search(line):
        return int(told[1])
    if " while(" not in line or not (condition := CONDITION.search(line)):
        return None
    text = "\n".join(instructions[condition[1]])
    bound = BOUND.search(text)
    return int(dict(CONSTANT.findall(text)).get(bound[1], 0)) or None if bound else None


def cycles(program: str) -> int:
    """Of a local step, as the compiler for TPUs estimates them for each instruction; 0 where it does not.

    Local steps are what is in a loop of unknown length; loops of known length count as often as they run.
    """
    entry, instructions = computations(program)

    def of(name: str, *, inside: bool) -> int:
        total = 0
        for line in instructions[name]:
            if found := CYCLES.search(line):
                total += inside * int(found[1])
            elif " fusion(" not in line:
                trips = trips_of(line, instructions)
                unknown = " while(" in line and trips is None
                called = [*branches_of(line), *called_by(line)]
                total += (trips or 1) * sum(of(each, inside=inside or unknown) for each in called)
        return total

    return of(entry, inside=False)


def called_by(line: str) -> list[str]:
    """The computations that an instruction calls, branches apart."""
    names = [one or several for one, several in CALLED.findall(line)]
    return [name.strip().lstrip("%") for of in names for name in of.split(",")]


def branches_of(line: str) -> list[str]:
    """Those of a conditional."""
    names = [several or one for several, one in BRANCHES.findall(line)]
    return [name.strip().lstrip("%") for of in names for name in of.split(",")]


def _arrays(line: str) -> list[Sent]:
    """Results stand before the name of the collective; of one that has begun, with its operands before them."""
    found = COLLECTIVE.search(line)
    assert found
    kind = found[1]
    devices = len(PAIR.findall(_pairs(line))) if kind == "collective-permute" else len(_members(line))
    shown = ARRAY.findall(line[: found.start()])
    if kind == "send" or (found[2] and kind == "collective-permute"):
        shown, results = shown[:1], False  # what follows are buffers and flags
    elif found[2] and "= ((" in line[: found.start()]:
        shown, results = shown[: len(shown) // 2], False
    else:
        results = True
    arrays = []
    for dtype, shape in shown:
        elements = math.prod(int(size) for size in shape.split(",") if size)
        if results:
            elements = {"all-gather": elements // devices, "reduce-scatter": elements * devices}.get(kind, elements)
        name = DTYPES[dtype]
        arrays.append(Sent(kind, name, elements * jnp.dtype(name).itemsize, devices))
    if kind == "all-to-all" and len(arrays) == devices:  # an array for each of them
        arrays = [arrays[0]._replace(bytes=sum(array.bytes for array in arrays))]
    return arrays


def _members(line: str) -> tuple[int, ...]:
    """The first group of devices that take part together, or the first pair of which one sends to the other."""
    if pair := PAIR.search(_pairs(line)):
        return int(pair[1]), int(pair[2])
    if listed := LISTED_GROUPS.search(line):
        return tuple(int(device) for device in listed[1].split(","))
    if tiled := TILED_GROUPS.search(line):
        sizes = [int(size) for size in tiled[2].split(",")]
        order = [int(axis) for axis in tiled[3].split(",")] if tiled[3] else range(len(sizes))
        devices = np.arange(math.prod(sizes)).reshape(sizes).transpose(order).ravel()
        return tuple(devices[: int(tiled[1])].tolist())
    if named := MESH_GROUPS.search(line):
        axes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        over = re.findall(r"'(\w+)'", named[2])
        mesh: Any = np.arange(math.prod(axes.values())).reshape(list(axes.values()))
        return tuple(mesh[tuple(slice(None) if axis in over else 0 for axis in axes)].ravel().tolist())
    return 0, 1  # what is sent from one slice to another


def _pairs(line: str) -> str:
    """Who sends to whom, of a collective-permute."""
    return line.partition("source_target_pairs=")[2].partition("}}")[0] + "}"
