"""When the test runs of a comparison are evaluated, so that they have a figure within what the others spend."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lsgd_jax.accounting.network import NETWORKS
from lsgd_jax.compare.evaluations import make_cost
from lsgd_jax.compare.plan import Comparison, make_plan
from lsgd_jax.compare.schedule import DENSEST
from lsgd_jax.errors import InputError

NETWORK = "1 Gb/s Ethernet"


def planned(
    workdir: Path, *methods: str, vary: tuple[str, ...] = (), seconds: float | None = None, **more: Any
) -> Comparison:
    """64 steps of 2 × 4 workers, evaluated every 16 if nothing else matters."""
    given = {"workdir": str(workdir), "model": "mlp", "groups": 2, "workers": 4, "steps": 64, "batch_size": 8}
    given |= {"local_period": 4, "global_period": 16, "eval_every": 16}
    return make_plan(
        given | more, methods=methods, vary=vary, search_seeds=["0"], test_seeds=["1", "2", "3"], network=NETWORK,
        compute_seconds=seconds,
    )  # fmt: skip


def periods(plan: Comparison) -> dict[str, int]:
    """Of the test runs of each method's first setting."""
    tests = plan.test({method: settings[0] for method, settings in plan.settings.items()})
    assert len({(trial.method, trial.config.evaluation_period) for trial in tests}) == len(plan.settings), (
        "of all seeds"
    )
    return {trial.method: trial.config.evaluation_period for trial in tests}


@pytest.mark.slow
def test_a_method_that_sends_more_is_evaluated_before_it_has_sent_what_another_sends(tmp_path: Path) -> None:
    plan = planned(tmp_path, "easgd", "data_parallel", "none", sampling="iid")
    # Each of them sends one model a communication: easgd 4 times in its run, data_parallel at every step.
    assert periods(plan) == {"easgd": 16, "data_parallel": 4, "none": 16}
    assert periods(planned(tmp_path, "data_parallel", "none")) == {"data_parallel": 16, "none": 16}
    plan = planned(tmp_path, "easgd", "data_parallel", global_period=8)
    assert periods(plan) == {"easgd": 16, "data_parallel": 8}


def test_where_even_the_densest_evaluations_come_too_late_there_are_no_more_of_them(tmp_path: Path) -> None:
    assert periods(planned(tmp_path, "easgd", "data_parallel", global_period=64)) == {"easgd": 16, "data_parallel": 16}
    # Any of the periods may be chosen; with the shorter one they do not come too late.
    plan = planned(tmp_path, "easgd", "data_parallel", vary=("global_period=16,64",))
    assert periods(plan) == {"easgd": 16, "data_parallel": 4}


@pytest.mark.slow
def test_the_period_that_is_asked_for_is_divided_without_a_rest_and_by_no_more_than_allowed(tmp_path: Path) -> None:
    for asked, dense in ((16, 4), (15, 5), (14, 14), (9, 3), (7, 7), (4, 4), (1, 1)):
        plan = planned(tmp_path, "easgd", "data_parallel", eval_every=asked, global_period=12)
        assert periods(plan) == {"easgd": asked, "data_parallel": dense}, asked
        assert asked % dense == 0
        assert asked // dense <= DENSEST


def test_predicted_time_counts_as_far_as_it_is_known(tmp_path: Path) -> None:
    # As one worker takes the steps of eight, what the others compute meanwhile is an eighth of its run.
    assert periods(planned(tmp_path, "sgd", "none")) == {"sgd": 64, "none": 16}
    slow = planned(tmp_path, "data_parallel", "none", seconds=1e-3)
    cost = make_cost(NETWORKS[NETWORK], 1e-3)(slow.test({"data_parallel": ()})[0].config)
    assert 4 <= 64 * 1e-3 / cost.seconds < 16, "when the time of none is over"
    assert periods(slow)["data_parallel"] < 16
    assert periods(planned(tmp_path, "data_parallel", "none", seconds=1.0))["data_parallel"] == 16


def test_the_search_is_still_evaluated_at_its_end_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path, "easgd", "data_parallel", vary=("learning_rate=0.1,0.2",))
    assert {trial.config.evaluation_period for trial in plan.search()} == {64}


def test_runs_that_were_evaluated_at_other_steps_are_still_those_of_the_plan(tmp_path: Path) -> None:
    trial = planned(tmp_path, "data_parallel").test({"data_parallel": ()})[0]
    folder = Path(trial.config.workdir)
    folder.mkdir(parents=True)
    saved = dataclasses.asdict(trial.config)
    (folder / "config.json").write_text(json.dumps(saved | {"eval_every": 3, "checkpoint_every": 7}))
    planned(tmp_path, "data_parallel")
    (folder / "config.json").write_text(json.dumps(saved | {"momentum": 0.5}))
    with pytest.raises(InputError, match=r"--momentum was 0\.5"):
        planned(tmp_path, "data_parallel")


def test_an_election_more_is_no_reason_for_more_evaluations(tmp_path: Path) -> None:
    plan = planned(tmp_path, "lsgd", "easgd", groups=1, eval_every=64)
    sent = {m: make_cost(NETWORKS[NETWORK], 1.0)(plan.test({m: ()})[0].config).bytes(64) for m in ("lsgd", "easgd")}
    assert sent["easgd"] < sent["lsgd"] < 1.01 * sent["easgd"]
    assert periods(plan) == {"lsgd": 64, "easgd": 64}
