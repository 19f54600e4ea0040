"""Methods at equal bytes and at equal predicted time."""

import math

import pytest
from made_up_runs import LSGD, PARALLEL, STEPS, cells, comparison, falling, methods, outcome

from lsgd_jax.compare.figures import levels
from lsgd_jax.compare.tables import (
    Budget,
    budget_table,
    least_bytes,
    least_seconds,
)


def test_at_equal_bytes_every_method_stops_within_what_the_thriftiest_sends() -> None:
    by_name = methods(comparison())
    budget = least_bytes(list(by_name.values()))
    assert budget is not None
    assert (budget.amount, budget.method) == (4 * 10**6, "lsgd")
    table = budget_table(list(by_name.values()), budget, "MB", 1e6)
    assert cells(table, "lsgd") == ["lsgd", "3.00 ± 1.00", "16,384", "4", "–"]
    assert cells(table, "data_parallel") == ["data_parallel", "8.00 ± 0.00", "4,096", "3", "–"]


def test_a_few_bytes_more_than_the_budget_do_not_cost_an_evaluation() -> None:
    thrifty = [outcome("lsgd", LSGD, 100, "test", falling(0.02), sent=10**6)]
    for sent, samples in ((1_009_000, "16,384"), (1_011_000, "12,288")):
        other = [outcome("local_sgd", LSGD, 100, "test", falling(0.01), sent=sent)]
        by_name = methods([*thrifty, *other])
        budget = least_bytes(list(by_name.values()))
        assert budget is not None
        table = budget_table(list(by_name.values()), budget, "MB", 1e6)
        assert (cells(table, "lsgd")[2], cells(table, "local_sgd")[2]) == ("16,384", samples)


def test_at_equal_bytes_some_send_too_much_and_some_nothing() -> None:
    talkative = [outcome("data_parallel", PARALLEL, 100, "test", falling(0.01), sent=5 * 10**6)]
    silent = [outcome("none", PARALLEL, 100, "test", falling(0.05))]
    both = [made for made in comparison() if made.trial.method == "lsgd"] + talkative + silent
    by_name = methods(both)
    budget = least_bytes(list(by_name.values()))
    assert budget is not None
    table = budget_table(list(by_name.values()), budget, "MB", 1e6)
    late = "budget ends at about step 12, before the first evaluation"
    assert cells(table, "data_parallel") == ["data_parallel", late, "", "", ""]
    assert cells(table, "none") == ["none", "5.00", "16,384", "sends nothing", "lsgd"]
    assert table.splitlines()[-1].startswith("| data_parallel")


def test_seeds_that_were_evaluated_at_different_steps_are_compared_at_those_they_share() -> None:
    usual = [outcome("none", PARALLEL, seed, "test", falling(0.01)) for seed in (100, 101)]
    dense = outcome("none", PARALLEL, 102, "test", [*falling(0.08), *falling(0.02)], eval_every=8)
    thrifty = [outcome("lsgd", LSGD, 100, "test", falling(0.5), sent=1)]
    by_name = methods([*usual, dense, *thrifty])
    assert [level.evaluation.step for level in levels(by_name["none"])] == [16, 32, 48, 64]
    assert levels(by_name["none"])[0].highest == pytest.approx(32), "of the second evaluation of the dense one"
    seconds = by_name["none"].test[0].end.predicted_seconds
    budget = Budget(0.7 * seconds, "lsgd", lambda evaluation: evaluation.predicted_seconds)
    assert cells(budget_table([by_name["none"]], budget, "s", 1), "none")[1:3] == ["5.33 ± 2.31", f"{32 * 32 * 8:,}"]


def test_at_equal_predicted_time_every_method_stops_within_the_shortest_run() -> None:
    by_name = methods(comparison())
    budget = least_seconds(list(by_name.values()))
    assert budget is not None
    assert budget.method == "lsgd"
    lsgd, parallel = by_name["lsgd"].test[0], by_name["data_parallel"].test[0]
    assert budget.amount == lsgd.end.predicted_seconds
    steps = math.floor(budget.amount / (parallel.end.predicted_seconds / STEPS) / 16) * 16
    assert 0 < steps < STEPS
    table = budget_table(list(by_name.values()), budget, "s", 1)
    assert cells(table, "lsgd")[1:3] == ["3.00 ± 1.00", "16,384"]
    error = {16: "8.00 ± 0.00", 32: "4.00 ± 0.00", 48: "2.00 ± 0.00"}[steps]
    assert cells(table, "data_parallel")[1:3] == [error, f"{steps * 32 * 8:,}"]
