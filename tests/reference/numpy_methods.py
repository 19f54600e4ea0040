"""The distributed optimizers in NumPy, one worker after another: each class reads like its pseudo-code.

Nothing here comes from `lsgd_jax`, so that the two cannot share a mistake. The
parameters of a worker are one vector, and those of all workers a matrix
[workers, parameters]. Workers are numbered j*l + i: worker i of group j.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy_lsgd import Base, Faults, LossAndGrad, Reseed, Tree


class Run(NamedTuple):
    """What happened.

    Attributes:
      trajectory: what the training loop holds after each step, [steps, workers, ...].
      centers: after each step, [steps, ...].
      restarts: the lost workers that started again.
    """

    trajectory: Tree
    centers: Tree
    restarts: list[Reseed]


def simulate(team: "Independent", loss_and_grad: LossAndGrad, steps: int, *, faults: Faults | None = None) -> Run:
    """Runs a method.

    Args:
      team: the workers before the first step.
      loss_and_grad: a worker's minibatch loss and gradient.
      steps: how many each takes.
      faults: leaves to break: the gradient of that step is NaN there, and so are then the parameters.
    """
    broken = faults.leaves if faults else {}
    history, centers = [], []
    for step in range(1, steps + 1):
        for rank in range(len(team.x)):
            _, grad = loss_and_grad(team.as_tree(team.x[rank]), step, *divmod(rank, team.workers))
            grad = grad | {name: np.full_like(grad[name], np.nan) for name in broken.get((step, rank), ())}
            team.local_step(rank, as_vector(grad))
        team.communicate(step)
        history.append(team.x.copy())
        centers.append(team.center())
    return Run(team.as_tree(np.stack(history)), team.as_tree(np.stack(centers)), team.restarts)


@dataclass
class Independent:
    """Workers that never communicate; and what every method has.

    Attributes:
      starts: the parameters at which each worker starts.
      base: the local optimizer; its updates are added.
      groups: n.
      reseed: whether a lost worker starts again, as in the trainer. Else it stays lost.
      x: [workers, parameters], the parameters that the training loop holds.
    """

    starts: Sequence[Tree]
    base: Base
    groups: int = 1
    reseed: bool = False

    def __post_init__(self) -> None:
        self.x = np.stack([as_vector(start) for start in self.starts])
        self.base_states = [self.base.init(self.as_tree(x)) for x in self.x]
        self.restarts: list[Reseed] = []

    def local_step(self, rank: int, grad: np.ndarray) -> None:
        self.x[rank] += self.base_update(rank, grad)

    def communicate(self, step: int) -> None:
        """What happens after this local step, counted from 1."""

    def center(self) -> np.ndarray:
        return self.mean()

    def mean(self) -> np.ndarray:
        finite = self.finite
        return self.x[finite].mean(axis=0) if finite.any() else np.full_like(self.x[0], np.nan)

    @property
    def finite(self) -> np.ndarray:
        """bool [workers]: those that are not lost."""
        return np.isfinite(self.x).all(axis=1)

    @property
    def workers(self) -> int:
        """l, in each group."""
        return len(self.x) // self.groups

    def base_update(self, rank: int, grad: np.ndarray) -> np.ndarray:
        """What the base optimizer adds for this gradient."""
        before = self.base_states[rank], self.as_tree(self.x[rank])
        update, self.base_states[rank] = self.base.update(self.as_tree(grad), *before)
        return as_vector(update)

    def restart(self, lost: Iterable[int], at: np.ndarray, step: int) -> None:
        """Lost workers start again from there, with nothing of their past."""
        for rank in lost if self.reseed else ():
            self.x[rank] = at
            self.base_states[rank] = self.base.init(self.as_tree(at))
            self.forget(rank)
            self.restarts.append(Reseed(step, int(rank)))

    def forget(self, rank: int) -> None:
        """What else a worker loses then."""

    def as_tree(self, vectors: np.ndarray) -> Tree:
        """Leaves with the same leading dimensions as the vectors, [..., parameters]."""
        like = sorted(self.starts[0].items())
        parts = np.split(vectors, np.cumsum([leaf.size for _, leaf in like])[:-1], axis=-1)
        return {name: x.reshape(*vectors.shape[:-1], *leaf.shape) for (name, leaf), x in zip(like, parts, strict=True)}


@dataclass(kw_only=True)
class LocalSgd(Independent):
    local_period: int | None = None
    global_period: int

    def communicate(self, step: int) -> None:
        everybody = np.arange(len(self.x))
        if self.groups > 1 and self.local_period is not None and step % self.local_period == 0:
            for group in everybody.reshape(self.groups, self.workers):
                self.average(group, step)
        if step % self.global_period == 0:
            self.average(everybody, step)

    def average(self, members: np.ndarray, step: int) -> None:
        able, lost = members[self.finite[members]], members[~self.finite[members]]
        if able.size:
            mean = self.x[able].mean(axis=0)
            self.x[able] = mean
            self.restart(lost, mean, step)


@dataclass(kw_only=True)
class Easgd(Independent):
    beta: float = 0.9
    period: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.c = self.x.mean(axis=0)

    def communicate(self, step: int) -> None:
        if step % self.period == 0:
            finite = self.finite
            self.move_elastically(finite)
            self.restart(np.flatnonzero(~finite), self.c, step)

    def move_elastically(self, finite: np.ndarray) -> None:
        alpha = self.beta / len(self.x)
        x, c = self.x[finite], self.c
        self.x[finite] = x - alpha * (x - c)
        if finite.any():
            self.c = (1 - self.beta) * c + self.beta * x.mean(axis=0)

    def center(self) -> np.ndarray:
        return self.c


@dataclass(kw_only=True)
class Eamsgd(Easgd):
    """`position` is the paper's x; the training loop holds x + momentum v, where gradients are taken."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.position, self.velocity = self.x.copy(), np.zeros_like(self.x)

    def local_step(self, rank: int, grad: np.ndarray) -> None:
        self.velocity[rank] = self.momentum * self.velocity[rank] + self.base_update(rank, grad)
        self.position[rank] += self.velocity[rank]
        self.look_ahead()

    def move_elastically(self, finite: np.ndarray) -> None:
        self.x = self.position
        super().move_elastically(finite)
        self.position = self.x
        self.look_ahead()

    def look_ahead(self) -> None:
        self.x = self.position + self.momentum * self.velocity

    def forget(self, rank: int) -> None:
        self.position[rank], self.velocity[rank] = self.x[rank], 0


