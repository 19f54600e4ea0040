"""The model of a network: against times worked out by hand, and against itself."""

import csv
import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_link import Measurement, fit_link
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lsgd_jax import GROUP, WORKER, data_parallel, ledger, lsgd, overlapped
from lsgd_jax.accounting.ledger import Entry, Ledger
from lsgd_jax.accounting.network import (
    NETWORKS,
    Link,
    Network,
    communication_seconds,
    link_seconds,
    run_seconds,
    step_seconds,
)
from lsgd_jax.accounting.traffic import Collective
from lsgd_jax.config.methods import METHODS

IN_4_BITS = ("lsgd, overlapped, 4 bits", "diloco, overlapped, 4 bits")
SENDING = set(METHODS) - {"sgd", "none"}
NETWORK = Network(inside=Link(latency=1e-6, bandwidth=1e9), between=Link(latency=1e-3, bandwidth=1e6))
SGD = optax.sgd(0.1)
PARAMS = jax.ShapeDtypeStruct((1000,), jnp.float32)


def test_every_step_of_data_parallel_goes_round_all_nodes_at_the_pace_of_the_network_between_them() -> None:
    sends = ledger(data_parallel(SGD), PARAMS, groups=2, workers=4)
    expected = 14 * 1e-3 + 14 / 8 * 4000 / 1e6  # an all-reduce over 8 workers
    assert communication_seconds(sends, NETWORK) == pytest.approx(expected)
    assert run_seconds(sends, NETWORK, compute_seconds=0.5, steps=30) == pytest.approx(30 * (0.5 + expected))


def test_local_communications_stay_inside_a_node() -> None:
    sends = ledger(lsgd(SGD, local_period=4, global_period=8), PARAMS, groups=2, workers=4)
    local = 3 * 6 * 1e-6 + 6 / 4 * 4008 / 1e9
    everywhere = 3 * 14 * 1e-3 + 14 / 8 * 4008 / 1e6
    assert communication_seconds(sends, NETWORK) == pytest.approx(local / 4 + everywhere / 8)


def test_one_group_is_one_node() -> None:
    sends = ledger(data_parallel(SGD), PARAMS, groups=1, workers=8)
    assert communication_seconds(sends, NETWORK) == pytest.approx(14 * 1e-6 + 14 / 8 * 4000 / 1e9)


def test_rings_side_by_side_share_a_nodes_card() -> None:
    def across(axes: tuple[str, ...], workers: int) -> float:
        collective = Collective("collective-permute", "float32", 4000, 1, axes, workers, workers)
        return communication_seconds(Ledger(3, 4, (Entry("global", 2, (collective,)),), (), ()), NETWORK)

    assert across((GROUP, WORKER), 12) == pytest.approx((1e-3 + 4000 / 1e6) / 2)
    assert across((GROUP,), 3) == pytest.approx((1e-3 + 4 * 4000 / 1e6) / 2)


def test_overlapped_communications_hide_behind_local_steps_as_far_as_they_last_and_the_links_carry_them() -> None:
    sends = ledger(overlapped(lsgd(SGD, local_period=4, global_period=8), delay=2), PARAMS, groups=2, workers=4)
    assert [entry.delay for entry in sends.entries] == [2, 2]
    local, everywhere = 3 * 6 * 1e-6 + 6 / 4 * 4008 / 1e9, 3 * 14 * 1e-3 + 14 / 8 * 4008 / 1e6
    assert step_seconds(sends, NETWORK, 1.0) == 1.0, "all is hidden"
    shows = everywhere - 2 * 0.01
    assert local < 0.02 < everywhere
    assert step_seconds(sends, NETWORK, 0.01) == pytest.approx(0.01 + shows / 8)
    always = local / 4 + everywhere / 8
    assert step_seconds(sends, NETWORK, 1e-9) == pytest.approx(always, rel=1e-3)
    at_once = ledger(lsgd(SGD, local_period=4, global_period=8), PARAMS, groups=2, workers=4)
    assert step_seconds(at_once, NETWORK, 0.01) == pytest.approx(0.01 + always)


def test_workers_alone_do_not_wait() -> None:
    sends = ledger(lsgd(SGD), PARAMS, groups=1, workers=1)
    assert run_seconds(sends, NETWORK, compute_seconds=0.5, steps=30) == 15


@settings(deadline=None)
@given(
    st.floats(-7, -1),
    st.floats(5, 12),
    st.lists(st.tuples(st.integers(1, 10**4), st.floats(-2, 2)), min_size=2, max_size=6),
)
def test_a_fit_of_exact_times_finds_the_link(
    log_latency: float, log_bandwidth: float, points: list[tuple[int, float]]
) -> None:
    # A message of exponent 0 takes as long for its latency as for its bytes.
    exponents = [exponent for _, exponent in points]
    assume(max(exponents) - min(exponents) > 0.3)
    link = Link(10**log_latency, 10**log_bandwidth)
    sent = [(messages, messages * link.latency * link.bandwidth * 10**exponent) for messages, exponent in points]
    fitted = fit_link([Measurement(messages, size, link_seconds(link, messages, size)) for messages, size in sent])
    np.testing.assert_allclose(fitted, link, rtol=1e-6)


def test_a_fit_weighs_errors_by_the_time_that_was_measured() -> None:
    link = Link(latency=1e-4, bandwidth=1e8)
    rng = np.random.default_rng(0)
    points = [
        Measurement(10, size, link_seconds(link, 10, size) * rng.normal(1, 0.05))
        for size in np.geomspace(1e3, 1e9, 200)
    ]
    fitted = fit_link(points)
    np.testing.assert_allclose(fitted, link, rtol=0.05)


