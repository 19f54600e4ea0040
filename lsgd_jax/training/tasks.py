"""From settings to a data set, and from that to what is learned of it: the one place that knows every kind."""

from lsgd_jax.training import classification, language, streaming
from lsgd_jax.training.config import Config
from lsgd_jax.training.datasets import Source, find_dataset, image_source
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.kind import Kind
from lsgd_jax.training.metric import Metric, plain_metric
from lsgd_jax.training.own_code import load_task
from lsgd_jax.training.prepared import prepared_builder
from lsgd_jax.training.streamed import StreamedSource
from lsgd_jax.training.task import Task, metric_of
from lsgd_jax.training.text import TextSource, is_text, text_file_source, text_set_source

AnySource = Source | StreamedSource | TextSource | Task

KINDS: dict[type, Kind] = {
    Source: classification.KIND,
    StreamedSource: streaming.KIND,
    TextSource: language.KIND,
}
METRICS = {kind.metric.name: kind.metric for kind in KINDS.values()}


def find_source(config: Config) -> AnySource:
    """Finds the data set of the settings, and downloads it if that is asked for and needed.

    Raises:
      InputError: if it cannot be found.
    """
    if config.task is not None:
        return load_task(config.task)
    if config.text_file is not None:
        return text_file_source(config.text_file)
    if config.dataset == "digits":
        return find_dataset(config.dataset)
    builder = prepared_builder(config.dataset, config.data_dir, config.download)
    return text_set_source(builder) if is_text(builder) else image_source(builder)


def kind_of(source: AnySource) -> Kind:
    """How tasks are made of a data set; a task is there already."""
    if isinstance(source, Task):
        return Kind(metric_of(source), own_batch_size, lambda config, task: task.init, lambda config, task: task)
    return KINDS[type(source)]


def own_batch_size(config: Config, task: Task) -> int:
    """A worker's batch size, which the task sets.

    Raises:
      InputError: if the settings are of other kinds of data, or want another.
    """
    for name in ("model", "model_width", "model_layers", "dropout"):
        if getattr(config, name) is not None:
            raise InputError(f"--{name} is for our own models: leave it out, since --task={config.task} has its own")
    if task.train.in_step and (flag := config.asynchronous_flag):
        raise InputError(
            f"{flag}: the data of --task={config.task} come to all workers step by step: "
            "leave it out, or use from_arrays"
        )
    batch_size = task.train.batch_size
    if config.batch_size not in (None, batch_size):
        raise InputError(f"--batch_size={config.batch_size}: --task={config.task} sets it, to {batch_size}")
    return batch_size


def metric_named(name: str) -> Metric:
    """The metric that a summary names: one of ours, or of a task of a user's."""
    return METRICS.get(name) or plain_metric(name)