@dataclass(kw_only=True)
class Downpour(Independent):
    period: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.c = self.x.mean(axis=0)
        self.added = np.zeros_like(self.x)

    def local_step(self, rank: int, grad: np.ndarray) -> None:
        update = self.base_update(rank, grad)
        self.x[rank] += update
        self.added[rank] += update

    def communicate(self, step: int) -> None:
        if step % self.period == 0:
            finite = self.finite
            self.c = self.c + self.added[finite].sum(axis=0)
            self.x[finite] = self.c
            self.added[:] = 0
            self.restart(np.flatnonzero(~finite), self.c, step)

    def center(self) -> np.ndarray:
        return self.c


@dataclass(kw_only=True)
class Diloco(Independent):
    outer: Base
    period: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.theta = self.x.mean(axis=0)
        self.outer_state = self.outer.init(self.as_tree(self.theta))

    def communicate(self, step: int) -> None:
        if step % self.period == 0:
            finite = self.finite
            if finite.any():
                delta = (self.theta - self.x[finite]).mean(axis=0)
                before = self.outer_state, self.as_tree(self.theta)
                update, self.outer_state = self.outer.update(self.as_tree(delta), *before)
                self.theta = self.theta + as_vector(update)
                self.x[finite] = self.theta
            self.restart(np.flatnonzero(~finite), self.theta, step)

    def center(self) -> np.ndarray:
        return self.theta


@dataclass(kw_only=True)
class Grawa(Independent):
    pull: float = 0.1
    period: int = 64
    window: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norms: list[list[float]] = [[] for _ in self.x]

    def local_step(self, rank: int, grad: np.ndarray) -> None:
        self.norms[rank].append(float(np.linalg.norm(grad)))
        super().local_step(rank, grad)

    def communicate(self, step: int) -> None:
        finite = self.finite
        if step % self.period == 0 and finite.any():
            m = self.center()
            self.x[finite] = (1 - self.pull) * self.x[finite] + self.pull * m
            self.restart(np.flatnonzero(~finite), m, step)

    def center(self) -> np.ndarray:
        """The weighted mean; a worker that has just started again has no norms, and no weight."""
        able = [rank for rank in np.flatnonzero(self.finite) if self.norms[rank]]
        if not able:
            return self.mean()
        weights = [1 / np.mean(self.norms[rank][-self.window :]) for rank in able]
        return np.average(self.x[able], axis=0, weights=weights)

    def forget(self, rank: int) -> None:
        self.norms[rank] = []


@dataclass(kw_only=True)
class Dppf(Independent):
    pull: float = 0.1
    push: float = 0.1
    period: int = 64

    def communicate(self, step: int) -> None:
        finite = self.finite
        if step % self.period == 0 and finite.any():
            m = self.mean()
            for rank in np.flatnonzero(finite):
                away = self.x[rank] - m
                distance = np.linalg.norm(away)
                outward = away / distance if distance > 0 else 0
                self.x[rank] += self.push * outward - self.pull * away
            self.restart(np.flatnonzero(~finite), m, step)


def as_vector(tree: Tree) -> np.ndarray:
    """All numbers of a tree, in double precision, by the names of its leaves."""
    return np.concatenate([np.asarray(tree[name], np.float64).reshape(-1) for name in sorted(tree)])
