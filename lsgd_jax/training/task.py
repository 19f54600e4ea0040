"""What workers learn: the model and its loss, the data, and how a model is evaluated."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lsgd_jax.training.config import Config
from lsgd_jax.training.local_steps import Batches, Loss
from lsgd_jax.training.models import Dtype, FunctionalModel
from lsgd_jax.training.topology import Topology

Candidate = tuple[Any, Any]
"""(params, model_state) of a model to evaluate."""


class Task(NamedTuple):
    """All that a run has to know of what it learns.

    Attributes:
      model: in float32, to start from and to evaluate.
      loss: of one worker on one minibatch.
      batches: where minibatches come from.
      feed: `(step, steps) -> data`, what the call of the train step that begins at
        `step` draws from. Calls come in order, `steps` of them at a time or fewer.
      longest_call: local steps in one call of the train step, at most; None if the data set no bound.
      evaluate: `(candidate, prefix) -> figures` on validation and test: names like
        `validation_loss`, after the prefix.
      renew: `center -> center`, the model of averaged parameters made ready: what it
        keeps besides them is no average.
      description: what `load_center` has to know of the model, as JSON.
      metric: by which its models are chosen and reported.
      batch_size: a worker's.
      unit: what is counted for progress: "images", "tokens".
      units_per_batch: how many of them a minibatch has.
      close: ends what `feed` has started.
    """

    model: FunctionalModel
    loss: Loss
    batches: Batches
    feed: Callable[[int, int], Any]
    longest_call: int | None
    evaluate: Callable[[Candidate, str], dict[str, float]]
    renew: Callable[[Candidate], Candidate]
    description: dict[str, Any]
    metric: "Metric"
    batch_size: int
    unit: str
    units_per_batch: int
    close: Callable[[], None] = lambda: None


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
        return tuple(f"{model}{split}_{self.name}" for model in ("", "leader_") for split in ("validation", "test"))

    @property
    def title(self) -> str:
        """The label with the unit, for axes and tables."""
        return self.label + self.in_brackets

    @property
    def in_brackets(self) -> str:
        """The unit, as it stands after a label."""
        return f" [{self.unit}]" if self.unit else ""

    def bounded(self, value: float | None) -> float:
        """The value; `worst` for one that is worse or not finite, which files have as null."""
        return value if value is not None and value < self.worst else self.worst

    def shown(self, value: float) -> str:
        """A value as readers see it, without the unit."""
        return f"{self.scale * value:.{self.digits}f}"

    def read(self, row: Mapping[str, Any], split: str) -> float:
        """The figure in a row of metrics.jsonl, bounded. `split` may have a prefix, as "leader_test"."""
        return self.bounded(row[f"{split}_{self.name}"])


class Kind(NamedTuple):
    """How tasks are made of one kind of data set.

    Attributes:
      metric: by which its models are chosen and reported.
      batch_size: `(config, source) -> int`, a worker's batch size, after a check that
        the settings fit the data. Raises InputError if they do not.
      model: `(config, source, compute_dtype) -> FunctionalModel`.
      task: `(config, source, topology) -> Task`; reads the data.
    """

    metric: Metric
    batch_size: Callable[[Config, Any], int]
    model: Callable[[Config, Any, Dtype], FunctionalModel]
    task: Callable[[Config, Any, Topology], Task]
