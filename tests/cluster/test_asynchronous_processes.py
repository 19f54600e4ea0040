"""Processes that train apart: tickets, arrays that change hands, and two real processes."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from lsgd_runs import SGD, method
from numpy_lsgd import simulate
from one_of_two_processes import PROBLEM, SETTINGS, start
from regression import QUICK, numpy_loss_and_grad
from train_steps import REGRESSION, faulty_loss, run

from lsgd_jax import Topology, make_train_step
from lsgd_jax.cluster.asynchronous import AsynchronousRounds, join, make_programs, own_mesh, take_own
from lsgd_jax.cluster.tickets import share_round
from lsgd_jax.engine.state import state_shardings

pytestmark = pytest.mark.processes

ROUNDS = 5


class Counter:
    """A meeting of threads."""

    def __init__(self, count: int = 1) -> None:
        self._lock, self._barrier, self._next = threading.Lock(), threading.Barrier(count), 0

    def claim(self, count: int) -> int:
        with self._lock:
            self._next += count
            return self._next - count

    def arrive(self) -> None:
        self._barrier.wait(timeout=60)


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_share_a_round_of_exactly_as_many_steps_as_there_are_tickets(workers: int) -> None:
    meeting, steps, turns = Counter(3), [0] * 3, threading.Semaphore(0)

    def go(number: int) -> None:
        # The last comes to the meeting without a step: the others have used up all tickets.
        if number == 2:
            turns.acquire()
            turns.acquire()
        taken = []
        steps[number], waiting = share_round(meeting, 12 * workers, workers, lambda: taken.append(number))
        assert steps[number] == len(taken)
        assert waiting >= 0

    class Told(Counter):
        def arrive(self) -> None:
            turns.release()
            super().arrive()

    meeting = Told(3)
    threads = [threading.Thread(target=go, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sum(steps) == 12
    assert steps[2] == 0


def test_the_shards_of_a_process_change_hands_and_come_back() -> None:
    topology = Topology(2, 4, jax.devices()[:4])
    state, _ = start(topology)
    before = jax.device_get(state._replace(keys=jax.random.key_data(state.keys)))
    own = take_own(state, own_mesh(topology))
    assert own.params["w"].shape == (1, 8, 3, 2)  # each of four devices has (1, 2) workers
    assert own.step.shape == ()
    shapes = jax.eval_shape(lambda state: state, state)
    after = join(own, shapes, state_shardings(topology, shapes))
    assert after.params["w"].sharding == topology.per_worker
    after = jax.device_get(after._replace(keys=jax.random.key_data(after.keys)))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_process_alone_trains_as_if_all_were_in_step() -> None:
    topology, optimizer = Topology(2, 4, jax.devices()[:2]), method(SETTINGS)
    programs = make_programs(optimizer, topology, faulty_loss, REGRESSION, compiler_options=QUICK)
    state, data = start(topology)
    shapes = jax.eval_shape(lambda state: state, state)
    advance = AsynchronousRounds(programs, topology, shapes, state_shardings(topology, shapes), Counter)
    in_step = make_train_step(optimizer, topology, faulty_loss, REGRESSION, compiler_options=QUICK)
    expected, _, _ = run(PROBLEM, (optimizer, topology, in_step), cuts=3, steps=12)
    for end in (3, 6, 9, 12):
        state, report, pace = advance(state, data, end - 3, end)
        for name, leaf in state.params.items():
            np.testing.assert_allclose(
                np.array(leaf).reshape(expected[end][name].shape), expected[end][name], atol=1e-6
            )
        assert int(state.step) == end
        assert np.array(pace.steps).tolist() == [[3] * 4] * 2
        assert bool(report.elections["global"].due.all()) == (end % 6 == 0)


def test_two_processes_at_paces_of_their_own_go_where_numpy_goes_with_as_many_steps() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    script = Path(__file__).parents[1] / "reference" / "one_of_two_processes.py"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",  # two workers on each
        "PYTHONPATH": os.pathsep.join([str(script.parent), str(script.parents[2]), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(script), address, str(number), str(ROUNDS)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    told = json.loads(outputs[0][0].splitlines()[-1])
    steps = [of_round["steps"] for of_round in told]
    assert [sum(of_workers) for of_workers in steps] == [8 * SETTINGS.local_period] * ROUNDS
    assert all(len(set(of_workers[:4])) == len(set(of_workers[4:])) == 1 for of_workers in steps)
    assert all(waiting >= 0 for of_round in told for waiting in of_round["waiting"])

    gradient = numpy_loss_and_grad(PROBLEM, SETTINGS.workers)
    reference = simulate(PROBLEM.starts, gradient, SETTINGS, SGD, 0, rounds=steps)
    for name, expected in reference.trajectory.items():
        ours = np.array([of_round["params"][name] for of_round in told]).reshape(expected.shape)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    leaders = [of_round["leader"] for of_round in told[1::2]]
    assert leaders == [election.rank for election in reference.elections if election.level == "global"]