def test_neither_figure_of_a_fit_is_negative() -> None:
    without_latency = fit_link([Measurement(1, 1e6, 1.0), Measurement(1, 4e6, 5.0)])
    assert without_latency.latency == 0
    assert 1e6 / 1.3 < without_latency.bandwidth < 1e6
    without_limit = fit_link([Measurement(1, 1e6, 1.0), Measurement(1, 4e6, 0.9)])
    assert without_limit.bandwidth == math.inf
    assert 0.9 < without_limit.latency < 1
    assert link_seconds(without_limit, 2, 1e9) == 2 * without_limit.latency


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([], "cannot be told apart"),
        ([(1, 1e6, 1.0)], "cannot be told apart"),
        ([(1, 1e6, 1.0), (2, 2e6, 2.1)], "cannot be told apart"),
        ([(1, 1e6, 1.0), (1, 2e6, 0.0)], "must be positive"),
        ([(1, 1e6, 1.0), (1, math.nan, 1.0)], "must be positive"),
    ],
)
def test_measurements_that_tell_too_little_are_refused(points: list[tuple[float, ...]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fit_link([Measurement(*point) for point in points])


def load(path: str) -> ModuleType:
    """A script as a module, with fresh flags."""
    spec = importlib.util.spec_from_file_location("script", Path(__file__).parents[2] / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script() -> ModuleType:
    return load("experiments/network.py")


@pytest.mark.slow
@pytest.mark.thorough
def test_the_command_writes_every_model_network_method_and_size(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (4, 8, 1024)
    monkeypatch.setattr(script, "WORKERS", sizes)
    assert script.main(["network.py", f"--workdir={tmp_path}/new", "--lm1b_seconds=2"]) == 0
    with (tmp_path / "new" / "network.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = {(row["model"], row["network"], row["method"], int(row["workers"])) for row in rows}
    assert keys == {
        (m, n, a, s)
        for m in ("cnn7", "resnet50", "lm1b")
        for n in NETWORKS
        for a in SENDING | {"lsgd, overlapped", "local_sgd, overlapped", "diloco, overlapped", *IN_4_BITS}
        for s in sizes
    }
    assert len(rows) == len(keys)
    assert all(float(row["hours"]) >= float(row["compute_hours"]) > 0 for row in rows)
    slow = {float(row["compute_hours"]) for row in rows if (row["model"], row["workers"]) == ("lm1b", "8")}
    assert list(slow) == [pytest.approx(2 * 20e9 / 2048 / 64 / 3600, rel=1e-4)]
    assert 50_000 < (tmp_path / "new" / "network.png").stat().st_size < 1_000_000
    table = capsys.readouterr().out
    hours = {(row["model"], row["network"], row["method"], row["workers"]): float(row["hours"]) for row in rows}
    for model, network, method, size in hours:
        if method in IN_4_BITS:
            continue  # of which two messages follow one another, as of a mean
        if method.endswith(", overlapped"):
            assert hours[model, network, method, size] <= hours[model, network, method.split(",")[0], size]
    assert re.search(r"^lm1b +lsgd, overlapped +4 +[\d–]+ +1024 +1024$", table, re.MULTILINE), table
    assert re.search(r"^lm1b +lsgd, overlapped, 4 bits +4 +1024 +1024 +1024$", table, re.MULTILINE), table
    assert "ResNet-50, ImageNet: 25,557,032 parameters" in table
    assert re.search(r"^1 Gb/s Ethernet +data_parallel( +[\d.e+-]+){3}$", table, re.MULTILINE)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--cnn7_seconds=0", "--cnn7_seconds=0"),
        ("--resnet50_seconds=nan", "--resnet50_seconds=nan"),
        ("--lm1b_seconds=long", "lm1b_seconds"),
        ("--workers_per_node=3", "--workers_per_node=3"),
        ("--workers_per_node=0", "--workers_per_node=0"),
        ("--workdir=/dev/null/x", "--workdir=/dev/null/x"),
        ("--networks=fast", "networks"),
        ("extra", "'extra'"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    script: ModuleType, capsys: pytest.CaptureFixture[str], argument: str, told: str
) -> None:
    assert script.main(["network.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("network.py: error: ")
    assert told in err
    assert err.count("\n") == 1


def test_the_benchmark_predicts_a_size_that_it_has_not_seen() -> None:
    benchmark = load("benchmarks/network_model.py")
    link = Link(latency=2e-3, bandwidth=1e8)
    # Three arrays, the score, the rank and the model, in 2 (4 - 1) messages each.
    seconds = {size: link_seconds(link, 18, 6 / 4 * (size * 1e6 + 8)) for size in (1, 4, 16)}
    result = benchmark.compare({size: [time, time * (2 if size == 4 else 1), time] for size, time in seconds.items()})
    assert result["latency_seconds"] == pytest.approx(link.latency)
    assert result["bandwidth_bytes_per_second"] == pytest.approx(link.bandwidth)
    assert [row["error"] for row in result["sizes"]] == pytest.approx([0, 0, 0], abs=1e-9)
    late = benchmark.compare({size: [time * (2 if size == 4 else 1)] for size, time in seconds.items()})
    assert [row["error"] for row in late["sizes"]] == pytest.approx([0, -0.5, 0], abs=1e-9)
    assert "-50 %" in benchmark.table(late | {"device": "none"})
