"""How tasks are made of data sets."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lsgd_jax.training.config import Config
from lsgd_jax.training.metric import Metric
from lsgd_jax.training.task import Init, Task


class Kind(NamedTuple):
    """How tasks are made of one kind of data set.

    Attributes:
      metric: by which its models are chosen and reported.
      batch_size: `(config, source) -> int`, a worker's batch size, after a check that
        the settings fit the data. Raises InputError if they do not.
      init: `(config, source) -> init`, of a model's parameters.
      task: `(config, source) -> Task`; reads the data.
    """

    metric: Metric
    batch_size: Callable[[Config, Any], int]
    init: Callable[[Config, Any], Init]
    task: Callable[[Config, Any], Task]
