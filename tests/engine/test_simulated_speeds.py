"""Rounds in which workers take different numbers of steps: the simulated clock, the trajectory, and whole runs."""

import shutil
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lsgd_runs import SGD, method
from numpy_lsgd import Settings, simulate
from regression import AS_IN_RUNS, QUICK, laid_out, make_problem, numpy_loss_and_grad
from thorough import thorough
from train_steps import REGRESSION, faulty_loss, run, started

from lsgd_jax import Topology, init_state, local_sgd, make_train_step
from lsgd_jax.config.config import Config
from lsgd_jax.config.train import train
from lsgd_jax.engine.communications import RoundReport
from lsgd_jax.engine.schedules import follow_factor
from lsgd_jax.engine.simulated_speeds import Pace, make_asynchronous_step, simulate_round
from lsgd_jax.trainer.records import RoundRow, read_leaders, read_metrics, read_rounds
from lsgd_jax.trainer.reports import RoundLog

SETTINGS = Settings(2, 4, local_period=3, global_period=6, local_pull=0.3, stale_local_pull=0.02, window=4)
PROBLEM = make_problem(count=8, steps=40)
LONGEST = 9
# Each sums to 8 workers × 3 steps; some workers come to several meetings without a step.
ROUNDS = [
    (3, 3, 3, 3, 3, 3, 3, 3),
    (4, 4, 4, 1, 3, 3, 4, 1),
    (9, 0, 3, 2, 1, 0, 4, 5),
    (0, 0, 6, 2, 7, 1, 8, 0),
    (3, 2, 3, 4, 3, 2, 3, 4),
    (1, 9, 1, 9, 1, 1, 1, 1),
]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 8), st.integers(0, 8))
def test_a_simulated_round_is_that_of_a_clock_that_goes_from_event_to_event(
    quarters: list[int], period: int, more: int
) -> None:
    speeds, budget = [Fraction(quarter, 4) for quarter in quarters], len(quarters) * period + more
    now, tickets, steps, done = Fraction(0), budget, [0] * len(speeds), [Fraction(0)] * len(speeds)
    while tickets:
        for rank, speed in enumerate(speeds):
            if tickets and done[rank] == now:
                tickets, steps[rank], done[rank] = tickets - 1, steps[rank] + 1, now + 1 / speed
        now = min(time for time in done if time > now)
    pace, seconds = simulate_round([float(speed) for speed in speeds], budget)
    assert pace.steps.tolist() == steps
    assert seconds == pytest.approx(float(max(done)), rel=1e-12)
    np.testing.assert_allclose(pace.waiting, [float(max(done) - time) for time in done], atol=1e-9)


def test_a_slow_worker_takes_fewer_steps_and_nobody_waits_longer_than_one_of_them() -> None:
    pace, seconds = simulate_round([1, 1, 1, 0.25], 4 * 16)
    assert pace.steps.tolist() == [20, 20, 19, 5]
    assert (pace.waiting.tolist(), seconds) == ([0, 0, 1, 0], 20)
    pace, seconds = simulate_round([2, 2], 2 * 16)
    assert (pace.steps.tolist(), pace.waiting.tolist(), seconds) == ([16, 16], [0, 0], 8)


OPTIONS = {"quick": QUICK, "as in runs": AS_IN_RUNS}


@cache
def asynchronous(devices: int, lanes: str, options: str = "quick") -> Any:
    topology = Topology(2, 4, jax.devices()[:devices], lanes)
    optimizer = method(SETTINGS)
    train_step = make_asynchronous_step(
        optimizer, topology, faulty_loss, REGRESSION, longest=LONGEST, compiler_options=OPTIONS[options]
    )
    state, data = started(optimizer, topology, PROBLEM), data_on(topology)
    return optimizer, topology, train_step.lower(state, data, on_devices(ROUNDS[0], topology)).compile()


def data_on(topology: Topology) -> Any:
    return jax.device_put(laid_out(PROBLEM.batches, topology.groups), topology.per_worker)


def on_devices(steps: Any, topology: Topology) -> jax.Array:
    return jax.device_put(np.array(steps, np.int32).reshape(topology.shape), topology.per_worker)


def run_rounds(parts: Any, rounds: Any) -> tuple[list[Any], list[Any], Any]:
    """(params [n·l, ...] after each round, reports, state); one compiled program serves all rounds."""
    optimizer, topology, compiled = parts
    state, trajectory, reports = started(optimizer, topology, PROBLEM), [], []
    for steps in rounds:
        state, report = compiled(state, data_on(topology), on_devices(steps, topology))
        trajectory.append(jax.tree.map(lambda x: np.array(x).reshape(-1, *x.shape[2:]), state.params))
        reports.append(jax.device_get(report))
    return trajectory, reports, state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "lanes"), [(2, "sequential"), (4, "vmap"), thorough(1, "vmap"), thorough(8, "sequential")]
)
def test_the_trajectory_is_that_of_the_simulation_on_any_devices(devices: int, lanes: str) -> None:
    gradient = numpy_loss_and_grad(PROBLEM, SETTINGS.workers)
    reference = simulate(PROBLEM.starts, gradient, SETTINGS, SGD, 0, rounds=ROUNDS)
    parts = asynchronous(devices, lanes)
    assert parts[1].mesh.size == devices
    trajectory, reports, state = run_rounds(parts, ROUNDS)
    for name in ("w", "b"):
        ours = np.stack([params[name] for params in trajectory])
        np.testing.assert_allclose(ours, reference.trajectory[name], rtol=0, atol=1e-5)
    leaders = [int(report.elections["global"].leader.rank[0, 0]) for report in reports[1::2]]
    assert leaders == [election.rank for election in reference.elections if election.level == "global"]
    assert [bool(report.elections["global"].due.all()) for report in reports] == [False, True] * 3
    assert np.array(state.own_steps).ravel().tolist() == np.sum(ROUNDS, axis=0).tolist()
    assert int(state.step) == 3 * len(ROUNDS)


