"""How tasks are made of data sets."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lsgd_jax.training.config import Config
from lsgd_jax.training.metric import Metric
from lsgd_jax.training.models import Dtype, FunctionalModel
from lsgd_jax.training.task import Task


class Kind(NamedTuple):
    """How tasks are made of one kind of data set.

    Attributes:
      metric: by which its models are chosen and reported.
      batch_size: `(config, source) -> int`, a worker's batch size, after a check that
        the settings fit the data. Raises InputError if they do not.
      model: `(config, source, compute_dtype) -> FunctionalModel`.
      task: `(config, source) -> Task`; reads the data.
    """

    metric: Metric
    batch_size: Callable[[Config, Any], int]
    model: Callable[[Config, Any, Dtype], FunctionalModel]
    task: Callable[[Config, Any], Task]
