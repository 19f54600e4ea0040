"""Plans and outcomes of comparisons that nobody ran."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsgd_jax.accounting.network import NETWORKS
from lsgd_jax.compare.evaluations import evaluate_all
from lsgd_jax.compare.plan import Comparison, make_plan
from lsgd_jax.compare.tables import MethodResults, group_by_method
from lsgd_jax.compare.trials import Trial, TrialOutcome
from lsgd_jax.config.config import Config
from lsgd_jax.files.files import write_json

NETWORK = "1 Gb/s Ethernet"
COMPUTE = 0.002
STEPS = 64
LSGD = (("learning_rate", 0.05), ("global_period", 16))
PARALLEL = (("learning_rate", 0.05),)

# Errors of an evaluation: validation and test of the center, validation and test of the leader.
Figures = tuple[float | None, float | None, float | None, float | None]


def outcome(
    method: str,
    varied: tuple[tuple[str, Any], ...],
    seed: int,
    phase: str,
    errors: Sequence[Figures],
    *,
    sent: int = 0,
    diverged: bool = False,
    **settings: Any,
) -> TrialOutcome:
    """A made-up run of 2 × 4 workers on digits, evaluated every 16 steps, which sends so many bytes between."""
    defaults: dict[str, Any] = {"sampling": "iid", "batch_size": 32, "steps": STEPS, "eval_every": 16}
    config = Config("runs/x", algorithm=method, seed=seed, **defaults | dict(varied) | settings)
    curve = [
        {
            **{"step": (number + 1) * config.evaluation_period, "seconds": 0.5 * (number + 1)},
            **{"bytes_communicated": (number + 1) * sent, "train_loss": None, "leader": 3},
            **{"validation_error": center, "test_error": center_test, "test_loss": center_test},
            **{"leader_validation_error": leader, "leader_test_error": leader_test, "leader_test_loss": leader_test},
        }
        for number, (center, center_test, leader, leader_test) in enumerate(errors)
    ]
    whole = {"model": "cnn3", "parameters": 53_002, "batch_size": 32, "device": "8 × cpu", "jax": "0.12.0.1"}
    summary = None if diverged else {**curve[-1], **whole}
    return TrialOutcome(Trial(method, varied, seed, phase, config), curve, summary)


def leave(config: Config, metric: str = "error", *, sent: int = 100) -> dict[str, Any]:
    """Leaves what a run of these settings does that was evaluated once, at its end; returns its summary."""
    workdir = Path(config.workdir)
    errors = {f"{split}_{metric}": 0.3 for split in ("validation", "test")}
    errors |= {f"leader_{split}": 0.4 for split in errors}
    row = {"step": config.steps, "seconds": 1.0, "bytes_communicated": sent, "train_loss": 0.1, **errors, "leader": 0}
    summary = row | {
        **{"algorithm": config.algorithm, "dataset": "digits", "model": "mlp", "parameters": 10, "groups": 1},
        **{"workers": 2, "batch_size": config.batch_size or 8, "device": "1 × cpu", "jax": "0", "figures": []},
        **{f"worker_{split}_{metric}": [0.3, 0.4] for split in ("validation", "test")},
    }
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", dataclasses.asdict(config))
    (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    write_json(workdir / "summary.json", summary)
    return summary


def falling(error: float) -> list[Figures]:
    """Four evaluations; at the last one the center has this error everywhere, and the leader has twice as much."""
    return [(factor * error, factor * error, 2 * factor * error, 2 * factor * error) for factor in (8, 4, 2, 1)]


def comparison() -> list[TrialOutcome]:
    """Two methods, a search of 3 × 2 and 2 × 1 settings with two seeds, three test seeds."""
    outcomes = []
    for seed in (0, 1):
        for rate, error in ((0.02, 0.03), (0.05, 0.02), (0.1, 0.06)):
            for period, factor in ((16, 1.0), (32, 1.5)):
                varied = (("learning_rate", rate), ("global_period", period))
                run = falling((error + 0.002 * seed) * factor)
                outcomes.append(outcome("lsgd", varied, seed, "search", run, sent=10**6))
        for rate, error in ((0.05, 0.03), (0.1, 0.04)):
            varied = (("learning_rate", rate),)
            outcomes.append(outcome("data_parallel", varied, seed, "search", falling(error), sent=3 * 10**6))
    for seed in (100, 101, 102):
        error = 0.01 * (seed - 98)  # 2, 3 and 4 %
        outcomes.append(outcome("lsgd", LSGD, seed, "test", falling(error), sent=10**6))
        outcomes.append(outcome("data_parallel", PARALLEL, seed, "test", falling(0.01), sent=3 * 10**6))
    return outcomes


CHOSEN = {"lsgd": LSGD, "data_parallel": PARALLEL}


def methods(outcomes: Sequence[TrialOutcome], chosen: dict[str, Any] = CHOSEN) -> dict[str, MethodResults]:
    runs = evaluate_all(outcomes, NETWORKS[NETWORK], COMPUTE)
    return {method.name: method for method in group_by_method(runs, chosen)}


def cells(table: str, method: str) -> list[str]:
    """The cells of a method's line."""
    line = next(line for line in table.splitlines() if line.startswith(f"| {method} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def a_plan(workdir: Path, **changes: Any) -> Comparison:
    """Two methods, one of them with two settings, on an mlp and digits."""
    given = {"workdir": str(workdir), "model": "mlp", "groups": 1, "workers": 2, "steps": 8, "batch_size": 8}
    options: dict[str, Any] = {
        "methods": ["lsgd", "sgd"],
        "vary": ["lsgd.learning_rate=0.01,0.02"],
        "search_seeds": ["0"],
        "test_seeds": ["1", "2", "3"],
        "network": "1 Gb/s Ethernet",
        "compute_seconds": None,
    }
    return make_plan(given | {"global_period": 4, "eval_every": 4}, **options | changes)
