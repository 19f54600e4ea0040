"""The programs of an evaluation, compiled while a run begins to train."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from thorough import thorough

from lsgd_jax import Task, Topology, Trainer, from_arrays, lsgd
from lsgd_jax.config.config import Config
from lsgd_jax.config.from_config import trainer_of
from lsgd_jax.config.kinds import find_source
from lsgd_jax.tasks.metric import SPLITS
from lsgd_jax.trainer import loop

DATA = {"x": np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)}
METHOD = lsgd(optax.sgd(0.1), local_period=2, global_period=4)


def own_task(**more: Any) -> Task:
    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        del key
        return jnp.square(batch["x"] @ params).mean(), model_state

    return Task(lambda key: (jax.random.normal(key, (4, 2)), {}), loss, train=from_arrays(DATA, 4), **more)


def of_arrays(devices: int, tmp_path: Path) -> Trainer:
    del tmp_path
    held_out = jax.tree.map(lambda x: x[:30], DATA)
    return Trainer(own_task(validation=held_out), METHOD, Topology(2, 4, jax.devices()[:devices]))


def of_grain(devices: int, tmp_path: Path) -> Trainer:
    del tmp_path
    held_out = grain.MapDataset.source([{"x": x} for x in DATA["x"][:30]])
    return Trainer(own_task(validation=held_out, test=held_out), METHOD, Topology(2, 4, jax.devices()[:devices]))


def of_text(devices: int, tmp_path: Path) -> Trainer:
    (tmp_path / "text").write_bytes(bytes(range(32, 127)) * 100)
    sizes: Any = {"model": "lstm", "model_layers": 1, "model_width": 8, "sequence_length": 8}
    config = Config(str(tmp_path / "run"), text_file=str(tmp_path / "text"), batch_size=2, steps=8, **sizes)
    made = trainer_of(config, find_source(config))
    return dataclasses.replace(made, topology=Topology(2, 4, jax.devices()[:devices]))


@pytest.mark.parametrize(
    ("make", "devices"), [(of_arrays, 8), (of_grain, 1), (of_text, 8), thorough(of_arrays, 1), thorough(of_grain, 8)]
)
def test_an_evaluation_finds_its_programs_compiled(
    make: Callable[[int, Path], Trainer],
    devices: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluate = loop._metrics

    def noting_compilations(*of: Any) -> Any:
        before = len(caplog.records)
        with jax.log_compiles():
            metrics = evaluate(*of)
        compiled.append([record.getMessage() for record in caplog.records[before:] if "XLA" in record.getMessage()])
        return metrics

    compiled: list[list[str]] = []
    monkeypatch.setattr(loop, "_metrics", noting_compilations)
    result = dataclasses.replace(make(devices, tmp_path), eval_every=4, workdir=None).fit(8)
    assert np.isfinite(result.metrics[-1]["validation_loss"])
    assert compiled == [[], []]


def test_an_evaluation_of_ones_own_that_cannot_be_traced_ahead_is_called_when_it_is_due() -> None:
    def evaluate(topology: Topology) -> Any:
        del topology
        return lambda candidate, prefix: {f"{prefix}{s}_loss": float(candidate[0].sum()) for s in SPLITS}

    result = Trainer(own_task(evaluate=evaluate), METHOD, Topology(2, 4, jax.devices()[:1]), eval_every=4).fit(8)
    assert result.metrics[-1]["validation_loss"] == pytest.approx(float(result.center[0].sum()))
