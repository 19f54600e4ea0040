"""Reading compiled programs: where do they communicate, and what?"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lsgd_jax.accounting.traffic import Collective

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(-start)?\("
)
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|async_wrapped)=%?([\w.\-]+)|called_computations=\{([^}]*)\}")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
PAIR = re.compile(r"\{\d+,\d+\}")
LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
DTYPES = {
    "pred": "bool", "s8": "int8", "u8": "uint8", "s16": "int16", "u16": "uint16", "s32": "int32", "u32": "uint32",
    "f16": "float16", "f32": "float32", "f64": "float64",
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


def as_compiled(sent: Iterable[Collective], times: int = 1) -> Counter[Sent]:
    """What the ledger has traced, as often, as it would stand in a program for 8 devices."""
    found = Counter[Sent]()
    for one in sent:
        devices = one.senders * 8 // one.workers if one.kind == "collective-permute" else one.workers
        found[Sent(one.kind, one.dtype, one.bytes, devices)] += one.times * times
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


def collectives_outside_conditionals(program: str) -> list[str]:
    """Those that run whatever the predicates: reached from the entry without entering a branch."""
    return [line for line, _ in _unconditional(*computations(program))]


def sent(program: str) -> tuple[Counter[Sent], list[Counter[Sent]]]:
    """What is sent outside of all conditionals, and in each of their branches that sends anything.

    A loop counts as often as the compiler knows that it runs; one of unknown length counts once.
    Collectives of several arrays, into which the compiler puts equal ones, count array by array.
    """
    entry, instructions = computations(program)
    lists = [found[1] for lines in instructions.values() for line in lines if (found := BRANCHES.search(line))]
    branches = [_sent_in(name.strip().lstrip("%"), instructions) for names in lists for name in names.split(",")]
    return _sent_in(entry, instructions), [branch for branch in branches if branch]


def _sent_in(computation: str, instructions: dict[str, list[str]]) -> Counter[Sent]:
    found = Counter[Sent]()
    for line, times in _unconditional(computation, instructions):
        for array in _arrays(COLLECTIVE.search(line)[1], line):
            found[array] += times
    return found


def _unconditional(computation: str, instructions: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    """The collectives that are reached without entering a branch, and how often each runs."""
    for line in instructions[computation]:
        if COLLECTIVE.search(line):
            yield line, 1
        elif " conditional(" not in line:
            trips = TRIP_COUNT.search(line)
            for one, several in CALLED.findall(line):
                for called in (one or several).split(","):
                    for inner, times in _unconditional(called.strip().lstrip("%"), instructions):
                        yield inner, times * (int(trips[1]) if trips else 1)


def _arrays(kind: str, line: str) -> list[Sent]:
    """Results stand before the name of the collective."""
    devices = _devices(kind, line)
    arrays = []
    for dtype, shape in ARRAY.findall(COLLECTIVE.split(line)[0]):
        elements = math.prod(int(size) for size in shape.split(",") if size)
        operand = {"all-gather": elements // devices, "reduce-scatter": elements * devices}.get(kind, elements)
        arrays.append(Sent(kind, DTYPES[dtype], operand * np.dtype(DTYPES[dtype]).itemsize, devices))
    return arrays


def _devices(kind: str, line: str) -> int:
    if kind == "collective-permute":
        return len(PAIR.findall(line.split("source_target_pairs=")[1].split("}}")[0] + "}"))
    if listed := LISTED_GROUPS.search(line):
        return len(listed[1].split(","))
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", MESH_GROUPS.search(line)[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", MESH_GROUPS.search(line)[2]))
