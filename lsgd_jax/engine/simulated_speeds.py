"""Rounds in which every worker takes as many steps as it can.

A communication is due when the workers together have taken as many steps since the
last as they would have in step: groups · workers · period. Before each step a worker
claims a ticket from a counter that all share; a ticket beyond the round's steps sends
it to the communication, where it waits for those that are still computing.

With two levels a round is a local period, of all groups together, so that every group
comes to its local communication at the same time; each global period ends with a round,
and its communication follows the local one there.
"""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.engine.communications import RoundReport, Score, make_communications
from lsgd_jax.engine.local_steps import Batches, Loss, keeps_gradients
from lsgd_jax.engine.schedules import Factor, constant
from lsgd_jax.engine.state import TrainState, state_specs
from lsgd_jax.engine.topology import Topology
from lsgd_jax.engine.train_step import make_take_steps, round_steps
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer, communications_of, is_overlapped


class Pace(NamedTuple):
    """How the steps of a round fell to the workers; leaves have the shape (groups, workers).

    Attributes:
      steps: int, how many each has taken.
      waiting: float, seconds that each has waited for the others at the end; in a simulated
        round they are simulated.
    """

    steps: Any
    waiting: Any


def simulate_round(speeds: Sequence[float], steps: int) -> tuple[Pace, float]:
    """Simulates a round of workers that differ in speed alone. Claims at the same time go by rank.

    All start a round together, so each round is like every other.

    Args:
      speeds: steps of each worker in a simulated second.
      steps: of all workers together in a round.

    Returns:
      The pace, with leaves of shape (workers of all groups,), and how long the round
      lasts, in simulated seconds; communication takes no time.
    """
    asks = [(0.0, rank) for rank in range(len(speeds))]  # when each claims its next ticket, by time
    taken = [0] * len(speeds)
    for _ in range(steps):
        _, rank = asks[0]
        taken[rank] += 1
        heapq.heapreplace(asks, (taken[rank] / speeds[rank], rank))
    done = np.array(taken) / np.array(speeds)
    return Pace(np.array(taken), done.max() - done), float(done.max())


def make_asynchronous_step(
    method: DistributedOptimizer,
    topology: Topology,
    loss: Loss,
    batches: Batches,
    *,
    longest: int,
    rate_factor: Factor = constant,
    score: Score | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> jax.stages.Wrapped:
    """Makes the function that trains all workers for a round in which they differ in steps.

    A worker's data, its score and its optimizer follow its own steps. Where all take as
    many, the result is bitwise that of `make_train_step`. All rounds run the same
    compiled program.

    Args:
      method: the method; it communicates now and then, and keeps gradients.
      topology: where the workers live.
      loss: the loss of one worker on one minibatch.
      batches: where minibatches come from.
      longest: steps of one worker in a round, at most: as many are planned ahead.
      rate_factor: as in `make_train_step`; it follows the count that all share, see `make_take_steps`.
      compiler_options: for `jax.jit`.

    Returns:
      `train_step(state, data, steps) -> (state, report)`, jitted. It consumes `state`.
      `steps`, int32[groups, workers], are at least 0 and sum to groups · workers · period.

    Raises:
      ValueError: if the method has no rounds in which workers step independently.
    """
    check_rounds(method, topology.groups)
    period = round_steps(method, topology.groups)
    take_steps = make_take_steps(method, topology, loss, batches, longest, rate_factor)
    communicate_when_due = make_communications(method, topology, score)

    def one_round(state: TrainState, data: Any, steps: jax.Array) -> tuple[TrainState, RoundReport]:
        return communicate_when_due(take_steps(state, steps, state.step + period, data))

    per_worker = PartitionSpec(GROUP, WORKER)
    mapped = topology.over_devices(
        one_round,
        in_specs=(state_specs(), batches.specs, per_worker),
        out_specs=(state_specs(), per_worker),
    )
    return jax.jit(mapped, donate_argnums=0, compiler_options=compiler_options)


def check_rounds(method: DistributedOptimizer, groups: int) -> None:
    """Raises ValueError if a method has no rounds in which workers step independently."""
    if not keeps_gradients(method):
        raise ValueError("its workers wait for each other in every step: use a method with a period, such as lsgd")
    if is_overlapped(method):
        raise ValueError("its communications take effect amid local steps, which differ in time: do without --overlap")
    if not communications_of(method, groups):
        raise ValueError("its workers never meet, so none ever waits: use a method that communicates, such as lsgd")
