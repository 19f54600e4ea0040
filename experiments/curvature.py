"""How sharply a function curves at a point: the largest eigenvalue and the trace of its Hessian, from products with it.

Neither needs the Hessian itself, which for 350,000 parameters would take half a terabyte.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

# Of the largest eigenvalue, relative; what it differs by between minibatches is far more.
TOLERANCE = 1e-3


class Curvature(NamedTuple):
    """Of a mean of losses, at some parameters.

    Attributes:
      loss: there.
      eigenvalue: the largest of the Hessian.
      trace: of the Hessian, an estimate.
      trace_error: the standard error of that.
    """

    loss: float
    eigenvalue: float
    trace: float
    trace_error: float


def curvature(loss: Callable[[Any, Any], jax.Array], params: Any, batches: Any, *, probes: int, seed: int) -> Curvature:
    """Measures how sharply the mean loss over some minibatches curves.

    Args:
      loss: `(params, batch) -> float32`, the mean over a minibatch; twice differentiable in reverse.
      params: where; a pytree of floats.
      batches: a pytree of arrays [batches, batch, ...], all minibatches of the same size.
      probes: random vectors for the trace, at least 2.
      seed: of these, and of where Lanczos' iteration begins.
    """
    flat, unravel = ravel_pytree(params)

    @jax.jit  # all of it arguments: the compiler would fold constants for minutes
    def mean_loss(x: jax.Array, batches: Any) -> jax.Array:
        return lax.map(lambda batch: loss(unravel(x), batch), batches).mean()

    @jax.jit
    def product(x: jax.Array, batches: Any, vector: jax.Array) -> jax.Array:
        def of_batch(batch: Any) -> jax.Array:  # a gradient of gradients: convolutions of ours have no forward rule
            gradient = jax.grad(lambda x: loss(unravel(x), batch))
            return jax.grad(lambda x: jnp.vdot(gradient(x), vector))(x)

        return lax.map(of_batch, batches).mean(0)

    def times(vector: np.ndarray) -> np.ndarray:
        return np.asarray(product(flat, batches, jnp.asarray(vector.reshape(-1), flat.dtype)))

    rng = np.random.default_rng(seed)
    trace, trace_error = trace_of(times, flat.size, probes, rng)
    return Curvature(
        loss=float(mean_loss(flat, batches)),
        eigenvalue=largest_eigenvalue(times, flat.size, rng),
        trace=trace,
        trace_error=trace_error,
    )


def largest_eigenvalue(times: Callable[[np.ndarray], np.ndarray], size: int, rng: np.random.Generator) -> float:
    """Of a symmetric matrix, by Lanczos' iteration (ARPACK's, by SciPy).

    Args:
      times: its product with a vector [size].
      size: rows and columns, at least 2.
      rng: where the iteration begins.
    """
    operator = LinearOperator((size, size), matvec=times, dtype=np.float32)
    start = rng.standard_normal(size, np.float32)
    found = eigsh(operator, k=1, which="LA", tol=TOLERANCE, v0=start, return_eigenvectors=False)
    return float(found[0])


def trace_of(
    times: Callable[[np.ndarray], np.ndarray], size: int, probes: int, rng: np.random.Generator
) -> tuple[float, float]:
    """(an unbiased estimate of a symmetric matrix's trace, its standard error).

    The mean of v·Hv over vectors of random signs: Hutchinson, "A stochastic estimator of the trace of the influence
    matrix for Laplacian smoothing splines", Communications in Statistics 18, 1989.

    Args:
      times: its product with a vector [size].
      size: rows and columns.
      probes: vectors, at least 2.
      rng: what they are drawn from.
    """
    found = []
    for _ in range(probes):
        signs = rng.choice(np.array([-1, 1], np.float32), size)
        found.append(float(signs @ times(signs)))
    return float(np.mean(found)), float(np.std(found, ddof=1)) / math.sqrt(probes)
