"""Models as safetensors, and back."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint._src.futures import signaling_client

from lsgd_jax import export_center, from_arrays, import_center, load_center
from lsgd_jax.errors import InputError
from lsgd_jax.tasks.task import Task
from lsgd_jax.trainer.saved_models import save_model

DATA = from_arrays({"x": np.zeros((4, 1), np.float32)}, 2)


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def init(key: jax.Array) -> tuple[Any, Any]:
    kernel = jax.random.normal(key, (3, 2))
    params = {"dense": Layer(kernel, jnp.zeros(2, jnp.bfloat16)), "list": [jnp.arange(4), (jnp.float16(0.5),)]}
    return params, {"mean": jnp.full(2, 1.5)}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """That of a run that has left a center."""
    (tmp_path / "config.json").write_text("{}")
    save_model(tmp_path, "center", *init(jax.random.key(1)), {"model": "mine", "kind": "own"})
    return tmp_path


def test_what_is_written_is_read_back_bit_for_bit(workdir: Path, tmp_path: Path) -> None:
    export_center(workdir, tmp_path / "model.safetensors")
    back = import_center(tmp_path / "model.safetensors", jax.eval_shape(init, jax.random.key(0)))
    expected = init(jax.random.key(1))
    assert jax.tree.structure(back) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(expected), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)


def test_a_model_of_several_devices_is_exported_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    everywhere = NamedSharding(Mesh(jax.devices()[:4], "x"), PartitionSpec())
    save_model(tmp_path, "center", {"w": jax.device_put(jnp.arange(3.0), everywhere)}, {}, {"model": "mine"})
    code = f"import lsgd_jax; lsgd_jax.export_center({str(tmp_path)!r}, {str(tmp_path / 'model.safetensors')!r})"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    back, _ = import_center(tmp_path / "model.safetensors", ({"w": jax.ShapeDtypeStruct((3,), jnp.float32)}, {}))
    np.testing.assert_array_equal(back["w"], [0, 1, 2])


def test_arrays_are_called_by_their_paths_as_any_reader_of_the_format_sees(workdir: Path, tmp_path: Path) -> None:
    export_center(workdir, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])  # the format: a length, a header in JSON, numbers
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    assert {name: (each["dtype"], each["shape"]) for name, each in header.items()} == {
        "params.dense.kernel": ("F32", [3, 2]),
        "params.dense.bias": ("BF16", [2]),
        "params.list.0": ("I32", [4]),
        "params.list.1.0": ("F16", []),
        "model_state.mean": ("F32", [2]),
    }


def test_it_is_what_load_center_gives(workdir: Path, tmp_path: Path) -> None:
    export_center(workdir, tmp_path / "model.safetensors")
    task = Task(init, lambda params, state, batch, key: (jnp.zeros([]), state), train=DATA)
    loaded = load_center(workdir, task)
    back = import_center(tmp_path / "model.safetensors", loaded)
    jax.tree.map(np.testing.assert_array_equal, back, loaded)


def test_what_cannot_be_is_told_in_one_line(workdir: Path, tmp_path: Path) -> None:
    shapes = jax.eval_shape(init, jax.random.key(0))
    file = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match=r"there is no .*: export_center writes one"):
        import_center(file, shapes)
    with pytest.raises(FileNotFoundError, match="no leader in"):
        export_center(workdir, file, which="leader")
    with pytest.raises(InputError, match="cannot be written"):
        export_center(workdir, tmp_path / "nowhere" / "model.safetensors")
    export_center(workdir, file)
    with pytest.raises(InputError, match=r"of another model: model_state.mean is .*, not None"):
        import_center(file, (shapes[0], {}))
    file.write_bytes(b"{}")
    with pytest.raises(InputError, match="is damaged, or no safetensors"):
        import_center(file, shapes)


def test_models_are_saved_without_the_service_of_an_older_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax keeps its first client: what a run saves after its processes have changed must not need it."""

    def gone(*_: Any, **__: Any) -> None:
        raise RuntimeError("failed to connect to all addresses")

    for name in ("key_value_set", "blocking_key_value_get", "wait_at_barrier"):
        monkeypatch.setattr(signaling_client.ThreadSafeKeyValueSignalingClient, name, gone)
    save_model(tmp_path, "center", *init(jax.random.key(1)), {"model": "mine", "kind": "own"})
    params, _ = load_center(tmp_path, Task(init, lambda *of: of, train=DATA))
    np.testing.assert_array_equal(params["list"][0], np.arange(4))
