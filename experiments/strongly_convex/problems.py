"""Strongly convex functions whose constants are known."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """A strongly convex function f with a Lipschitz gradient.

    Attributes:
      name: for tables and figures.
      gap: `x -> f(x) - f*`, for float[dimension].
      optimum: float[dimension], where f is f*.
      convexity: m, a lower bound of the curvature.
      smoothness: M, an upper bound of the curvature.
    """

    name: str
    gap: Callable[[jax.Array], jax.Array]
    optimum: jax.Array
    convexity: float
    smoothness: float

    @property
    def condition(self) -> float:
        """κ = M / m."""
        return self.smoothness / self.convexity


def quadratic(rng: np.random.Generator, dimension: int, condition: float) -> Problem:
    """A quadratic with curvatures from 1 to `condition` along random orthogonal directions."""
    basis = np.linalg.qr(rng.normal(size=(dimension, dimension))).Q
    hessian = jnp.asarray(basis * np.geomspace(1, condition, dimension) @ basis.T)
    optimum = jnp.asarray(rng.normal(size=dimension))

    def gap(x: jax.Array) -> jax.Array:
        return 0.5 * (x - optimum) @ hessian @ (x - optimum)

    return Problem(f"quadratic, κ = {condition:g}, d = {dimension}", gap, optimum, 1.0, float(condition))


def logistic(rng: np.random.Generator, dimension: int, convexity: float) -> Problem:
    """Logistic regression on random samples, four a dimension, with m / 2 ‖x‖² added."""
    samples = 4 * dimension
    features = rng.normal(size=(samples, dimension))
    margin = features @ rng.normal(size=dimension) + rng.normal(size=samples)
    signed = features * np.sign(margin)[:, None]
    optimum = np.zeros(dimension)
    for _ in range(30):  # Newton's method
        wrong = 1 / (1 + np.exp(signed @ optimum))
        hessian = (signed.T * wrong * (1 - wrong)) @ signed / samples + convexity * np.eye(dimension)
        optimum += np.linalg.solve(hessian, signed.T @ wrong / samples - convexity * optimum)

    def value(x: jax.Array) -> jax.Array:
        return jax.nn.softplus(-signed @ x).mean() + 0.5 * convexity * x @ x

    least = value(jnp.asarray(optimum))
    # The second derivative of softplus is at most 1/4.
    smoothness = convexity + float(np.linalg.norm(features, 2) ** 2) / (4 * samples)
    name = f"logistic regression, κ = {smoothness / convexity:.1f}, d = {dimension}"
    return Problem(name, lambda x: value(x) - least, jnp.asarray(optimum), convexity, smoothness)


def scattered(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random points, many of them close to a few axes: normal, times a log-normal factor for each coordinate."""
    return rng.normal(size=shape) * np.exp(2 * rng.normal(size=shape))
