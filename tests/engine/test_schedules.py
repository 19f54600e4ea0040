"""The learning rate over steps: the same for all workers, whatever becomes of them."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgd_jax import Batches, Topology, init_state, local_sgd, make_train_step
from lsgd_jax.config.config import Config
from lsgd_jax.config.from_config import schedule_of
from lsgd_jax.config.make_method import BASE_OPTIMIZERS, base_optimizer
from lsgd_jax.config.train import train
from lsgd_jax.engine.schedules import Schedule, follow_factor, make_factor, start_plateau, update_plateau
from lsgd_jax.errors import InputError
from lsgd_jax.trainer.plan import Plan, what_changes
from lsgd_jax.trainer.records import read_metrics


def factors(counted: range, **settings: Any) -> list[float]:
    config = Config(workdir="", **settings)
    factor = make_factor(schedule_of(config), config.steps)
    return [float(factor(jnp.int32(step))) for step in counted]


def test_a_constant_rate_is_warmed_up_in_equal_steps() -> None:
    assert factors(range(3)) == [1, 1, 1]
    assert factors(range(3), warmup_steps=1) == [1, 1, 1]
    np.testing.assert_allclose(factors(range(6), warmup_steps=4), [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-6)


def test_drops_are_by_10_from_the_steps_named_on() -> None:
    got = factors(range(7), schedule="drop", drop_at="3,5", warmup_steps=2)
    np.testing.assert_allclose(got, [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_the_cosine_falls_from_the_end_of_warm_up_to_the_end_of_the_run() -> None:
    got = factors(range(13), schedule="cosine", steps=12, warmup_steps=4)
    half = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
    np.testing.assert_allclose(got, [0.25, 0.5, 0.75, 1, *half], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"schedule": "linear"}, "--schedule=linear"),
        ({"schedule": "drop"}, "--drop_at"),
        ({"drop_at": "3"}, "--schedule=drop"),
        ({"schedule": "drop", "drop_at": "3,x"}, "--drop_at=3,x"),
        ({"schedule": "drop", "drop_at": "5,3"}, "--drop_at=5,3"),
        ({"schedule": "drop", "drop_at": "0"}, "--drop_at=0"),
    ],
)
def test_what_is_no_schedule_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        schedule_of(Config(workdir="", **settings))


@pytest.mark.parametrize("name", [name for name in BASE_OPTIMIZERS if name != "lars"])
def test_a_factor_does_what_a_schedule_inside_the_base_optimizer_would(name: str) -> None:
    settings = Config(workdir="", optimizer=name, learning_rate=0.1, schedule="drop", drop_at="2")
    base, factor = base_optimizer(settings), make_factor(schedule_of(settings), settings.steps)
    inside = BASE_OPTIMIZERS[name](lambda step: 0.1 * factor(step), 0.9, 1e-4)  # type: ignore[arg-type]
    params = expected = {"w": jnp.array([1.0, -2.0])}
    state, inside_state = base.init(params), inside.init(expected)
    for step in range(5):
        grads = jax.tree.map(lambda x, step=step: x * (step + 1), params)
        updates, state = base.update(grads, state, params, rate_factor=factor(jnp.int32(step)))
        params = optax.apply_updates(params, updates)
        updates, inside_state = inside.update(grads, inside_state, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_worker_that_starts_again_goes_on_with_the_rate_of_the_others(devices: int) -> None:
    # Each step moves a worker by the rate; worker 1 is lost in step 2, and starts again at step 4.
    method = local_sgd(optax.chain(optax.sgd(1.0), follow_factor()), global_period=4)
    topology = Topology(1, 2, jax.devices()[:devices])
    batches = Batches(
        plan=lambda key, first_step, steps: first_step + jnp.arange(steps),
        draw=lambda data, step, key: data[step],
        per_worker=True,
    )
    train_step = make_train_step(
        method,
        topology,
        lambda params, model_state, batch, key: (batch * params, model_state),
        batches,
        rate_factor=make_factor(Schedule("drop", (3,)), 640),
    )
    slopes = np.ones((1, 2, 8), np.float32)
    slopes[0, 1, 1] = np.nan
    state = init_state(method, topology, lambda key: (jnp.zeros([]), {}), jax.random.key(0))
    data = jax.device_put(slopes, topology.per_worker)
    places = []
    for _ in range(8):
        state, _ = train_step(state, data, jnp.int32(1))
        places.append(np.asarray(state.params)[0])
    alone = -np.cumsum([1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1])
    np.testing.assert_allclose([place[0] for place in places], alone, rtol=1e-5)
    np.testing.assert_allclose([place[1] for place in places[3:]], alone[3:], rtol=1e-5)
    assert np.isnan(places[1][1])


@pytest.mark.slow
def test_a_plateau_is_so_many_evaluations_in_a_row_without_improvement() -> None:
    plateau, scales = start_plateau(), []
    for loss in (2.0, 1.0, 1.5, math.nan, 0.9, 0.9, 0.95, math.inf):
        plateau = update_plateau(plateau, loss, patience=2)
        scales.append(float(plateau.scale))
    np.testing.assert_allclose(scales, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


@pytest.mark.slow
def test_a_run_that_saturates_goes_on_with_a_tenth_of_the_rate_also_when_it_is_resumed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    settings: dict[str, Any] = {"model": "mlp", "groups": 1, "workers": 2, "batch_size": 8, "steps": 12}
    settings |= {"global_period": 4, "eval_every": 2, "checkpoint_every": 6, "learning_rate": 0.0}
    settings |= {"schedule": "plateau", "plateau_patience": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(Config(workdir=str(whole), **settings), figures=False)
    told = [line for line in capsys.readouterr().err.splitlines() if "saturates" in line]
    assert told == [
        "step 6: validation loss saturates, learning rate × 0.1",
        "step 10: validation loss saturates, learning rate × 0.01",
    ]
    train(Config(workdir=str(parts), **settings | {"steps": 6}), figures=False)
    train(Config(workdir=str(parts), **settings), resume=True, figures=False)
    assert "step 10: validation loss saturates, learning rate × 0.01" in capsys.readouterr().err
    rows = [[{**row, "seconds": 0} for row in read_metrics(folder)] for folder in (whole, parts)]
    assert json.dumps(rows[0]) == json.dumps(rows[1])


def test_another_number_of_steps_is_told_by_what_it_does_to_the_learning_rate() -> None:
    base = Plan(steps=40, evaluation_period=2)
    cosine, plateau = (dataclasses.replace(base, schedule=Schedule(kind)) for kind in ("cosine", "plateau"))
    told = what_changes(cosine, dataclasses.replace(cosine, steps=80), 20)
    assert told is not None
    assert "--steps was 40, is 80" in told
    assert "jumps from 0.5 to 0.854 of its value" in told  # (1 + cos(π / 2)) / 2 and (1 + cos(π / 4)) / 2
    told = what_changes(plateau, dataclasses.replace(plateau, steps=80, evaluation_period=4), 20)
    assert told is not None
    assert "were 2 steps apart, are 4" in told
    assert "--eval_every=2 keeps it" in told
    for plan in (cosine, plateau, base):
        assert what_changes(plan, plan, 20) is None
    assert what_changes(plateau, dataclasses.replace(plateau, steps=80), 20) is None
    assert what_changes(base, dataclasses.replace(base, steps=80), 20) is None
