"""LSGD in NumPy, one worker after another: design.md section 3 read as pseudo-code.

Nothing here comes from `lsgd_jax`, so that the two cannot share a mistake. Trees
are dicts of arrays. Workers are numbered j*l + i: worker i of group j.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Tree = dict[str, np.ndarray]
Codec = Callable[[np.ndarray], np.ndarray]
LossAndGrad = Callable[[Tree, int, int, int], tuple[float, Tree]]
"""`(x, step, j, i) -> (loss, gradient)` of worker (j, i) at x; steps count from 1."""


class Base(Protocol):
    """The local optimizer: `Sgd` below, or any optax optimizer, which looks the same."""

    @property
    def init(self) -> Callable[[Any], Any]: ...

    @property
    def update(self) -> Callable[[Any, Any, Any], tuple[Any, Any]]: ...


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent; weight decay joins the gradient before momentum."""

    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def init(self, x: Tree) -> Tree:
        return {name: np.zeros_like(leaf) for name, leaf in x.items()}

    def update(self, grad: Tree, velocity: Tree, x: Tree) -> tuple[Tree, Tree]:
        grad = {name: grad[name] + self.weight_decay * x[name] for name in x}
        velocity = {name: self.momentum * velocity[name] + grad[name] for name in x}
        ahead = {name: grad[name] + self.momentum * velocity[name] for name in x}
        direction = ahead if self.nesterov else velocity
        return {name: -self.learning_rate * direction[name] for name in x}, velocity


@dataclass(frozen=True)
class Settings:
    """The arguments of `lsgd`, and the shape of the workers."""

    groups: int
    workers: int
    local_pull: float = 0.1
    global_pull: float = 0.1
    local_period: int = 16
    global_period: int = 64
    stale_local_pull: float = 0.0
    stale_global_pull: float = 0.0
    window: int = 10
    election: str = "score"
    temperature: float = 0.0


class Election(NamedTuple):
    """A row of `leaders.csv`; the group is None at the global level."""

    step: int
    level: str
    group: int | None
    rank: int
    score: float


class Level(NamedTuple):
    """Who communicates, and how."""

    level: str
    group: int | None
    pull: float
    period: int


class News(NamedTuple):
    """A leader as it was elected."""

    leader: int
    score: float
    exact: Tree
    received: Tree


class Reseed(NamedTuple):
    """A lost worker that started again from the leader."""

    step: int
    rank: int


@dataclass
class Run:
    """What happened: `trajectory[name]` has the shape [steps, workers, ...]."""

    trajectory: Tree
    elections: list[Election]
    reseeds: list[Reseed]
    windows: list[list[float]]
    """The losses that make each worker's score at the end, oldest first."""


@dataclass
class Faults:
    """What breaks: at `(step, rank)`, the loss, or leaves of the parameters after the step."""

    losses: Mapping[tuple[int, int], float] = field(default_factory=dict)
    leaves: Mapping[tuple[int, int], Sequence[str]] = field(default_factory=dict)


@dataclass
class Worker:
    """One worker: its copy of the model, its optimizer state, its memory."""

    x: Tree
    base_state: Any
    losses: list[float]
    last_leader: dict[str, Tree | None]
    elections: int = 0

    @property
    def finite(self) -> bool:
        return all(np.isfinite(leaf).all() for leaf in self.x.values())


