"""Whole runs whose workers span several devices: as with one each, and they go on with another split."""

import json
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec
from tanh_task import loss, wrong
from thorough import thorough

from lsgd_jax import Task, Topology, Trainer, from_arrays, from_grain, lsgd
from lsgd_jax.collectives import partition
from lsgd_jax.config.config import Config
from lsgd_jax.config.from_config import trainer_of
from lsgd_jax.config.kinds import find_source
from lsgd_jax.config.train import train
from lsgd_jax.errors import InputError
from lsgd_jax.trainer.trainer import Result

P = PartitionSpec
METHOD = lsgd(optax.adam(0.01), local_period=2, global_period=4, global_pull=0.5, stale_local_pull=0.02)
RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(203, 8)).astype(np.float32)}
DATA["y"] = (DATA["x"].sum(1) > 0).astype(np.int32)
SAMPLES = grain.MapDataset.source([{"x": x, "y": y} for x, y in zip(DATA["x"], DATA["y"], strict=True)])


@pytest.fixture(autouse=True)
def split_what_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "LEAST_SPLIT", 4)


def init(key: jax.Array) -> tuple[Any, Any]:
    first, second = jax.random.split(key)
    return {"a": 0.5 * jax.random.normal(first, (8, 16)), "b": 0.5 * jax.random.normal(second, (16, 2))}, {}


def trainer(topology: Topology, workdir: Path | None = None, **more: Any) -> Trainer:
    held_out: Any = SAMPLES[:37] if more.pop("streamed", False) else jax.tree.map(lambda x: x[:37], DATA)
    given: dict[str, Any] = {"train": from_arrays(DATA, 8), "metrics": {"error": wrong}} | more
    task = Task(init, loss, validation=held_out, **given)
    return Trainer(task, METHOD, topology, workdir=workdir, eval_every=8, checkpoint_every=8)


def on(devices: int, axes: dict[str, int] | None = None) -> Topology:
    return Topology(2, 2, jax.devices()[:devices], worker_axes=axes)


def assert_alike(one: Result, other: Result) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one[:3], other[:3])
    for ours, theirs in zip(one.metrics, other.metrics, strict=True):
        for name in ours.keys() - {"seconds"}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, thorough(False)])
def test_a_run_is_that_of_workers_of_one_device(streamed: bool) -> None:
    more = {"train": from_grain(SAMPLES, 8), "streamed": True} if streamed else {}
    one = trainer(on(4), **more).fit(16)
    split = trainer(on(8, {"fsdp": 2}), partition=[("params/b|^b$", P("fsdp"))], **more).fit(16)
    assert_alike(one, split)
    assert split.center[0]["b"].sharding.spec == P("fsdp")


@pytest.mark.slow
def test_a_run_goes_on_with_another_split_and_each_device_has_written_its_part(tmp_path: Path) -> None:
    whole = trainer(on(4)).fit(24, figures=False)
    trainer(on(8, {"fsdp": 2}), tmp_path).fit(8, figures=False)
    with ocp.StandardCheckpointer() as checkpointer:
        found: Any = checkpointer.metadata((tmp_path / "checkpoints" / "8" / "state").absolute()).item_metadata
    leaf = found["params"]["a"]
    assert (leaf.shape, leaf.storage.write_shape) == ((2, 2, 8, 16), (1, 1, 8, 8))
    trainer(on(4, {"fsdp": 2, "tensor": 2}), tmp_path).fit(16, resume=True, figures=False)
    assert_alike(whole, trainer(on(4), tmp_path).fit(24, resume=True, figures=False))


@pytest.mark.slow
@pytest.mark.thorough
def test_another_number_of_workers_goes_on_on_other_devices(tmp_path: Path) -> None:
    trainer(on(8, {"fsdp": 2}), tmp_path).fit(8, figures=False)
    alone = tmp_path.parent / "alone"
    trainer(on(4), alone).fit(8, figures=False)
    results = []
    for topology, folder in (
        (Topology(1, 3, jax.devices()[:6], worker_axes={"x": 2}), tmp_path),
        (Topology(1, 3), alone),
    ):
        results.append(trainer(topology, folder).fit(16, resume=True, elastic=True, figures=False))
    assert_alike(*results)


@pytest.mark.slow
@pytest.mark.thorough
def test_the_flag_makes_the_same_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": "mlp",
        "steps": 8,
        "groups": 1,
        "workers": 2,
        "global_period": 4,
        "eval_every": 8,
    }
    one = train(Config(str(tmp_path / "one"), **settings), figures=False)
    split = Config(str(tmp_path / "split"), **settings, worker_axes="fsdp=2, tensor=2")
    assert trainer_of(split, find_source(split)).topology.own_axes == {"fsdp": 2, "tensor": 2}
    several = train(split, figures=False)
    for name in ("test_loss", "test_error", "leader_test_loss", "train_loss", "bytes_communicated"):
        assert several[name] == pytest.approx(one[name], abs=1e-5)
    assert json.loads((tmp_path / "split" / "config.json").read_text())["worker_axes"] == "fsdp=2, tensor=2"


@pytest.mark.parametrize("text", ["4", "fsdp", "fsdp=", "fsdp=0", "fsdp=2,fsdp=2", "f-s=2", "fsdp=-2", "fsdp=x"])
def test_axes_that_cannot_be_read_are_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"--worker_axes={text}: must be name=devices, each once, as fsdp=4"):
        train(Config(str(tmp_path / "run"), worker_axes=text))


def test_more_devices_than_there_are_and_names_that_are_taken_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--worker_axes=fsdp=16: a worker of 16 devices does not fit on 8: use smaller"
    ):
        train(Config(str(tmp_path / "run"), worker_axes="fsdp=16"))
    with pytest.raises(InputError, match=r"--worker_axes=group=2: .*the name 'group' is taken"):
        train(Config(str(tmp_path / "run"), worker_axes="group=2"))
    assert not (tmp_path / "run").exists()