@pytest.mark.slow
def test_workers_of_equal_speed_are_bitwise_where_those_in_step_are() -> None:
    parts = asynchronous(1, "vmap", "as in runs")
    pace, _ = simulate_round([0.7] * 8, 8 * 3)
    trajectory, _, state = run_rounds(parts, [pace.steps] * 6)
    in_step = make_train_step(*parts[:2], faulty_loss, REGRESSION, compiler_options=AS_IN_RUNS)
    expected, _, state_in_step = run(PROBLEM, (*parts[:2], in_step), cuts=3, steps=18)
    for number, params in enumerate(trajectory, start=1):
        jax.tree.map(np.testing.assert_array_equal, params, expected[3 * number])
    jax.tree.map(np.testing.assert_array_equal, state.losses, state_in_step.losses)
    np.testing.assert_array_equal(state.own_steps, state_in_step.own_steps)


def test_the_learning_rate_follows_the_shared_count_up_to_the_end_of_the_round() -> None:
    optimizer = local_sgd(optax.chain(optax.sgd(1.0), follow_factor()), global_period=4)
    topology = Topology(1, 3, jax.devices()[:1])
    state = init_state(optimizer, topology, lambda key: ({"w": jnp.zeros(())}, {}), jax.random.key(0))
    train_step = make_asynchronous_step(
        optimizer,
        topology,
        lambda params, model_state, batch, key: (params["w"], model_state),  # its gradient is 1
        REGRESSION,
        longest=7,
        rate_factor=lambda step: step.astype(jnp.float32),
        compiler_options=QUICK,
    )
    data = {"x": np.zeros((1, 3, 20), np.float32)}
    rates = [(0 + 1 + 2 + 3 * 4, 0 + 1 + 2 + 3, 0), (4, 4 + 5 + 6 + 7, 4 + 5 + 6 + 7 * 4)]
    moved = 0.0
    for steps, of_workers in zip([(7, 4, 0), (1, 4, 7)], rates, strict=True):
        state, _ = train_step(state, data, np.array([steps], np.int32))
        moved -= sum(of_workers) / 3
        np.testing.assert_allclose(state.params["w"], moved, rtol=1e-6)


@pytest.mark.parametrize(("own_scores", "more"), [(True, " and cannot lead"), (False, "")])
def test_a_worker_that_has_taken_no_step_is_not_told_to_have_a_loss_that_is_not_finite(
    own_scores: bool, more: str
) -> None:
    told: list[str] = []
    records, progress = Mock(), Mock(write=told.append)
    log = RoundLog(Topology(1, 2), records, progress, lambda: None, own_scores=own_scores)

    def after(step: int, *steps: int) -> list[str]:
        report = RoundReport(np.array([[1.0, np.nan]]), np.zeros((1, 2), bool), {})
        log.add(step, report, Pace(np.array([steps]), np.zeros((1, 2))))
        log.catch_up()
        return told

    assert after(4, 8, 0) == []
    once = [f"step 8: worker 1 has a loss that is not finite{more}"]
    assert after(8, 4, 4) == once
    assert after(12, 8, 0) == after(16, 4, 4) == once


RUN: dict[str, Any] = {
    "model": "mlp",
    "groups": 1,
    "batch_size": 16,
    "steps": 48,
    "global_period": 8,
    "worker_speeds": "1,1,1,0.25",
    "eval_every": 20,
    "checkpoint_every": 12,
}
COUNTS = [10, 10, 9, 3]


@pytest.mark.slow
def test_a_simulated_run_tells_its_time_and_its_rounds_and_resumes_bitwise(tmp_path: Path) -> None:
    whole = train(Config(str(tmp_path / "whole"), **RUN), figures=False)
    assert whole is not None
    assert [(row["step"], row["simulated_seconds"]) for row in read_metrics(tmp_path / "whole")] == [
        (24, 36.0), (40, 60.0), (48, 72.0),
    ]  # fmt: skip
    waiting = [2.0, 2.0, 3.0, 0.0]
    assert read_rounds(tmp_path / "whole") == [
        RoundRow(step, rank, COUNTS[rank], waiting[rank]) for step in range(8, 49, 8) for rank in range(4)
    ]
    assert {row.step for row in read_leaders(tmp_path / "whole")} == set(range(8, 49, 8))

    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/48")  # as if it had been killed before
    (tmp_path / "parts/summary.json").unlink()
    resumed = train(Config(str(tmp_path / "parts"), **RUN), resume=True, figures=False)
    assert resumed is not None
    assert {**whole, "seconds": None} == {**resumed, "seconds": None}
    for name in ("rounds.csv", "leaders.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
