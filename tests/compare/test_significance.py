"""Which differences between methods are called none; and that the published tables follow from their CSV files."""

import math
import statistics
from pathlib import Path

import pytest
from made_up_runs import PARALLEL, cells, falling, methods, outcome
from published_runs import FOLDERS, read_published

from lsgd_jax.compare.evaluations import spread
from lsgd_jax.compare.significance import not_apart, standard_errors
from lsgd_jax.compare.tables import budget_table, least_bytes, least_seconds, main_table, time_unit


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


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_tables_of_a_published_report_follow_from_its_csv_files(folder: Path) -> None:
    published, text = read_published(folder), (folder / "report.md").read_text()
    sent, seconds = least_bytes(published), least_seconds(published)
    assert sent is not None
    assert seconds is not None
    unit, in_unit = time_unit([seconds.amount])
    assert main_table(published) in text
    assert budget_table(published, sent, "MB", 1e6) in text
    assert budget_table(published, seconds, unit, in_unit) in text


def test_an_election_costs_no_method_its_last_evaluation_in_a_published_report() -> None:
    (cifar,) = [folder for folder in FOLDERS if folder.name == "comparison_cifar10"]
    at_equal_bytes = (cifar / "report.md").read_text().partition("## At equal bytes")[2]
    assert cells(at_equal_bytes, "lsgd")[1:3] == ["54.12 ± 1.70", "81,920"]
