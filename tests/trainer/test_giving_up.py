"""When a run in which all workers are lost ends, and when it goes on: not where its calls happen to be cut."""

import math
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgd_jax import GROUP, WORKER, Axes, Topology, diloco, downpour
from lsgd_jax.config.config import Config
from lsgd_jax.config.train import train
from lsgd_jax.engine.communications import Election, RoundReport
from lsgd_jax.errors import AllWorkersLostError
from lsgd_jax.tasks import classification
from lsgd_jax.trainer import loop
from lsgd_jax.trainer.records import read_incidents, read_metrics, read_workers
from lsgd_jax.trainer.reports import RoundLog

ALL, ONE, NOBODY = np.ones((2, 2), bool), np.eye(2, dtype=bool), np.zeros((2, 2), bool)


class Silent:
    """In place of `Records` and `Progress`."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def goes_on(lost: Any, **restarted: Any) -> bool:
    """Whether a run does after a call; `restarted` by level, None where a communication is not due."""
    elections = {
        level: Election(ALL if who is not None else NOBODY, None, NOBODY if who is None else who)
        for level, who in restarted.items()
    }
    silent: Any = Silent()
    log = RoundLog(Topology(2, 2), silent, silent, lambda: 8)
    log.add(12, RoundReport(np.ones((2, 2)), lost, elections))
    try:
        log.catch_up()
    except AllWorkersLostError:
        return False
    return True


def test_all_lost_workers_wait_for_the_next_global_communication() -> None:
    assert goes_on(ALL, **{"global": None})
    assert goes_on(ALL, **{"local": NOBODY, "global": None})
    assert goes_on(ALL, **{"global": ALL}), "a center starts them again"
    assert goes_on(ALL, **{"local": ONE, "global": NOBODY})
    assert not goes_on(ALL, **{"global": NOBODY})
    assert not goes_on(ALL, **{"local": NOBODY, "global": NOBODY})
    assert goes_on(~ONE, **{"global": NOBODY}), "not all are lost"


def test_without_communications_there_is_nothing_to_wait_for() -> None:
    assert not goes_on(ALL)
    assert goes_on(~ONE)


SETTINGS: dict[str, Any] = {
    **{"model": "mlp", "groups": 1, "workers": 2, "batch_size": 16, "learning_rate": 0.1},
    **{"steps": 20, "global_period": 16, "eval_every": 5, "checkpoint_every": 10},
}


@pytest.fixture
def _lost_within_10_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker breaks, soon after its start and each time it starts again."""
    plain = classification.classification_loss

    def not_finite_once_it_has_fallen(model: Any) -> Any:
        def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
            value, model_state = plain(model)(params, model_state, batch, key)
            return value / jnp.where(value < 1.8, 0.0, 1.0), model_state

        return loss

    monkeypatch.setattr(classification, "classification_loss", not_finite_once_it_has_fallen)


@pytest.mark.slow
@pytest.mark.usefixtures("_lost_within_10_steps")
def test_workers_that_are_all_lost_start_again_from_a_center_and_a_run_stopped_meanwhile_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(str(tmp_path / "run"), algorithm="easgd", **SETTINGS)
    plain = loop._metrics

    def with_a_signal(run: Any, at: loop.Position) -> dict[str, Any]:
        if at.step == 10:  # as long as nobody is there: it takes effect at step 15
            signal.raise_signal(signal.SIGINT)
        return plain(run, at)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_metrics", with_a_signal)
        assert train(config) is None
    told = capsys.readouterr()
    assert all(f"worker {rank} has parameters that are not finite" in told.err for rank in (0, 1))
    assert "stopped at step 15 of 20, all workers lost: to go on from step 0" in told.out
    happened = [tuple(incident) for incident in read_incidents(tmp_path / "run")]
    assert happened[:2] == [
        (step, f"worker {rank} has parameters that are not finite") for rank, step in ((0, 5), (1, 10))
    ]
    assert happened[-1] == (15, "stopped, as it was asked to")
    saved = tmp_path / "run" / "checkpoints"
    assert not (saved.exists() and list(saved.iterdir())), "no run should go back to lost workers"

    summary = train(config, resume=True, figures=False)
    log = capsys.readouterr().err
    assert all(f"step 16: worker {rank} starts again" in log for rank in (0, 1))
    happened = [tuple(incident) for incident in read_incidents(tmp_path / "run")]
    assert happened[0] == (0, "began again")
    assert (16, "worker 1 starts again") in happened
    assert {row.step: math.isnan(row.score) for row in read_workers(tmp_path / "run")}[20], "who is lost has no score"
    assert summary is not None
    assert summary["figures"] == []
    assert not (tmp_path / "run" / "figures").exists()
    assert (summary["step"], summary["leader"]) == (20, -1), "all are lost again, but there is a center"
    assert summary["test_error"] < summary["leader_test_error"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_lost_within_10_steps")
def test_a_run_that_ends_before_the_next_communication_without_a_center_is_given_up(tmp_path: Path) -> None:
    config = Config(str(tmp_path / "run"), algorithm="local_sgd", **SETTINGS | {"steps": 15})
    with pytest.raises(AllWorkersLostError, match=r"lost by step 15 .*there is no checkpoint yet"):
        train(config)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [5, 10]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["downpour", "diloco"])
def test_a_center_that_is_not_finite_starts_nobody_again(method: str) -> None:
    base = optax.sgd(1.0)
    optimizer = downpour(base) if method == "downpour" else diloco(base, optax.sgd(1.0), period=1)

    def restarted(params: jax.Array) -> jax.Array:
        state = optimizer.init(params, Axes())._replace(**{center: jnp.full_like(params, jnp.inf)})
        return optimizer.communications[0].apply(params, state, jnp.zeros([]), (GROUP, WORKER)).restarted

    center = "fetched" if method == "downpour" else "center"
    everybody = jax.vmap(jax.vmap(restarted, axis_name=WORKER), axis_name=GROUP)
    assert not everybody(jnp.full((1, 2, 3), jnp.nan)).any()
