"""jax and jaxlib 0.10.2 compute wrong numbers on CPU (jax issue 39103): they are excluded, and this is why."""

import configparser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
ROWS = 32_769
"""The first size that goes wrong; then the sum of squares of the last row is 2^30."""


def squared_length_of_image(row: jax.Array) -> jax.Array:
    """A matrix-vector product, then a reduction."""
    return jnp.sum((jnp.eye(3) @ row) ** 2)


def test_a_vmapped_matrix_vector_product_and_a_reduction_are_right_under_jit() -> None:
    rows = jnp.zeros((ROWS, 3)).at[:, 0].set(jnp.arange(ROWS))
    lengths = jax.jit(jax.vmap(squared_length_of_image))(rows)
    np.testing.assert_allclose(lengths, np.arange(ROWS, dtype=np.float64) ** 2, rtol=1e-6)
    assert float(lengths[-1]) == 2.0**30


@pytest.mark.parametrize("package", ["jax", "jaxlib"])
def test_the_broken_version_is_excluded(package: str) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    requirements = {line.split()[0]: line for line in config["options"]["install_requires"].split("\n") if line.strip()}
    assert "!=0.10.2" in requirements[package].replace(" ", "").replace(package, "", 1).split(",")


def test_the_versions_at_work_are_not_the_broken_one() -> None:
    assert jax.__version__ != "0.10.2"
    assert jax.lib.__version__ != "0.10.2"
