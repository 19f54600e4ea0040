"""Losing a worker: what is not finite never leads and never spreads."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from lsgd_runs import PLAIN, STALE, assert_same, expected, train
from numpy_lsgd import Election, Faults, Settings
from regression import STEPS, make_problem, with_faults

NAN, INF = float("nan"), float("inf")
SETTINGS = {"plain": PLAIN, "stale": STALE}


def lost(*places: tuple[int, int], leaves: Sequence[str] = ("b", "w")) -> Faults:
    """Leaves that become NaN at `(step, rank)`."""
    return Faults(leaves=dict.fromkeys(places, leaves))


def check(faults: Faults, settings: Settings) -> list[Election]:
    """Trains with the faults, compares, and returns who led in the simulation."""
    problem = make_problem()
    run = expected(problem, settings, faults=faults)
    trajectory = train(with_faults(problem, faults), settings)
    assert_same(trajectory, run)
    at_end = {name: np.isfinite(leaf[:, -1]).reshape(6, -1).all(axis=1) for name, leaf in trajectory.items()}
    reference = {name: np.isfinite(leaf[-1]).reshape(6, -1).all(axis=1) for name, leaf in run.trajectory.items()}
    np.testing.assert_array_equal(at_end["b"] & at_end["w"], reference["b"] & reference["w"])
    return run.elections


def first_leader(settings: Settings) -> int:
    """The rank that leads first when nothing breaks."""
    return expected(make_problem(), settings).elections[0].rank


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("step", [1, 3, 6, 7, 18, 20])
@pytest.mark.parametrize("leaves", [("b",), ("w",), ("b", "w")], ids="+".join)
def test_a_worker_whose_parameters_break_never_leads_or_spreads(
    settings: Settings, step: int, leaves: tuple[str, ...]
) -> None:
    for rank in (1, 3):
        elections = check(lost((step, rank), leaves=leaves), settings)
        assert all(election.rank != rank for election in elections if election.step >= step)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_worker_that_lost_only_its_loss_is_pulled_but_cannot_lead_until_the_window_forgot_it(
    settings: Settings, loss: float
) -> None:
    leader = first_leader(settings)
    undisturbed = expected(make_problem(), settings).elections
    for step in (1, 3, 4, 6, 11):
        elections = check(Faults(losses={(step, leader): loss}), settings)
        forgotten = step + settings.window
        assert all(election.rank != leader for election in elections if step <= election.step < forgotten)
        if step == 1:
            assert elections != undisturbed
            assert any(election.rank == leader for election in elections), "it may lead again later"


@pytest.mark.parametrize("groups", [1, 2])
def test_a_leader_lost_at_its_election_or_just_before_is_not_elected(groups: int) -> None:
    settings = replace(STALE, groups=groups, workers=6 // groups)
    level = "global" if groups == 1 else "local"
    undisturbed = expected(make_problem(), settings).elections
    would_lead = [e for e in undisturbed if e.level == level and (groups == 1 or e.step % settings.global_period)]
    for step, _, _, rank, _ in would_lead[:4]:
        for lost_at in (step, step - 1):
            elections = check(lost((lost_at, rank)), settings)
            assert all(election.rank != rank for election in elections if election.step >= lost_at)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_wholly_lost_group_has_no_local_leader_and_the_others_go_on(settings: Settings) -> None:
    elections = check(lost((4, 0), (4, 1), (5, 2)), settings)
    assert all(election.group != 0 for election in elections if election.step >= 6)
    assert {election.step for election in elections if election.group == 1} == set(range(3, STEPS + 1, 3))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_group_that_lost_only_its_losses_is_pulled_by_the_global_leader(settings: Settings) -> None:
    faults = Faults(losses={(step, rank): NAN for step in (2, 6, 10, 14) for rank in (3, 4, 5)})
    elections = check(faults, settings)
    assert all(election.group != 1 for election in elections if election.step <= 15)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_nobody_is_pulled_and_nothing_forgotten_while_there_is_no_valid_leader(settings: Settings) -> None:
    # The window of 4 holds step 2 until step 5, and step 10 until step 13.
    faults = Faults(losses={(step, rank): NAN for step in (2, 10) for rank in range(6)})
    elections = check(faults, settings)
    assert {3, 12}.isdisjoint(election.step for election in elections)
    assert {6, 9, 15} <= {election.step for election in elections}


def test_a_worker_lost_at_a_communication_does_not_lead_the_global_one_of_that_step() -> None:
    # Rank 0 has the best score by far, then rank 3: after the local communication of step 6, in which rank 0
    # is found lost, the global leader must be rank 3 and not rank 0 with the parameters of its local leader.
    problem = make_problem()
    inputs, targets = problem.batches.inputs, problem.batches.targets.copy()
    targets[0] = inputs[0] @ problem.initial["w"][0] + problem.initial["b"][0]
    targets[3] = inputs[3] @ problem.initial["w"][3] + problem.initial["b"][3] + 0.1
    problem = problem._replace(batches=problem.batches._replace(targets=targets))
    faults = lost((6, 0))
    run = expected(problem, PLAIN, faults=faults)
    assert [election.rank for election in run.elections if election.step == 6 and election.level == "global"] == [3]
    assert_same(train(with_faults(problem, faults), PLAIN), run)
