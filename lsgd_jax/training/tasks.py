"""From settings to a data set, and from that to what is learned of it: the one place that knows every kind."""

from lsgd_jax.training import classification, streaming
from lsgd_jax.training.config import Config
from lsgd_jax.training.datasets import ImageSource, Source, find_dataset
from lsgd_jax.training.streamed import StreamedSource
from lsgd_jax.training.task import Kind

AnySource = ImageSource  # one of those that KINDS names

KINDS: dict[type, Kind] = {Source: classification.KIND, StreamedSource: streaming.KIND}


def find_source(config: Config) -> AnySource:
    """Finds the data set of the settings, and downloads it if that is asked for and needed.

    Raises:
      InputError: if it cannot be found, or the settings do not fit it.
    """
    source = find_dataset(config.dataset, data_dir=config.data_dir, download=config.download)
    kind_of(source).batch_size(config, source)
    return source


def kind_of(source: AnySource) -> Kind:
    """How tasks are made of a data set."""
    return KINDS[type(source)]
