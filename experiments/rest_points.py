"""Where workers rest: points at which a step of a method, with exact gradients, moves none of them.

They are sought from many starts in two ways: descent by the method until it rests; and Newton's method on its step,
for saddles and maxima as well. All functions are scaled to a curvature of about 1, the unit of the strength ρ.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from descent import descend
from jax import lax
from symmetric_landscape import sinc

from lsgd_jax import DistributedOptimizer, easgd, lsgd

WORKERS = 4
PULL = 0.006
STRENGTHS = (0.01, 0.02, 0.04, 0.08, 0.16)  # ρ
SEARCHES = {"lsgd": ("descent", "Newton"), "easgd": ("descent", "Newton"), "through": ("Newton",)}
NEWTON_STEPS = 30
REST = 1e-9  # a step that moves no worker further, over the learning rate, is none
MOVING = 1e-6  # a longer gradient of f is not zero
APART = 1e-9  # a leader whose f is lower than all others' by more is unique


class Landscape(NamedTuple):
    """A function of two variables, and half the side of the square in which workers start."""

    function: Callable[[jax.Array], jax.Array]
    side: float


LANDSCAPES = {
    "tilted double well": Landscape(lambda x: ((x[0] ** 2 - 1) ** 2 + 0.3 * x[0] + 2 * x[1] ** 2) / 20, 2.0),
    "Styblinski-Tang": Landscape(lambda x: (x**4 - 16 * x**2 + 5 * x).sum() / 300, 4.0),
    "Himmelblau": Landscape(lambda x: ((x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2) / 300, 5.0),
    "sinc": Landscape(lambda x: sinc(x)[0] / 4, 2.0),
}


class Row(NamedTuple):
    """What one search found, a line of the CSV file.

    Attributes:
      landscape: the name of f.
      objective: lsgd, easgd, or through (LSGD, differentiated through the leader).
      search: descent or Newton.
      strength: ρ.
      starts: how many there were.
      found: those that ended where the objective is stationary.
      unique: those of them with a unique leader (best worker).
      leader_moving: those of them where f is not stationary at the leader.
      center_moving: those where f is not stationary at the mean of the workers.
      others_moving: those where f is not stationary at some worker.
      leader_gradient: the largest norm of ∇f at the leader.
      leader_off: at the starts, the largest distance of the leader's step, over the learning rate, from -∇f.
    """

    landscape: str
    objective: str
    search: str
    strength: float
    starts: int
    found: int
    unique: int
    leader_moving: int
    center_moving: int
    others_moving: int
    leader_gradient: float
    leader_off: float


class Point(NamedTuple):
    """Where one group ended, or each of many.

    Attributes:
      objective: the norm of the objective's gradient.
      leader: of that of f, at the best worker.
      center: at the mean of the workers.
      others: the largest at any worker.
      lead: by how much the best worker's f is below all others'.
      place: where it is, float[2].
      off: at the start, the distance of the best worker's step, over the learning rate, from -∇f.
    """

    objective: Any
    leader: Any
    center: Any
    others: Any
    lead: Any
    place: Any
    off: Any


def method_of(objective: str, strength: jax.Array) -> DistributedOptimizer:
    """LGD or EAGD, at rest where the objective is stationary. The pull is a number, so the learning rate sets ρ."""
    sgd = optax.sgd(rate_of(strength))
    if objective == "lsgd":
        return lsgd(sgd, global_pull=PULL, global_period=1, window=1)
    return easgd(sgd, beta=PULL * WORKERS, period=1)


def rate_of(strength: jax.Array) -> jax.Array:
    """Where x = (1 - pull) (x - rate ∇f(x)) + pull x_leader, ρ is pull / ((1 - pull) rate)."""
    return PULL / (1 - PULL) / strength


def function_of(index: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A function by its number, which may be traced: one program is compiled for all."""
    return lambda x: lax.switch(index, [landscape.function for landscape in LANDSCAPES.values()], x)


