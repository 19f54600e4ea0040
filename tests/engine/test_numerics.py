"""A run is the same however the environment has set JAX."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lsgd_jax.cluster import processes
from lsgd_jax.config.config import Config
from lsgd_jax.config.train import train
from lsgd_jax.engine.numerics import fixed_numerics, run_key

RUN: dict[str, Any] = {
    **{"model": "mlp", "algorithm": "none", "groups": 1, "workers": 2, "batch_size": 8, "init": "different"},
    **{"steps": 6, "eval_every": 6, "checkpoint_every": 6},
}


@contextlib.contextmanager
def other_defaults() -> Iterator[None]:
    """As JAX_ENABLE_X64=1, JAX_DEFAULT_PRNG_IMPL=rbg and their like make them."""
    jax.config.update("jax_random_seed_offset", 5)
    try:
        with (
            jax.enable_x64(True),
            jax.default_prng_impl("rbg"),
            jax.threefry_partitionable(False),
            jax.numpy_dtype_promotion("strict"),
            jax.numpy_rank_promotion("raise"),
            jax.legacy_prng_key("error"),
        ):
            yield
    finally:
        jax.config.update("jax_random_seed_offset", 0)


@pytest.mark.slow
def test_a_run_is_the_same_under_other_defaults_of_jax_and_on_more_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, states = jax.devices(), []
    for count, defaults in ((1, contextlib.nullcontext), (2, other_defaults)):
        monkeypatch.setattr(processes, "devices", lambda count=count: devices[:count])
        workdir = tmp_path / str(count)
        with defaults():
            assert train(Config(str(workdir), **RUN), figures=False)
        with ocp.StandardCheckpointer() as checkpointer:
            state = checkpointer.restore((workdir / "checkpoints" / "6" / "state").absolute())
        states.append([np.asarray(leaf) for leaf in jax.tree.leaves(state)])
    for one, other in zip(*states, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_the_key_of_a_run_is_that_of_jax_with_its_own_defaults() -> None:
    for seed in (0, 1, 2**31 - 1):
        known = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
        with other_defaults(), fixed_numerics():
            assert jax.random.key_impl(run_key(seed)) == "threefry2x32"
            np.testing.assert_array_equal(jax.random.key_data(run_key(seed)), known)
