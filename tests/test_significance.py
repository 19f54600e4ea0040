"""Which differences between methods are called none."""

import math
import statistics

import pytest
from comparison.evaluations import spread
from comparison.significance import not_apart, standard_errors
from comparison.tables import budget_table, least_bytes, main_table
from made_up_runs import PARALLEL, cells, falling, methods, outcome


def test_a_difference_is_measured_in_standard_errors_of_it() -> None:
    one, other = (1.0, 2.0, 4.0, 5.0), (2.0, 6.0, 7.0)
    error = math.sqrt(statistics.variance(one) / 4 + statistics.variance(other) / 3)
    assert standard_errors(spread(one), spread(other)) == pytest.approx((5 - 3) / error)
    assert standard_errors(spread((1.0, 1.0)), spread((1.0, 1.0))) == 0
    assert standard_errors(spread((1.0, 1.0)), spread((2.0, 2.0))) == math.inf
    assert math.isnan(standard_errors(spread((1.0,)), spread((2.0, 3.0))))


def test_what_is_less_than_two_standard_errors_away_is_no_difference() -> None:
    seeds = {"near": (0.0, 1.0, 2.0), "middle": (1.5, 2.5, 3.5), "far": (3.0, 4.0, 5.0), "once": (9.0,)}
    assert not_apart({name: spread(values) for name, values in seeds.items()}) == {
        "near": ["middle", "once"],
        "middle": ["near", "far", "once"],
        "far": ["middle", "once"],
        "once": ["near", "middle", "far"],
    }


def test_the_tables_name_what_a_method_does_not_differ_from() -> None:
    errors = {"lsgd": (0.01, 0.02, 0.03), "easgd": (0.02, 0.03, 0.04), "none": (0.3, 0.31, 0.32)}
    made = [
        outcome(method, PARALLEL, seed, "test", falling(error), sent=10**6)
        for method, of_seeds in errors.items()
        for seed, error in enumerate(of_seeds)
    ]
    found = list(methods(made, dict.fromkeys(errors, PARALLEL)).values())
    sent = least_bytes(found)
    assert sent is not None
    for table in (main_table(found), budget_table(found, sent, "MB", 1e6)):
        assert [cells(table, method)[-1] for method in errors] == ["easgd", "lsgd", "–"]
