"""Layer normalization and GELU, with their gradients, against Flax and JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsgd_jax.models.gelu import gelu
from lsgd_jax.models.layer_norm import LayerNorm, normalize

RNG = np.random.default_rng(0)
ROWS = (3, 5, 16)


def in_flax(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    norm = nnx.LayerNorm(x.shape[-1], epsilon=1e-5, rngs=nnx.Rngs(0))
    norm.scale.set_value(scale)
    norm.bias.set_value(bias)
    return norm(x)


def close(found: Any, right: Any, tolerance: float = 1e-5) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=tolerance, atol=tolerance),
        found,
        right,
    )


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_layer_norm_and_its_gradient_are_those_of_flax_also_on_lanes(offset: float) -> None:
    x = jnp.asarray(RNG.normal(offset, 2.0, ROWS), jnp.float32)
    scale, bias, cotangent = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in (16, 16, ROWS))

    def with_gradient(function: Any) -> Any:
        outputs, pull_back = jax.vjp(function, x, scale, bias)
        return outputs, pull_back(cotangent)

    close(with_gradient(normalize), with_gradient(in_flax))
    lanes = jnp.stack([x, 2 * x])
    close(jax.vmap(normalize, (0, None, None))(lanes, scale, bias), jax.vmap(lambda x: in_flax(x, scale, bias))(lanes))


def test_layer_norm_begins_as_that_of_flax_and_its_parameters_have_the_same_names() -> None:
    ours, flax = LayerNorm(16), nnx.LayerNorm(16, rngs=nnx.Rngs(0))
    shapes = [jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(norm, nnx.Param))) for norm in (ours, flax)]
    jax.tree.map(np.testing.assert_array_equal, *shapes)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 5e-6), (jnp.bfloat16, 1e-2)])
def test_gelu_and_its_slope_are_those_of_jax(dtype: Any, tolerance: float) -> None:
    x = jnp.linspace(-8, 8, 161).astype(dtype)
    found, slope = gelu(x), jax.vmap(jax.grad(gelu))(x)
    assert found.dtype == slope.dtype == dtype
    close(found, jax.nn.gelu(x.astype(jnp.float32)), tolerance)
    close(slope, jax.vmap(jax.grad(jax.nn.gelu))(x.astype(jnp.float32)), tolerance)
