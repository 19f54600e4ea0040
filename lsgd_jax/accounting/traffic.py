"""Layer 1: what a function of one worker sends, read from its trace.

The function is traced on shapes over abstract axes, so that any number of
workers costs the same and needs no device. A worker counts as a device of its
own. Where arrays go by separate collectives a compiler may send several in one
(XLA does where the dtypes are equal): bytes stay the same, messages get fewer.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AbstractMesh, PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.errors import InputError

# Names of JAX's primitives, and what XLA calls them.
KINDS = {
    "psum": "all-reduce",
    "pmin": "all-reduce",
    "pmax": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
}
SENDS_NOTHING = frozenset({"axis_index"})


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array in one collective.

    All but `collective-permute`, and `all-to-all`, in which a worker sends to each other one
    directly, go around a ring of n workers. With operands of S bytes, a worker sends, and
    receives as much (Patarasuk and Yuan, 2009):

    ================== ================= ================
    kind               bytes of a worker messages
    ================== ================= ================
    all-reduce         2 (n - 1) / n · S 2 (n - 1)
    all-gather         (n - 1) · S       n - 1
    reduce-scatter     (n - 1) / n · S   n - 1
    all-to-all         (n - 1) / n · S   n - 1
    collective-permute S                 1
    ================== ================= ================

    Attributes:
      kind: as above.
      dtype: of the array, as it travels.
      bytes: S, of one worker's operand.
      times: how often it takes place (in a scan, once a step of it).
      axes: the names of the axes it goes over.
      workers: n, the number of workers on these axes.
      senders: how many of them send: all, but for an incomplete permutation.
    """

    kind: str
    dtype: str
    bytes: int
    times: int
    axes: tuple[str, ...]
    workers: int
    senders: int

    @property
    def sent_together(self) -> int:
        """Bytes that the `workers` workers together send, and receive."""
        operands = {
            "all-reduce": 2 * (self.workers - 1),
            "all-gather": self.workers * (self.workers - 1),
            "reduce-scatter": self.workers - 1,
            "all-to-all": self.workers - 1,
            "collective-permute": self.senders,
        }
        return self.times * operands[self.kind] * self.bytes

    @property
    def sent(self) -> float:
        """Bytes that one worker sends, and receives."""
        return self.sent_together / max(1, self.senders)

    @property
    def messages(self) -> int:
        """Messages that one worker sends, and receives, one after the other."""
        messages = {
            "all-reduce": 2 * (self.workers - 1),
            "all-gather": self.workers - 1,
            "reduce-scatter": self.workers - 1,
            "all-to-all": self.workers - 1,
            "collective-permute": min(1, self.senders),
        }
        return self.times * messages[self.kind]


def collectives_of(function: Callable, *args: Any, groups: int, workers: int) -> tuple[Collective, ...]:
    """The collectives of a function of one worker, in the order in which they are traced.

    Args:
      function: what each worker calls, over the axes (GROUP, WORKER).
      *args: its arguments, pytrees of arrays or of their shapes.
      groups: the number of groups.
      workers: the number of workers in each group.

    Returns:
      A `Collective` for each array that is sent.

    Raises:
      InputError: if the bytes are no function of the shapes: a collective in a
        loop of unknown length, or only in some branches of a `cond`; or if the
        collective is of an unknown kind.
    """
    mesh = AbstractMesh((groups, workers), (GROUP, WORKER))
    whole = PartitionSpec()
    mapped = jax.shard_map(function, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    return tuple(_collectives(jax.make_jaxpr(mapped)(*args).jaxpr, dict(mesh.shape)))


def _collectives(jaxpr: Jaxpr, sizes: Mapping[str, int]) -> Iterator[Collective]:
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(functions_in(equation.params))
        if name in KINDS:
            yield from _sent_by(equation, sizes)
        elif name not in SENDS_NOTHING and _axes(equation.params):
            raise InputError(f"{name} is no collective that can be counted: use one of {', '.join(sorted(KINDS))}")
        elif name == "scan":
            for sent in _collectives(inner[0], sizes):
                yield dataclasses.replace(sent, times=sent.times * equation.params["length"])
        elif name == "while":
            if any(list(_collectives(part, sizes)) for part in inner):
                raise InputError("a collective in a loop of unknown length cannot be counted: use scan or fori_loop")
        elif name == "cond":
            first, *others = (list(_collectives(branch, sizes)) for branch in inner)
            if any(other != first for other in others):
                raise InputError("a collective in only some branches of a cond cannot be counted: move it out")
            yield from first
        else:
            for part in inner:
                yield from _collectives(part, sizes)


def _sent_by(equation: Any, sizes: Mapping[str, int]) -> Iterator[Collective]:
    params, axes = equation.params, _axes(equation.params)
    if params.get("axis_index_groups") is not None:
        raise InputError("a collective with axis_index_groups cannot be counted: give the groups an axis of their own")
    workers = 1
    for axis in axes:
        workers *= sizes[axis]
    senders = sum(source != target for source, target in params["perm"]) if "perm" in params else workers
    for operand in equation.invars:
        shape = operand.aval
        size = shape.size * shape.dtype.itemsize
        yield Collective(KINDS[equation.primitive.name], shape.dtype.name, size, 1, axes, workers, senders)


def _axes(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The named axes of an equation; axes of an array have numbers."""
    axes = params.get("axes", params.get("axis_name", ()))
    axes = axes if isinstance(axes, tuple) else (axes,)
    return tuple(axis for axis in axes if isinstance(axis, str))


def functions_in(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    """The functions in an equation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
