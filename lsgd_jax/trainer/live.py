"""A run that outlives its processes: what each of them carries from one generation to the next, in its memory.

A process keeps its own workers as they were when the last two calls of the train step began. A death interrupts a call
in some processes, and others may have finished it: all go back to the last step that all have kept, so that a
communication takes effect in all of them or in none, and local steps since then are taken again. Two are enough, since
each call ends with a word from all to all: nobody begins a call before all have come to the end of the last but one.
"""

import collections
import csv
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from lsgd_jax.cluster import processes
from lsgd_jax.cluster.generations import Generation, Membership
from lsgd_jax.engine.numerics import wrap_keys
from lsgd_jax.engine.state import TrainState, shared_fields
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import InputError
from lsgd_jax.trainer.checkpoints import CheckpointInfo
from lsgd_jax.trainer.elastic import unknown_fields, with_fields
from lsgd_jax.trainer.newcomers import make_admit
from lsgd_jax.trainer.own_workers import own_count, own_rows, placed
from lsgd_jax.trainer.run import Run

KEPT = 2
GENERATIONS = "generations.csv"
GENERATION_COLUMNS = ("generation", "step", "groups", "workers", "processes", "lost", "taken_in")


class Kept(NamedTuple):
    """What a process has kept at the beginning of a call.

    Attributes:
      step: local steps so far.
      state: its own workers, NumPy arrays [workers of this process, ...], `keys` raw; and what all share.
      info: what else a run has to know to go on.
    """

    step: int
    state: TrainState
    info: CheckpointInfo


class Begun(NamedTuple):
    """What a process tells the others when a generation begins; a newcomer nothing.

    Attributes:
      workdir: of the run; None while it has none.
      shape: (groups, workers) of the run when all its processes are there.
      members: of the generation before.
      shared: the leaves of the state's shared fields.
      info: at the step from which the run goes on.
    """

    workdir: str | None
    shape: tuple[int, int]
    members: tuple[int, ...]
    shared: list[float]
    info: CheckpointInfo | None


