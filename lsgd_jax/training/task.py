"""What workers learn: the model and its loss, the data, and how a model is evaluated."""

from collections.abc import Callable
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
    batch_size: int
    unit: str
    units_per_batch: int
    close: Callable[[], None] = lambda: None


class Kind(NamedTuple):
    """How tasks are made of one kind of data set.

    Attributes:
      batch_size: `(config, source) -> int`, a worker's batch size, after a check that
        the settings fit the data. Raises InputError if they do not.
      model: `(config, source, compute_dtype) -> FunctionalModel`.
      task: `(config, source, topology) -> Task`; reads the data.
    """

    batch_size: Callable[[Config, Any], int]
    model: Callable[[Config, Any, Dtype], FunctionalModel]
    task: Callable[[Config, Any, Topology], Task]
