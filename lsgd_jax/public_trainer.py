"""What `lsgd_jax` gives with the extra `train`, by the names in its `OF_TRAINER`."""

# ruff: noqa: I001
# `a as a` is what strict type checkers take for public.
from lsgd_jax.trainer.saved_models import load_center as load_center, load_model as load_model
from lsgd_jax.trainer.interchange import export_center as export_center, import_center as import_center
from lsgd_jax.tasks.nnx_task import nnx_task as nnx_task
from lsgd_jax.engine.schedules import Schedule as Schedule, follow_factor as follow_factor
from lsgd_jax.data.sources import (
    from_arrays as from_arrays,
    from_function as from_function,
)
from lsgd_jax.data.grain_source import from_grain as from_grain
from lsgd_jax.tasks.task import Task as Task
from lsgd_jax.trainer.trainer import Result as Result, Trainer as Trainer
