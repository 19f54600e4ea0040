"""What a method sends: by level, at each communication, and in a whole run.

No method declares it. What each worker runs is traced, so a new method has its
entries as soon as it exists.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from lsgd_jax.accounting.traffic import Collective, collectives_of
from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.engine.communication import WorkerState, communicate, somebody_lost
from lsgd_jax.errors import InputError
from lsgd_jax.optimizers.distributed_optimizer import Axes, Communication, DistributedOptimizer, communications_of
from lsgd_jax.optimizers.window import empty_window


@dataclasses.dataclass(frozen=True)
class Entry:
    """One kind of communication of a method.

    Attributes:
      level: "gradient" (in every step), "local" (inside each group) or "global".
      period: local steps of a worker between two of them.
      collectives: what each worker takes part in each time, in this order.
      offset: steps by which they come after those that the period divides.
      delay: local steps during which they may be under way, or 0. They begin with the first of these, so that after
        the last step of a run none does.
    """

    level: str
    period: int
    collectives: tuple[Collective, ...]
    offset: int = 0
    delay: int = 0

    def times(self, steps: int) -> int:
        """How often it takes place in so many local steps."""
        steps -= min(self.delay, 1, steps)
        return (steps - self.offset) // self.period - -self.offset // self.period

    @property
    def sent(self) -> float:
        """Bytes that one worker sends each time, and receives."""
        return sum(collective.sent for collective in self.collectives)

    @property
    def messages(self) -> int:
        """Messages that one worker sends each time, and receives."""
        return sum(collective.messages for collective in self.collectives)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What a method sends. `lsgd_jax.accounting.traffic` says how each collective is counted.

    Attributes:
      groups: the number of groups.
      workers: the number of workers in each group.
      entries: what happens in training; those that send nothing are left out.
      start: the collectives of `DistributedOptimizer.init`, once a run.
      center: those of `DistributedOptimizer.center`, once an evaluation. Neither
        is part of `bytes_sent`.
    """

    groups: int
    workers: int
    entries: tuple[Entry, ...]
    start: tuple[Collective, ...]
    center: tuple[Collective, ...]

    def bytes_sent(self, steps: int) -> int:
        """Bytes that all workers together have sent after so many local steps of each."""
        return sum(self.bytes_by_level(steps).values())

    def bytes_by_level(self, steps: int) -> dict[str, int]:
        """The same of each level."""
        found = dict[str, int]()
        for entry in self.entries:
            sent = sum(collective.sent_together * self.rings(collective) for collective in entry.collectives)
            found[entry.level] = found.get(entry.level, 0) + entry.times(steps) * sent
        return found

    def rings(self, collective: Collective) -> int:
        """How many of a collective take place side by side: one in each group, say."""
        return self.groups * self.workers // collective.workers

    def table(self) -> str:
        """A table for people: a line for each kind of collective at each level, and the sums."""
        columns = (
            f"{'level':<10}{'period':>8}  {'collective':<20}{'dtype':<10}{'arrays':>7}{'messages':>10}{'bytes':>16}"
        )
        lines = [f"what one worker sends, and receives, each time; {self.groups} × {self.workers} workers", columns]
        for entry in self.entries:
            period = f"{entry.period}+{entry.offset}" if entry.offset else f"{entry.period}"
            start = f"{entry.level:<10}{period:>8}  "
            kinds = dict.fromkeys((collective.kind, collective.dtype) for collective in entry.collectives)
            for kind, dtype in kinds:
                same = [c for c in entry.collectives if (c.kind, c.dtype) == (kind, dtype)]
                messages, sent = sum(c.messages for c in same), sum(c.sent for c in same)
                lines.append(f"{start}{kind:<20}{dtype:<10}{len(same):>7}{messages:>10,}{sent:>16,.0f}")
            lines.append(f"{start}{'all':<30}{len(entry.collectives):>7}{entry.messages:>10,}{entry.sent:>16,.0f}")
        return "\n".join(lines)


def ledger(method: DistributedOptimizer, params: Any, model_state: Any = (), *, groups: int, workers: int) -> Ledger:
    """Traces what a method sends. Any number of workers; no device is used.

    A worker counts as a device of its own, however the workers of a run share
    devices, and a collective over one worker sends nothing.

    Args:
      method: the method.
      params: one worker's parameters, arrays or their shapes.
      model_state: what else the trainer's model keeps. It travels with a leader
        to workers that start again; `periodic` has none.
      groups: the number of groups.
      workers: the number of workers in each group.

    Returns:
      The `Ledger`.

    Raises:
      ValueError: if a global period is no multiple of the local one, the
        method sends what depends on more than shapes, or its `update` communicates.
    """

    axes = Axes()
    traced = functools.partial(collectives_of, groups=groups, workers=workers)

    def start(params: Any) -> Any:
        return method.init(params, axes)

    def worker_state(params: Any, model_state: Any) -> WorkerState:
        alone = jax.vmap(jax.vmap(lambda params, _: start(params), axis_name=WORKER), axis_name=GROUP)
        of_one = jax.tree.map(lambda x: x[None, None], params)
        opt_state = jax.tree.map(lambda x: x[0, 0], alone(of_one, jnp.zeros((1, 1))))  # which may be of no parameters
        return WorkerState(params, model_state, opt_state, empty_window(jnp.zeros([]), method.window or 1))

    worker = jax.eval_shape(worker_state, params, model_state)

    def gradients(grads: Any) -> Any:
        return method.reduce_gradients(grads, axes)

    def update(worker: WorkerState) -> Any:
        return method.update(worker.params, worker.opt_state, worker.params, value=jnp.zeros([]), rate_factor=1.0)

    def center(worker: WorkerState) -> Any:
        return method.center(worker.params, worker.opt_state, axes)

    if sent := traced(update, worker):
        raise InputError(
            f"the method's update communicates ({sent[0].kind} over {', '.join(sent[0].axes)}), in every step: "
            "use a communication, or reduce_gradients"
        )
    entries = [Entry("gradient", 1, traced(gradients, worker.params))]
    for due in communications_of(method, groups):
        apply = functools.partial(_take_place, due, method, axes)
        entries.append(Entry(due.level, due.period, traced(apply, worker), due.offset, due.delay))
    entries = [entry for entry in entries if entry.collectives]
    return Ledger(groups, workers, tuple(entries), traced(start, params), traced(center, worker))


def _take_place(due: Communication, method: DistributedOptimizer, axes: Axes, worker: WorkerState) -> Any:
    """What a worker does in the train step if nobody is lost."""
    lost = None if due.whole is None else somebody_lost(axes.all, worker.params)
    return communicate(due, method, axes.names(due.axes), worker), lost