def move(objective: str, index: jax.Array, strength: jax.Array, x: jax.Array, steps: int = 1) -> jax.Array:
    """Where workers [WORKERS, 2] are after steps of the library's method; for `through`, of gradient descent."""
    f = function_of(index)

    def value_and_grad(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        value, grad = jax.value_and_grad(f)(x)
        return lax.stop_gradient(value), grad  # for Newton's method: an election has no derivative

    if objective == "through":
        return x - rate_of(strength) * jax.grad(lambda x: through_the_leader(f, strength, x))(x)
    return descend(method_of(objective, strength), value_and_grad, x, steps, jax.random.key(0)).params


def through_the_leader(f: Callable[[jax.Array], jax.Array], strength: jax.Array, x: jax.Array) -> jax.Array:
    """The LSGD objective as a function of all workers [WORKERS, 2], one of whom is the leader."""
    values = jax.vmap(f)(x)
    return values.sum() + strength / 2 * ((x - x[jnp.argmin(values)]) ** 2).sum()


def newton(step: Callable[[jax.Array], jax.Array], start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(places, what a step moves them by), float[NEWTON_STEPS, WORKERS, 2] both, on the way to where that is zero."""

    def moved(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        by = step(flat.reshape(start.shape)).ravel() - flat
        return by, by

    def iterate(flat: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        jacobian, by = jax.jacfwd(moved, has_aux=True)(flat)
        way = jnp.linalg.lstsq(jacobian, by)[0]  # least squares, since a ring of minima has no inverse
        return flat - way / jnp.maximum(1, jnp.linalg.norm(way)), (flat, by)

    _, seen = lax.scan(iterate, start.ravel(), None, length=NEWTON_STEPS)
    places, moves = (numbers.reshape(-1, *start.shape) for numbers in seen)
    return places, moves


def find(objective: str, way: str, iterations: int, index: jax.Array, strength: jax.Array, start: jax.Array) -> Point:
    """Searches from the start of one group, and measures where it ends."""

    def step(x: jax.Array) -> jax.Array:
        return move(objective, index, strength, x)

    if way == "descent":
        places = jnp.stack([start, move(objective, index, strength, start, iterations)])
        moves = jax.vmap(step)(places) - places
    else:
        places, moves = newton(step, start)
    moves, x = moves / rate_of(strength), places[-1]
    probes = jnp.concatenate([start, x, x.mean(axis=0)[None]])
    values, gradients = jax.vmap(jax.value_and_grad(function_of(index)))(probes)
    norms = jnp.linalg.norm(gradients, axis=1)
    leader_at_start, leader, second = jnp.argmin(values[:WORKERS]), *jnp.argsort(values[WORKERS:-1])[:2] + WORKERS
    return Point(
        objective=jnp.linalg.norm(moves[-1]),
        leader=norms[leader],
        center=norms[-1],
        others=norms[WORKERS:-1].max(),
        lead=values[second] - values[leader],
        place=probes[leader],
        off=jnp.linalg.norm(moves[0] + gradients[:WORKERS], axis=1)[leader_at_start],
    )


def search(starts: int, iterations: int, seed: int) -> Iterator[tuple[Row, np.ndarray]]:
    """Stationary points of each objective, by function, search and strength; and the places of the leaders there."""
    rng = np.random.default_rng(seed)
    sides = np.array([landscape.side for landscape in LANDSCAPES.values()])[:, None, None, None]
    groups = jnp.asarray(rng.uniform(-1, 1, (len(LANDSCAPES), starts, WORKERS, 2)) * sides)
    points: dict[tuple[str, str], Point] = {}
    for objective, ways in SEARCHES.items():
        for way in ways:
            one = functools.partial(find, objective, way, iterations)
            over_starts = jax.vmap(one, (None, None, 0))
            over_all = jax.jit(jax.vmap(jax.vmap(over_starts, (None, 0, None)), (0, None, 0)))
            found = over_all(jnp.arange(len(LANDSCAPES)), jnp.array(STRENGTHS), groups)
            points[objective, way] = jax.device_get(found)
    for number, landscape in enumerate(LANDSCAPES):
        for (objective, way), of_all in points.items():
            for at, strength in enumerate(STRENGTHS):
                mine = Point(*(np.asarray(numbers[number, at]) for numbers in of_all))
                rest = Point(*(numbers[mine.objective < REST] for numbers in mine))
                row = Row(
                    landscape, objective, way, strength,
                    starts=starts,
                    found=len(rest.objective),
                    unique=int((rest.lead > APART).sum()),
                    leader_moving=int((rest.leader > MOVING).sum()),
                    center_moving=int((rest.center > MOVING).sum()),
                    others_moving=int((rest.others > MOVING).sum()),
                    leader_gradient=float(rest.leader.max(initial=0)),
                    leader_off=float(mine.off.max()),
                )  # fmt: skip
                yield row, np.asarray(rest.place)
