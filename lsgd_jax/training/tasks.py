"""From settings to a data set, and from that to what is learned of it: the one place that knows every kind."""

from lsgd_jax.training import classification, language, streaming
from lsgd_jax.training.config import Config
from lsgd_jax.training.datasets import Source, find_dataset, image_source
from lsgd_jax.training.kind import Kind
from lsgd_jax.training.prepared import prepared_builder
from lsgd_jax.training.streamed import StreamedSource
from lsgd_jax.training.text import TextSource, is_text, text_file_source, text_set_source

AnySource = Source | StreamedSource | TextSource  # one of those that KINDS names

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
    if config.text_file is not None:
        return text_file_source(config.text_file)
    if config.dataset == "digits":
        return find_dataset(config.dataset)
    builder = prepared_builder(config.dataset, config.data_dir, config.download)
    return text_set_source(builder) if is_text(builder) else image_source(builder)


def kind_of(source: AnySource) -> Kind:
    """How tasks are made of a data set."""
    return KINDS[type(source)]
