"""Methods in NumPy whose communications move a part of the parameters at a time."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy_methods import Independent, as_vector

NEVER = 10**9
PERIODS = ("local_period", "global_period", "period")  # in the order in which they take place


class Fragments:
    """A team in front of which each communication is cut: a part is all that it sees of the parameters.

    Args:
      team: the workers.
      parts: the names of the leaves of each of n parts; part k communicates k/n of a period later. All of them
        do at once if a worker is lost that can start again.
    """

    def __init__(self, team: Independent, parts: Sequence[Sequence[str]]) -> None:
        self.team, self.parts = team, parts
        names = sorted(team.starts[0])
        numbers = as_vector({name: np.full(np.shape(team.starts[0][name]), names.index(name)) for name in names})
        self.columns = [np.flatnonzero(np.isin(numbers, [names.index(name) for name in part])) for part in parts]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.team, name)

    def communicate(self, step: int) -> None:
        """What happens after this local step, counted from 1."""
        for kind in PERIODS:
            period = getattr(self.team, kind, None)
            if period is None or (kind == "local_period" and self.team.groups == 1):
                continue
            for k in range(len(self.parts)):
                if (step - k * period // len(self.parts)) % period == 0:
                    self._take_place(kind, k, step)

    def _take_place(self, kind: str, k: int, step: int) -> None:
        team, part = self.team, self.parts[k]
        if team.reseed and not team.finite.all():
            self._only(team, kind, step)
            return
        alone, columns, whole = copy.copy(team), self.columns[k], team.x.shape[1]
        arrays = [
            name for name, value in vars(team).items() if isinstance(value, np.ndarray) and value.shape[-1:] == (whole,)
        ]
        for name in arrays:
            setattr(alone, name, getattr(team, name)[..., columns].copy())
        alone.starts = [{name: start[name] for name in part} for start in team.starts]
        if hasattr(team, "outer_state"):
            alone.outer_state = {name: team.outer_state[name] for name in part}
        finite = team.finite
        alone.x[~finite] = np.nan  # lost, in whatever part
        self._only(alone, kind, step)
        alone.x[~finite] = team.x[~finite][:, columns]
        for name in arrays:
            getattr(team, name)[..., columns] = getattr(alone, name)
        if hasattr(team, "outer_state"):
            team.outer_state = team.outer_state | alone.outer_state

    @staticmethod
    def _only(team: Independent, kind: str, step: int) -> None:
        """The communication of that kind and no other, whatever the step."""
        periods = {name: getattr(team, name) for name in PERIODS if hasattr(team, name)}
        for name in periods:
            setattr(team, name, 1 if name == kind else NEVER)
        team.communicate(step)
        for name, period in periods.items():
            setattr(team, name, period)
