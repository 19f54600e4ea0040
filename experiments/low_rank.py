"""Low-rank problems: f(X) = 1/4 |M - X X'|^2 over X [dimension, rank], with M = U U', and what methods make of them.

Many draws are descended side by side. Gradients, pulls and means stay in the span of U and the starts, so coordinates
of that span, (workers + 1) rank at most, do for the whole space.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from descent import descend_with_noise

from lsgd_jax import DistributedOptimizer

WORKERS = 8
CONVERGED = 1e-6
STUCK = 1.0


class Problems(NamedTuple):
    """Draws of M and of the starts, in coordinates in which U is R over zeros.

    Attributes:
      triangles: float[draws, rank, rank], R.
      starts: float[draws, WORKERS, coordinates, rank].
    """

    triangles: np.ndarray
    starts: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """int[draws], of rank 1: how many workers start nearer to U than to -U, or to -U than to U if they are more."""
        near = (self.starts[:, :, 0, 0] * self.triangles[:, :, 0] > 0).sum(axis=1)
        return np.maximum(near, WORKERS - near)


class Line(NamedTuple):
    """What a method made of some draws.

    Attributes:
      method: its key in the palette.
      best: float[draws, iterations], the best worker's values.
      center: float[draws], the center's last value.
    """

    method: str
    best: np.ndarray
    center: np.ndarray

    @property
    def converged(self) -> np.ndarray:
        """bool[draws]: whether a value is below `CONVERGED`."""
        return np.asarray((self.best < CONVERGED).any(axis=1))

    @property
    def converged_at(self) -> np.ndarray:
        """int[draws], the first iteration with such a value; the number of iterations where there is none."""
        return np.where(self.converged, (self.best < CONVERGED).argmax(axis=1), self.best.shape[1])

    @property
    def stuck(self) -> np.ndarray:
        """bool[draws]: whether no value is below `STUCK`."""
        return np.asarray((self.best > STUCK).all(axis=1))


def draw_problems(seed: int, draws: int, dimension: int, rank: int) -> Problems:
    """U and the starts of all workers from N(0, 1), by as many seeds from the given one on."""
    drawn = [_draw(number, dimension, rank) for number in range(seed, seed + draws)]
    return Problems(*map(np.stack, zip(*drawn, strict=True)))


def _draw(seed: int, dimension: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """To turn all of space changes neither f nor the distribution of the starts, so they are drawn where U is R."""
    rng = np.random.default_rng((seed, rank))
    triangle: Any = np.linalg.qr(rng.normal(size=(dimension, rank)), mode="r")
    starts = rng.normal(size=(WORKERS, dimension, rank))
    beside: Any = np.linalg.qr(np.concatenate(starts[:, rank:], axis=1), mode="r")  # what is not in the span of U
    return triangle, np.concatenate([starts[:, :rank], np.stack(np.split(beside, WORKERS, axis=1))], axis=1)


def on_sides(problems: Problems, count: int) -> Problems:
    """The draws of rank 1 with so many workers nearer to U and the rest nearer to -U: X is as likely drawn as -X."""
    toward = np.sign(problems.starts[:, :, :1, :1] * problems.triangles[:, None])
    return problems._replace(
        starts=problems.starts * toward * np.where(np.arange(WORKERS) < count, 1, -1)[:, None, None]
    )


def mirrored(problems: Problems) -> Problems:
    """The draws with half of the workers at the mirror images of the other half."""
    half = problems.starts[:, : WORKERS // 2]
    return problems._replace(starts=np.concatenate([half, -half], axis=1))


def factorization(triangle: jax.Array) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """f and its gradient (X X' - U U') X, from matrices [rank, rank] alone.

    With A the first rows of X, P the others and E = A A' - R R', the blocks of X X' - U U' are E, A P', P A' and
    P P'. None is the small difference of large norms, so values are right far below 1e-7.
    """
    rank, target = len(triangle), triangle @ triangle.T

    def value_and_grad(x: jax.Array, noise: Any = None) -> tuple[jax.Array, jax.Array]:
        del noise
        a, p = x[:rank], x[rank:]
        e, a_gram, p_gram = a @ a.T - target, a.T @ a, p.T @ p
        value = ((e**2).sum() + 2 * (a_gram * p_gram).sum() + (p_gram**2).sum()) / 4
        return value, jnp.concatenate([e @ a + a @ p_gram, p @ (a_gram + p_gram)])

    return value_and_grad


def run(name: str, method: DistributedOptimizer, problems: Problems, steps: int) -> Line:
    """Descends all draws by a method."""

    def from_one(triangle: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        value_and_grad = factorization(triangle)
        found = descend_with_noise(method, value_and_grad, starts, np.zeros((WORKERS, steps)))
        return found.values.min(axis=1), value_and_grad(found.center)[0]

    return Line(name, *jax.device_get(jax.vmap(from_one)(*map(jnp.asarray, problems))))