class LiveRun:
    """A run, as one of its processes sees it, from its first generation to its last.

    Args:
      membership: this process, as a member.
      count: how many processes the run has when all are there.

    Attributes:
      generation: the one that trains.
      begun: what the members that have a state know; None at the beginning of the run.
      workdir: of the run, once it is known.
      shape: (groups, workers) with all processes, once it is known.
    """

    def __init__(self, membership: Membership, count: int) -> None:
        self.membership, self.count = membership, count
        self.generation = Generation(0, (), (), None, None)
        self.begun: Begun | None = None
        self.workdir: str | None = None
        self.shape: tuple[int, int] | None = None
        self._kept: collections.deque[Kept] = collections.deque(maxlen=KEPT)
        self._before: tuple[int, ...] = ()  # the members of the generation that trained last

    def join(self) -> None:
        """Joins the next generation, and hears from its members how far the run has come."""
        self.generation = self.membership.join([kept.step for kept in self._kept])
        kept = None if self.is_new else self._at(self.generation.step)
        # What is newer is of calls that are taken again, with others: it must not be mixed with theirs.
        self._kept = collections.deque([] if kept is None else [kept], maxlen=KEPT)
        mine = None
        if self.workdir is not None and self.shape is not None and not self.is_new:
            shared = [] if kept is None else [leaf.item() for leaf in jax.tree.leaves(shared_fields(kept.state))]
            mine = Begun(self.workdir, self.shape, self._before, shared, None if kept is None else kept.info)
        told = next((each for each in processes.exchange("begun", mine) if each is not None), None)
        self.begun = None
        if told is not None:
            workdir, shape, members, shared, info = told
            info = None if info is None else CheckpointInfo(tuple(info[0]), *info[1:])
            self.begun = Begun(workdir, tuple(shape), tuple(members), shared, info)
            self.workdir, self.shape = self.begun.workdir, self.begun.shape

    @property
    def is_new(self) -> bool:
        """Whether this process has come to a run that goes on."""
        return self.generation.step is not None and self.membership.number in self.generation.newcomers

    def shape_now(self) -> tuple[int, int]:
        """(groups, workers) of the generation: all workers of its members, in groups of the same size.

        As many groups as there are of which any member is left, if its workers can be dealt to them equally, else as
        many below as they can.

        Raises:
          InputError: if this cannot be.
        """
        assert self.shape is not None
        groups, workers = self.shape
        if groups * workers % self.count:
            raise InputError(
                f"--live: {groups} × {workers} workers cannot be dealt equally to {self.count} processes: choose a "
                f"number of workers that {self.count} divides"
            )
        if (platform := processes.devices()[0].platform) != "cpu":
            raise InputError(
                f"--live: processes come and go on CPU devices alone, and these are {platform}: leave it out"
            )
        each, members = groups * workers // self.count, self.generation.members
        left = {rank // workers for number in members for rank in range(number * each, (number + 1) * each)}
        size = each * len(members)
        for count in range(len(left), 0, -1):
            if size % count == 0:
                topology = Topology(count, size // count, processes.devices())
                own = collections.Counter(device.process_index for device in topology.mesh.devices.flat)
                if len(own) == processes.count() and len(set(own.values())) == 1:
                    return topology.shape
        raise InputError(f"--live: {size} workers cannot be dealt equally to the devices of {len(members)} processes")

    def keep(self, state: TrainState, step: int, info: CheckpointInfo) -> None:
        """Keeps this process's workers, in copies: the next call consumes the state."""
        self._kept.append(Kept(step, own_rows(state), info))

    def restored(self, run: Run) -> tuple[TrainState, CheckpointInfo] | None:
        """The state of all workers at the generation's step, and what belongs to it; None where nobody has any.

        Workers of a newcomer start from the best of their group, or of all where all of a group are new.
        """
        step = self.generation.step
        if step is None:
            return None
        assert self.begun is not None
        assert self.begun.info is not None
        fresh = run.init_state()
        rows, kept = own_rows(fresh), self._at(step)
        if kept is not None:
            unknown = unknown_fields(kept.state.opt_state, rows.opt_state)
            rows = kept.state._replace(opt_state=with_fields(kept.state.opt_state, unknown))
        like, treedef = jax.tree.flatten(shared_fields(rows))
        values = [np.asarray(value, leaf.dtype) for value, leaf in zip(self.begun.shared, like, strict=True)]
        shared = jax.tree.unflatten(treedef, values) | {"learning_rate": np.asarray(fresh.learning_rate)}
        state = placed(rows._replace(**shared), run.topology)
        state = state._replace(keys=wrap_keys(state.keys))
        if self.generation.newcomers:
            new = np.full(own_count(run.topology), kept is None)
            state = make_admit(run.method, run.topology)(state, fresh.keys, placed(new, run.topology))
        return state, self.begun.info

    def begin(self, workdir: pathlib.Path, step: int, shape: tuple[int, int]) -> None:
        """Adds a line about this generation to generations.csv, and tells who was lost and who has come."""
        lost, come = self._changes()
        lists = [" ".join(map(str, numbers)) for numbers in (self.generation.members, lost, come)]

        def record() -> None:
            path = workdir / GENERATIONS
            rows = [] if path.exists() else [GENERATION_COLUMNS]
            with path.open("a", newline="") as file:
                csv.writer(file).writerows([*rows, (self.generation.number, step, *shape, *lists)])

        processes.from_main(record)
        goes_on = f"going on at step {step} with {shape[0]} × {shape[1]} workers"
        for what, numbers in (("lost", lost), ("taken in", come)):
            if numbers:
                processes.say(f"{what}: process {', '.join(map(str, numbers))}: {goes_on}")
        self._before = self.generation.members

    def _changes(self) -> tuple[list[int], list[int]]:
        """The members of the generation before that are lost, and those that are new; who came again is both."""
        if self.begun is None:
            return [], []
        now, new, before = (
            set(numbers) for numbers in (self.generation.members, self.generation.newcomers, self.begun.members)
        )
        return sorted(before - (now - new)), sorted(new | (now - before))

    def agreed(self, stop: Any, topology: Topology) -> Callable[[TrainState], tuple[bool, bool]]:
        """Makes the function that tells after each call whether to stop, and whether to take in who waits.

        It is given the state after the call, and waits for all processes, of which each has to call it.
        """
        ask = processes.agreed((stop, _Wanted(self.membership)), topology, at_once=True)

        def both(state: TrainState) -> tuple[bool, bool]:
            # Where the call fails, since somebody has died, nothing more is sent: others may be in it still, and Gloo
            # would take this message for one of the call's, and end their process.
            jax.block_until_ready(state)
            stopping, wanted = ask()
            return stopping, wanted and not stopping

        return both

    def _at(self, step: int | None) -> Kept | None:
        return next((kept for kept in self._kept if kept.step == step), None)


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """True once somebody waits to be taken in."""

    membership: Membership

    def __bool__(self) -> bool:
        return self.membership.wanted