def simulate(
    initial: Sequence[Tree],
    loss_and_grad: LossAndGrad,
    settings: Settings,
    base: Base,
    steps: int,
    *,
    faults: Faults | None = None,
    reseed: bool = False,
    wire: Callable[[np.ndarray], np.ndarray] = lambda leaf: leaf,
    rounds: Sequence[Sequence[int]] | None = None,
    fragments: Sequence[Sequence[str]] | None = None,
    delay: int | None = None,
    codec: Codec | None = None,
    score_on: Callable[[Tree], float] | None = None,
) -> Run:
    """Runs LSGD for some steps of every worker.

    Args:
      initial: the parameters at which each worker starts.
      loss_and_grad: a worker's minibatch loss and gradient.
      settings: the arguments of the method.
      base: the local optimizer; its updates are added.
      steps: how many steps every worker takes.
      faults: losses and parameters to break.
      reseed: what the trainer does with a lost worker: the leader's parameters in
        full, a fresh optimizer state, an empty window. Else it stays lost.
      wire: what a leaf looks like to those who receive it.
      rounds: how many steps each worker takes in each round, which ends where a communication
        is due; instead of one step of all after the other. Then the trajectory has a row a round.
      fragments: the names of the leaves of each of n parts: part k of n communicates k/n of a period later, and
        all of them at once if a worker is lost that can start again.
      delay: local steps after which a communication takes effect, with the leader as it was; None for at once.
      codec: what is left of a difference to what all have heard last, which is sent in place of the leader; NaN where
        nothing is. Where it leaves something out the leader is sent if a worker is lost that can start again.
      score_on: the loss of parameters on samples that are the same for all, by which leaders are elected.
    """
    faults = faults or Faults()
    ranks = range(settings.groups * settings.workers)
    team = [
        Worker(as_arrays(x), base.init(as_arrays(x)), [], {"local": None, "global": None})
        for x, _ in zip(initial, ranks, strict=True)
    ]
    elections: list[Election] = []
    reseeds: list[Reseed] = []
    history: list[list[Tree]] = []

    def score(rank: int) -> float:
        recent = team[rank].losses[-settings.window :]
        return sum(recent) / len(recent) if recent else float("nan")

    def by(rank: int, members: Sequence[int]) -> float:
        """What the lowest of leads."""
        if settings.election == "score":
            return score(rank)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), team[rank].elections), list(members).index(rank))
        return float(jax.random.uniform(key))

    def best_of(members: Sequence[int]) -> int | None:
        able = [rank for rank in members if np.isfinite(score(rank)) and team[rank].finite]
        return min(able, key=lambda rank: (by(rank, members), rank)) if able else None

    def softened(members: Sequence[int]) -> Tree:
        """The mean in which a worker weighs the more the lower its score."""
        able = [rank for rank in members if np.isfinite(score(rank)) and team[rank].finite]
        best = min(map(score, able))
        weights = [np.exp((best - score(rank)) / settings.temperature) for rank in able]
        return {
            name: sum(weight * team[rank].x[name] for weight, rank in zip(weights, able, strict=True)) / sum(weights)
            for name in initial[0]
        }

    def elect(at: Level, members: Sequence[int], names: Sequence[str], lost: bool) -> News | None:
        leader = best_of(members)
        if leader is None:
            return None
        if settings.temperature:
            return News(leader, score(leader), softened(members), softened(members))
        exact = as_arrays(team[leader].x)
        if codec is None or (lost and sparse):
            return News(leader, by(leader, members), exact, {name: wire(leaf) for name, leaf in exact.items()})
        known = heard_last(at, members)
        difference = np.concatenate([(exact[name] - known[name]).ravel() for name in sorted(names)])
        sent, received = codec(difference), dict[str, np.ndarray]()
        for name in sorted(names):
            received[name] = known[name] + sent[: exact[name].size].reshape(exact[name].shape)
            sent = sent[exact[name].size :]
        return News(leader, score(leader), received, received)

    known_of: dict[Any, Tree] = {}

    def heard_last(at: Level, members: Sequence[int]) -> Tree:
        """What all of them have heard last; their mean at the start."""
        start = {name: np.mean([np.float64(initial[rank][name]) for rank in members], axis=0) for name in initial[0]}
        return known_of.setdefault((at.level, at.group), start)

    def pull_to(news: News | None, members: Sequence[int], at: Level, step: int, names: Sequence[str]) -> None:
        for rank in members:
            team[rank].elections += 1
        if news is None:
            return
        elections.append(Election(step, at.level, at.group, news.leader, news.score))
        if codec is not None:
            known = heard_last(at, members)
            known |= {name: np.where(np.isnan(news.received[name]), known[name], news.received[name]) for name in names}
        for rank in members:
            worker = team[rank]
            heard = news.exact if rank == news.leader else news.received
            told = as_arrays({name: heard[name] for name in names})
            heard = {name: np.where(np.isnan(told[name]), worker.x[name], told[name]) for name in names}
            if worker.finite and (rank != news.leader or settings.temperature):
                worker.x |= {name: (1 - at.pull) * worker.x[name] + at.pull * heard[name] for name in names}
            elif not worker.finite and reseed:
                worker.x, worker.losses = worker.x | as_arrays(heard), []
                worker.base_state = base.init(worker.x)
                reseeds.append(Reseed(step, rank))
            last = worker.last_leader[at.level] or {}
            worker.last_leader[at.level] = last | told

    waiting: dict[Any, News | None] = {}

    def needs_all() -> bool:
        """Whether a lost worker waits for all parts."""
        return reseed and (fragments is not None or sparse) and not all(worker.finite for worker in team)

    def communicate(at: Level, members: Sequence[int], step: int, k: int, lost: bool) -> None:
        """What part k does after a step, if anything; of what has begun before, what takes effect now."""
        after = step - k * at.period // len(parts) - (delay or 0)
        if after % at.period == 0:
            names = everything if lost else parts[k]
            now = delay is None or lost
            news = elect(at, members, names, lost) if now else waiting.pop((at.level, at.group, k), None)
            pull_to(news, members, at, step, names)

    def begin(at: Level, members: Sequence[int], step: int, k: int, lost: bool) -> None:
        """What begins after a step, to take effect later."""
        del lost
        if delay is not None and (step - k * at.period // len(parts)) % at.period == 0:
            waiting[at.level, at.group, k] = elect(at, members, parts[k], False)

    def local_step(rank: int, step: int) -> None:
        worker, (j, i) = team[rank], divmod(rank, settings.workers)
        loss, grad = loss_and_grad(worker.x, step, j, i)
        worker.losses.append(faults.losses.get((step, rank), float(loss)))
        update, worker.base_state = base.update(grad, worker.base_state, worker.x)
        worker.x = {name: x + np.asarray(update[name]) for name, x in worker.x.items()}
        for name in faults.leaves.get((step, rank), ()):
            worker.x[name] = np.full_like(worker.x[name], np.nan)
        worker.x = stale_pulled(worker, settings)

    everything = list(initial[0])
    sparse = codec is not None and bool(np.isnan(codec(np.arange(256.0))).any())
    parts = [everything] if fragments is None else fragments

    period = settings.local_period if settings.groups > 1 else settings.global_period
    counts = [[1] * len(team)] * steps if rounds is None else rounds
    taken = [0] * len(team)
    for number, of_round in enumerate(counts, start=1):
        for rank, count in enumerate(of_round):
            for _ in range(count):
                taken[rank] += 1
                local_step(rank, taken[rank])
        step = number if rounds is None else number * period
        if score_on is not None and step % period == 0:
            for worker in team:
                worker.losses = [score_on(worker.x)]
        for do in (communicate, begin):
            for k in range(len(parts)) if settings.groups > 1 else ():
                lost = needs_all()
                for j in range(settings.groups):
                    members = range(j * settings.workers, (j + 1) * settings.workers)
                    do(Level("local", j, settings.local_pull, settings.local_period), members, step, k, lost)
            for k in range(len(parts)):
                everywhere = Level("global", None, settings.global_pull, settings.global_period)
                do(everywhere, ranks, step, k, needs_all())
        history.append([as_arrays(worker.x) for worker in team])

    trajectory = {name: np.stack([[x[name] for x in row] for row in history]) for name in team[0].x}
    return Run(trajectory, elections, reseeds, [worker.losses[-settings.window :] for worker in team])


def stale_pulled(worker: Worker, settings: Settings) -> Tree:
    """Eq. 2 of the paper: both terms from the same x, with the leaders broadcast last."""
    pulled = dict(worker.x)
    for level, pull in (("local", settings.stale_local_pull), ("global", settings.stale_global_pull)):
        leader = worker.last_leader[level]
        if leader is not None:
            away = {name: np.nan_to_num(worker.x[name] - heard) for name, heard in leader.items()}
            pulled |= {name: pulled[name] - pull * away[name] for name in leader}
    return pulled


def as_arrays(x: Mapping[str, Any]) -> Tree:
    """A copy of a tree, in double precision."""
    return {name: np.array(leaf, dtype=np.float64) for name, leaf in x.items()}
