"""Methods in NumPy whose communications take effect some steps after they have begun."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy_methods import Diloco, Dppf, Eamsgd, Easgd, Grawa, Independent, LocalSgd, as_vector

PERIODS = ("local_period", "global_period", "period")  # in the order in which they take place


@dataclass(kw_only=True)
class Late(Independent):
    """What waits is the news of each period: who has heard it, and what."""

    delay: int
    keep: float = 0.5
    waiting: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def positions(self) -> np.ndarray:
        """Of workers, among which they communicate."""
        return self.x

    def communicate(self, step: int) -> None:
        everybody = np.arange(len(self.x))
        periods = {kind: period for kind in PERIODS if (period := getattr(self, kind, None)) is not None}
        for kind, period in periods.items():
            if (step - self.delay) % period == 0:
                for members, news in self.waiting.pop(kind, []):
                    self.take_effect(members, news, step)
        for kind, period in periods.items():
            if step % period == 0:
                meeting = everybody.reshape(self.groups, self.workers) if kind == "local_period" else everybody[None]
                self.waiting[kind] = [(members, self.hear(members)) for members in meeting]

    def hear(self, members: np.ndarray) -> np.ndarray | None:
        able, _ = self.able_and_lost(members)
        return self.positions[able].mean(axis=0) if able.size else None

    def take_effect(self, members: np.ndarray, news: np.ndarray | None, step: int) -> None:
        raise NotImplementedError

    def able_and_lost(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return members[self.finite[members]], members[~self.finite[members]]


@dataclass(kw_only=True)
class LateLocalSgd(Late, LocalSgd):
    def take_effect(self, members: np.ndarray, news: np.ndarray | None, step: int) -> None:
        able, lost = self.able_and_lost(members)
        if news is not None:
            self.x[able] = self.keep * self.x[able] + (1 - self.keep) * news
            self.restart(lost, news, step)


@dataclass(kw_only=True)
class LateEasgd(Late, Easgd):
    def take_effect(self, members: np.ndarray, news: np.ndarray | None, step: int) -> None:
        able, lost = self.able_and_lost(members)
        self.positions[able] -= self.beta / len(self.x) * (self.positions[able] - self.c)
        if news is not None:
            self.c = (1 - self.beta) * self.c + self.beta * news
        self.restart(lost, self.c, step)


@dataclass(kw_only=True)
class LateEamsgd(LateEasgd, Eamsgd):
    @property
    def positions(self) -> np.ndarray:
        return self.position

    def take_effect(self, members: np.ndarray, news: np.ndarray | None, step: int) -> None:
        super().take_effect(members, news, step)
        self.look_ahead()


@dataclass(kw_only=True)
class LateDiloco(Late, Diloco):
    def hear(self, members: np.ndarray) -> np.ndarray | None:
        mean = super().hear(members)
        return None if mean is None else self.theta - mean

    def take_effect(self, members: np.ndarray, news: np.ndarray | None, step: int) -> None:
        able, lost = self.able_and_lost(members)
        if news is not None:
            before = self.outer_state, self.as_tree(self.theta)
            update, self.outer_state = self.outer.update(self.as_tree(news), *before)
            self.theta = self.theta + as_vector(update)
        self.x[able] = self.keep * self.x[able] + (1 - self.keep) * self.theta
        self.restart(lost, self.theta, step)


@dataclass(kw_only=True)
class LateGrawa(Late, Grawa):
    def hear(self, members: np.ndarray) -> np.ndarray | None:
        return self.center() if self.finite[members].any() else None

    def take_effect(self, members: np.ndarray, news: np.ndarray | None, step: int) -> None:
        able, lost = self.able_and_lost(members)
        if news is not None:
            self.x[able] = (1 - self.pull) * self.x[able] + self.pull * news
            self.restart(lost, news, step)


@dataclass(kw_only=True)
class LateDppf(Late, Dppf):
    def take_effect(self, members: np.ndarray, news: np.ndarray | None, step: int) -> None:
        able, lost = self.able_and_lost(members)
        if news is not None:
            away = self.x[able] - news
            length = np.linalg.norm(away, axis=1, keepdims=True)
            self.x[able] += self.push * away / length - self.pull * away
            self.restart(lost, news, step)


LATE = {
    "local_sgd": LateLocalSgd,
    "easgd": LateEasgd,
    "eamsgd": LateEamsgd,
    "diloco": LateDiloco,
    "grawa": LateGrawa,
    "dppf": LateDppf,
}
