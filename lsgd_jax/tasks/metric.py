"""The figure by which models are chosen and reported."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SPLITS = ("validation", "test")


class Metric(NamedTuple):
    """The figure by which models are chosen and reported: the lower, the better.

    Attributes:
      name: its name in metrics.jsonl, after that of the split.
      label: its name for readers.
      unit: what it is shown in, after `scale`; empty if the label says it.
      scale: from what metrics.jsonl has to what is shown.
      digits: how many are shown after the point.
      worst: of a model that is not finite; what is worse counts as this.
    """

    name: str
    label: str
    unit: str
    scale: float
    digits: int
    worst: float

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the figures of center and leader in metrics.jsonl."""
        return self.columns_of("", SPLITS) + self.columns_of("leader_", SPLITS)

    def columns_of(self, model: str, splits: Iterable[str]) -> tuple[str, ...]:
        """The names of the figures of a model, "" or "leader_", on some splits."""
        return tuple(f"{model}{split}_{self.name}" for split in splits)

    @property
    def title(self) -> str:
        """The label with the unit, for axes and tables."""
        return self.label + self.in_brackets

    @property
    def in_brackets(self) -> str:
        """The unit, as it stands after a label."""
        return f" [{self.unit}]" if self.unit else ""

    def best(self, row: Mapping[str, Any]) -> str:
        """ "leader" if it does better on validation data in a row of metrics.jsonl, else "center"."""
        if f"validation_{self.name}" not in row:
            return "center"
        return "leader" if self.read(row, "leader_validation") < self.read(row, "validation") else "center"

    def bounded(self, value: float | None) -> float:
        """The value; `worst` for one that is worse or not finite, which files have as null."""
        return value if value is not None and value < self.worst else self.worst

    def shown(self, value: float) -> str:
        """A value as readers see it, without the unit."""
        return f"{self.scale * value:.{self.digits}f}"

    def read(self, row: Mapping[str, Any], split: str) -> float:
        """The figure in a row of metrics.jsonl, bounded. `split` may have a prefix, as "leader_test"."""
        return self.bounded(row[f"{split}_{self.name}"])


def plain_metric(name: str) -> Metric:
    """A figure that is shown as it is."""
    return Metric(name, name, "", scale=1.0, digits=4, worst=math.inf)
