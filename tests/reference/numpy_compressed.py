"""Compressed messages in NumPy, and methods whose means are taken of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy_methods import Downpour, as_vector
from numpy_overlapped import PERIODS, Late, LateDiloco, LateDppf, LateEamsgd, LateEasgd, LateGrawa, LateLocalSgd

BLOCK = 256


def coded(vector: np.ndarray, bits: int | None, kept: int | None) -> np.ndarray:
    """What is left of a vector: NaN where nothing is sent."""
    blocks = np.pad(vector, (0, -vector.size % BLOCK)).reshape(-1, BLOCK)
    return np.concatenate([_coded_block(block, bits, kept) for block in blocks])[: vector.size]


def _coded_block(block: np.ndarray, bits: int | None, kept: int | None) -> np.ndarray:
    places = np.argsort(-np.abs(block), kind="stable")[:kept]
    values = block[places]
    if bits is not None:
        most = 2 ** (bits - 1) - 1
        scale = np.float64(ml_dtypes.bfloat16(np.float32(np.abs(values).max() / most)))
        values = np.clip(np.round(values / (scale or 1)), -most, most) * scale
    found = np.full(BLOCK, np.nan)
    found[places] = values
    return found


@dataclass(kw_only=True)
class Few(Late):
    """Each kind of meeting has its memory: what its members have heard last, and what each has not sent yet.

    A delay of 0 is none.
    """

    codec: Callable[[np.ndarray], np.ndarray]
    changes = False
    delay: int = 0
    heard_last: dict[Any, np.ndarray] = field(default_factory=dict)
    unsent: dict[Any, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        everybody = np.arange(len(self.x))
        meetings = [everybody]
        if getattr(self, "local_period", None) is not None:
            meetings += list(everybody.reshape(self.groups, self.workers))
        for members in meetings:
            rows = self.sends(members)
            self.unsent[tuple(members)] = np.zeros_like(rows)
            self.heard_last[tuple(members)] = np.zeros_like(rows[0]) if self.changes else rows.mean(axis=0)

    def sends(self, members: np.ndarray) -> np.ndarray:
        """[members, parameters]: what the mean is taken of."""
        return self.positions[members]

    def take_part(self, members: np.ndarray) -> np.ndarray:
        """bool [members]: whose rows enter the mean."""
        return self.finite[members]

    def heard(self, mean: np.ndarray) -> np.ndarray:
        """The news, from the mean that was heard."""
        return mean

    def communicate(self, step: int) -> None:
        if self.delay:
            super().communicate(step)
            return
        everybody = np.arange(len(self.x))
        for kind in PERIODS:
            period = getattr(self, kind, None)
            if period is not None and step % period == 0:
                for members in everybody.reshape(self.groups, -1) if kind == "local_period" else everybody[None]:
                    self.take_effect(members, self.hear(members), step)

    def hear(self, members: np.ndarray) -> Any:
        """(what takes effect, what is remembered then)."""
        key, able = tuple(members), self.take_part(members)
        due = self.unsent[key] + self.sends(members) - self.heard_last[key]
        unsent, mean = self.unsent[key].copy(), np.zeros_like(due[0])
        part = -(-due.shape[1] // (BLOCK * len(members))) * BLOCK  # numbers of a part
        for k in range(len(members)):
            columns = slice(k * part, (k + 1) * part)
            total = np.zeros_like(mean[columns])
            for i in np.flatnonzero(able):
                sent = np.nan_to_num(self.codec(due[i, columns])) if i != k and total.size else due[i, columns]
                unsent[i, columns] = due[i, columns] - sent
                total = total + sent
            if able.any() and total.size:
                mean[columns] = np.nan_to_num(self.codec(total / able.sum()))
                if able[k]:
                    unsent[k, columns] = total - able.sum() * mean[columns]
        news = None if not able.any() else self.heard(self.heard_last[key] + mean)
        return news, key, (None if self.changes or news is None else self.heard_last[key] + mean), unsent

    def take_effect(self, members: np.ndarray, news: Any, step: int) -> None:
        what, key, heard, unsent = news
        self.unsent[key] = unsent
        if heard is not None:
            self.heard_last[key] = heard
        super().take_effect(members, what, step)

    def forget(self, rank: int) -> None:
        super().forget(rank)
        for key, unsent in self.unsent.items():
            if rank in key:
                unsent[key.index(rank)] = 0


@dataclass(kw_only=True)
class FewLocalSgd(Few, LateLocalSgd):
    pass


@dataclass(kw_only=True)
class FewEasgd(Few, LateEasgd):
    pass


@dataclass(kw_only=True)
class FewEamsgd(Few, LateEamsgd):
    pass


@dataclass(kw_only=True)
class FewDppf(Few, LateDppf):
    pass


@dataclass(kw_only=True)
class FewDiloco(Few, LateDiloco):
    changes = True

    def sends(self, members: np.ndarray) -> np.ndarray:
        return self.theta - self.x[members]


@dataclass(kw_only=True)
class FewGrawa(Few, LateGrawa):
    def take_part(self, members: np.ndarray) -> np.ndarray:
        return np.ones(len(members), bool)  # those that are lost add nothing

    def sends(self, members: np.ndarray) -> np.ndarray:
        able = [rank for rank in np.flatnonzero(self.finite) if self.norms[rank]] or list(np.flatnonzero(self.finite))
        weights = np.array([1 / np.mean(n[-self.window :]) if n else 1.0 for n in self.norms])
        weights[[rank for rank in members if rank not in able]] = 0
        rows = np.where(weights[:, None] > 0, self.x, 0)
        return (weights / weights.sum())[members, None] * rows[members]

    def heard(self, mean: np.ndarray) -> np.ndarray:
        return mean * len(self.x)


@dataclass(kw_only=True)
class LateDownpour(Late, Downpour):
    """Without a delay alone."""

    delay: int = 0

    def take_effect(self, members: np.ndarray, news: np.ndarray | None, step: int) -> None:
        able, lost = self.able_and_lost(members)
        assert news is not None
        self.c, self.added[:] = news, 0
        self.x[able] = self.c
        self.restart(lost, self.c, step)


@dataclass(kw_only=True)
class FewDownpour(Few, LateDownpour):
    fetched_once: bool = False  # before, each has what it started at

    def take_part(self, members: np.ndarray) -> np.ndarray:
        return np.ones(len(members), bool)  # those that are lost add nothing

    def sends(self, members: np.ndarray) -> np.ndarray:
        added = np.where(self.finite[members, None], self.added[members], 0)
        fetched = self.c if self.fetched_once else np.stack([as_vector(start) for start in self.starts])
        return fetched + len(self.x) * added

    def take_effect(self, members: np.ndarray, news: Any, step: int) -> None:
        super().take_effect(members, news, step)
        self.fetched_once = True


FEW = {
    "local_sgd": FewLocalSgd,
    "easgd": FewEasgd,
    "eamsgd": FewEamsgd,
    "diloco": FewDiloco,
    "downpour": FewDownpour,
    "grawa": FewGrawa,
    "dppf": FewDppf,
}
