"""Everything that a run computes with."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from lsgd_jax.accounting.ledger import Ledger, ledger
from lsgd_jax.engine.numerics import run_key
from lsgd_jax.engine.state import TrainState, init_state, start_state
from lsgd_jax.engine.topology import Topology, placed_shapes
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.tasks.evaluation import SplitEvaluation
from lsgd_jax.tasks.task import OpenTask
from lsgd_jax.trainer.candidates import Candidates, every_worker, make_candidates
from lsgd_jax.trainer.plan import Plan
from lsgd_jax.trainer.rounds import Rounds, make_rounds

MethodOf = Callable[[Topology], DistributedOptimizer]
"""The distributed optimizer for workers of a topology: with one group a method may have no local level."""


class Run(NamedTuple):
    """Everything that a run computes with.

    Attributes:
      method: the distributed optimizer.
      topology: where its workers live.
      task: what they learn.
      ledger: what they send.
      init_state: makes the state of all workers before the first step.
      state_shapes: `(groups, workers) -> state`, the shapes of its leaves for that many.
      rounds: how they train.
      candidates: `state -> Candidates`, the models to evaluate.
      lower_evaluation: `state -> programs` of an evaluation, to be compiled before one is due.
      evaluate_workers: `state -> figures` of each worker, in the order of ranks.
    """

    method: DistributedOptimizer
    topology: Topology
    task: OpenTask
    ledger: Ledger
    init_state: Callable[[], TrainState]
    state_shapes: Callable[[tuple[int, int]], TrainState]
    rounds: Rounds
    candidates: Callable[[TrainState], Candidates]
    lower_evaluation: Callable[[TrainState], list[jax.stages.Lowered]]
    evaluate_workers: Callable[[TrainState], list[dict[str, float]]]


def make_run(plan: Plan, task: OpenTask, method_of: MethodOf, topology: Topology) -> Run:
    """Makes all functions of a run; neither trains nor writes anything.

    Args:
      plan: what it does.
      task: what is learned, on that topology.
      method_of: the distributed optimizer, for workers of a topology.
      topology: where they live.
    """
    method, key = method_of(topology), run_key(plan.seed)
    gather = make_candidates(method, topology)

    def candidates(state: TrainState) -> Candidates:
        found = gather(state)
        return found._replace(center=task.prepare_center(found.center))

    def lower_evaluation(state: TrainState) -> list[jax.stages.Lowered]:
        gathering = gather.lower(state)
        if not isinstance(task.evaluate, SplitEvaluation):  # a function of one's own
            return [gathering]
        leader = gathering.out_info.leader
        return [gathering, *task.evaluate.lower(placed_shapes(leader, topology.of_model(leader)))]

    def shapes(shape: tuple[int, int]) -> TrainState:
        of_those = dataclasses.replace(topology, groups=shape[0], workers=shape[1])
        start = functools.partial(start_state, method_of(of_those), of_those, task.init)
        return jax.eval_shape(start, run_key(0))

    return Run(
        method=method,
        topology=topology,
        task=task,
        ledger=ledger(method, *jax.eval_shape(task.init, key), groups=topology.groups, workers=topology.workers),
        init_state=lambda: init_state(
            method, topology, task.init, key, plan.schedule.learning_rate, same_init=plan.same_init
        ),
        state_shapes=shapes,
        rounds=make_rounds(plan, method, topology, task),
        candidates=candidates,
        lower_evaluation=lower_evaluation,
        evaluate_workers=lambda state: [task.evaluate(worker, "") for worker in every_worker(state, topology)],
    )
