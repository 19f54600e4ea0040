"""A comparison on text is chosen by, and reports, bits per byte."""

import csv
from pathlib import Path
from typing import Any

import pytest

from lsgd_jax.accounting.network import NETWORKS
from lsgd_jax.compare import report
from lsgd_jax.compare.evaluations import evaluate_all
from lsgd_jax.compare.grid import choose
from lsgd_jax.compare.plan import make_plan
from lsgd_jax.compare.tables import group_by_method, main_table
from lsgd_jax.compare.trials import Trial, TrialOutcome
from lsgd_jax.config.config import Config
from lsgd_jax.tasks.language import BITS_PER_BYTE

NETWORK = "1 Gb/s Ethernet"
RATES = [(("learning_rate", 0.1),), (("learning_rate", 0.2),)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_bytes(b"some words " * 100)
    return str(path)


def outcome(text: str, rate: float, seed: int, phase: str, bits: float | None, error: float) -> TrialOutcome:
    """A run whose center ends with these figures; the leader has twice the bits. Diverged without figures."""
    small: dict[str, Any] = {"model_width": 4, "model_layers": 1, "sequence_length": 8, "batch_size": 4}
    config = Config("runs/x", text_file=text, groups=1, workers=2, steps=8, eval_every=8, seed=seed, **small)
    row: dict[str, Any] = {"step": 8, "seconds": 1.0, "bytes_communicated": 10}
    for split in ("validation", "test"):
        row |= {f"{split}_bits_per_byte": bits, f"leader_{split}_bits_per_byte": bits and 2 * bits}
        row |= {f"{split}_error": error, f"leader_{split}_error": error}
    facts = {"parameters": 10, "batch_size": 4, "device": "1 × cpu", "jax": "0", "model": "transformer"}
    trial = Trial("lsgd", (("learning_rate", rate),), seed, phase, config)
    return TrialOutcome(trial, [row] if bits else [], row | facts if bits else None)


def outcomes(text: str) -> list[TrialOutcome]:
    search = [outcome(text, 0.1, 0, "search", 3.5, error=0.5), outcome(text, 0.2, 0, "search", 3.0, error=0.6)]
    return [*search, *(outcome(text, 0.2, seed, "test", bits, 0.6) for seed, bits in ((1, 2.5), (2, 3.5), (3, None)))]


def test_the_setting_with_the_fewest_bits_per_byte_is_chosen_whatever_its_error(text: str) -> None:
    assert choose({"lsgd": RATES}, outcomes(text), BITS_PER_BYTE) == {"lsgd": RATES[1]}
    assert choose({"lsgd": RATES}, outcomes(text)) == {"lsgd": RATES[0]}, "by error"
    lost = [outcome(text, rate, 0, "search", None, 1.0) for rate in (0.1, 0.2)]
    guessing = outcome(text, 0.2, 0, "search", 9.0, 0.5)
    assert choose({"lsgd": RATES}, lost, BITS_PER_BYTE) == {"lsgd": None}
    assert choose({"lsgd": RATES}, [lost[0], guessing], BITS_PER_BYTE) == {"lsgd": None}, "no better than guessing"


def test_a_run_that_diverged_costs_what_guessing_costs(text: str) -> None:
    runs = evaluate_all(outcomes(text), NETWORKS[NETWORK], 0.01)
    assert [run.end.validation.deployed for run in runs] == [3.5, 3.0, 2.5, 3.5, 8.0]
    (method,) = group_by_method(runs, {"lsgd": RATES[1]})
    table = main_table([method])
    assert "| validation bits per byte | test bits per byte |" in table
    assert "| 4.667 ± 2.930 (1 of 3 diverged) |" in table  # of 2.5, 3.5 and 8
    assert "%" not in table


@pytest.mark.slow
def test_the_report_speaks_of_bits_per_byte(text: str, tmp_path: Path) -> None:
    report.write_report(
        tmp_path, outcomes(text), {"lsgd": RATES[1]}, network=NETWORK, compute_seconds=0.01, commands=["compare"]
    )
    told = (tmp_path / "report.md").read_text()
    for fact in ("data set words.txt; model transformer", "lowest validation bits per byte",
                 "counts as 8 bits per byte", "| test bits per byte |"):  # fmt: skip
        assert fact in told
    without = told.partition("## To keep in mind")[0].replace("Measured: errors", "").replace("standard errors", "")
    assert "error" not in without
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["deployed_validation_bits_per_byte"] for row in rows] == ["3.5", "3", "2.5", "3.5", "8"]
    assert [row["center_test_bits_per_byte"] for row in rows] == ["", "", "2.5", "3.5", "8"]


def test_a_plan_knows_its_metric(text: str, tmp_path: Path) -> None:
    given = {"workdir": str(tmp_path / "x"), "text_file": text, "groups": 1, "workers": 2, "sequence_length": 8}
    plan = make_plan(given, methods=["lsgd"], vary=["lsgd.learning_rate=0.1,0.2", "lsgd.clip_norm=1"],
                     search_seeds=["0"], test_seeds=["1", "2", "3"], network=NETWORK, compute_seconds=None)  # fmt: skip
    assert plan.metric is BITS_PER_BYTE
    assert plan.base.batch_size == 32
