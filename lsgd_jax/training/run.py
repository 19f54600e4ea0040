"""From settings to everything that a run computes with."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.training.config import Config
from lsgd_jax.training.evaluation import Candidates, every_worker, make_candidates
from lsgd_jax.training.ledger import Ledger, ledger
from lsgd_jax.training.methods import learning_rate, make_method
from lsgd_jax.training.models import FunctionalModel
from lsgd_jax.training.numerics import run_key
from lsgd_jax.training.processes import devices
from lsgd_jax.training.rounds import Rounds, make_rounds
from lsgd_jax.training.state import TrainState, init_state, start_state
from lsgd_jax.training.task import Task
from lsgd_jax.training.tasks import AnySource, kind_of
from lsgd_jax.training.topology import Topology


class Run(NamedTuple):
    """Everything that a run computes with.

    Attributes:
      method: the distributed optimizer.
      topology: where its workers live.
      task: what they learn.
      ledger: what they send.
      init_state: makes the state of all workers before the first step.
      state_shapes: the shapes of its leaves.
      rounds: how they train.
      candidates: `state -> Candidates`, the models to evaluate.
      evaluate_workers: `state -> figures` of each worker, in the order of ranks.
    """

    method: DistributedOptimizer
    topology: Topology
    task: Task
    ledger: Ledger
    init_state: Callable[[], TrainState]
    state_shapes: TrainState
    rounds: Rounds
    candidates: Callable[[TrainState], Candidates]
    evaluate_workers: Callable[[TrainState], list[dict[str, float]]]


def build_run(config: Config, source: AnySource) -> Run:
    """Reads the data and makes all functions; neither trains nor writes anything."""
    method = _method(config)
    topology = Topology(config.groups, config.workers, devices())
    task = kind_of(source).task(config, source, topology)
    key = run_key(config.seed)
    gather = make_candidates(method, topology)

    def candidates(state: TrainState) -> Candidates:
        found = gather(state)
        return found._replace(center=task.renew(found.center))

    return Run(
        method=method,
        topology=topology,
        task=task,
        ledger=ledger(method, *jax.eval_shape(task.model.init, key), groups=config.groups, workers=config.workers),
        init_state=lambda: init_state(
            method, topology, task.model.init, key, learning_rate(config), same_init=config.init == "same"
        ),
        state_shapes=shapes_of(config, task.model),
        rounds=make_rounds(config, method, topology, task),
        candidates=candidates,
        evaluate_workers=lambda state: [task.evaluate(worker, "") for worker in every_worker(state, topology)],
    )


def shapes_of(config: Config, model: FunctionalModel) -> TrainState:
    """The shapes of the state's leaves."""
    topology = Topology(config.groups, config.workers, devices())
    start = functools.partial(start_state, _method(config), topology, model.init)
    return jax.eval_shape(start, run_key(0))


def _method(config: Config) -> DistributedOptimizer:
    """The distributed optimizer. The learning rate itself is in the state of the workers."""
    return make_method(dataclasses.replace(config, learning_rate=1.0, scale_learning_rate=False))
