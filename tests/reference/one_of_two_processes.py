"""One of two processes that train apart on the regression; the second is slow. The first prints what happened.

Its arguments: the coordinator's address, its number, and the rounds to take.
"""

import json
import sys
import time
from typing import Any

import jax
import numpy as np
from lsgd_runs import method
from numpy_lsgd import Settings
from regression import QUICK, laid_out, make_problem
from train_steps import REGRESSION, faulty_loss

from lsgd_jax import Topology, init_state
from lsgd_jax.cluster.asynchronous import AsynchronousRounds, Programs, make_programs
from lsgd_jax.cluster.processes import put
from lsgd_jax.cluster.tickets import CoordinatedRound
from lsgd_jax.engine.state import TrainState, state_shardings

SETTINGS = Settings(2, 4, local_period=3, global_period=6, local_pull=0.3, stale_local_pull=0.02, window=4)
PROBLEM = make_problem(count=8, steps=40)
SECONDS = 0.02


def start(topology: Topology) -> tuple[TrainState, Any]:
    """(the state in which each worker has the problem's own starting point, its data)."""

    zeros = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}
    state = init_state(method(SETTINGS), topology, lambda key: (zeros, {}), jax.random.key(0))
    params, data = jax.tree.map(
        lambda array: put(array, topology.per_worker), laid_out((PROBLEM.initial, PROBLEM.batches), topology.groups)
    )
    return state._replace(params=params), data


def main(address: str, number: int, rounds: int) -> None:
    """Trains, and prints `params` and `steps` after each round, with the leaders of all."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, number)
    topology = Topology(SETTINGS.groups, SETTINGS.workers)
    programs = make_programs(method(SETTINGS), topology, faulty_loss, REGRESSION, compiler_options=QUICK)

    def slow_step(*args: Any) -> Any:
        time.sleep(SECONDS)
        return programs.step(*args)

    state, data = start(topology)
    shapes = jax.eval_shape(lambda state: state, state)
    advance = AsynchronousRounds(
        Programs(slow_step if number else programs.step, programs.communicate),
        topology,
        shapes,
        state_shardings(topology, shapes),
        CoordinatedRound,
    )
    gather = jax.jit(lambda tree: tree, out_shardings=topology.replicated)
    told = []
    for end in range(SETTINGS.local_period, (rounds + 1) * SETTINGS.local_period, SETTINGS.local_period):
        state, report, pace = advance(state, data, end - SETTINGS.local_period, end)
        params, pace, ranks = gather((state.params, pace, report.elections["global"].leader.rank))
        flat = {name: np.array(leaf).reshape(8, -1).tolist() for name, leaf in params.items()}
        steps, waiting = (np.array(leaf).ravel().tolist() for leaf in pace)
        told.append({"params": flat, "steps": steps, "waiting": waiting, "leader": int(np.array(ranks)[0, 0])})
    if number == 0:
        print(json.dumps(told))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
