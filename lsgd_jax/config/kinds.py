"""From settings to a data set, and from that to what is learned of it: the one place that knows every kind."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from lsgd_jax.config.config import TEXT_MODEL, Config
from lsgd_jax.config.own_code import load_task
from lsgd_jax.data.datasets import ImageSource, Source, find_dataset, image_source
from lsgd_jax.data.prepared import prepared_builder
from lsgd_jax.data.sampling import shard_size
from lsgd_jax.data.streamed import StreamedSource
from lsgd_jax.data.text import TextSource, is_text, text_file_source, text_set_source
from lsgd_jax.data.text_batches import windows_in
from lsgd_jax.data.vocabulary import read_vocabulary
from lsgd_jax.errors import InputError
from lsgd_jax.models import MODELS, check_model, make_model
from lsgd_jax.models.language import LANGUAGE_MODELS, check_language_model, make_language_model
from lsgd_jax.models.transformer import Remat
from lsgd_jax.tasks.classification import ERROR, image_classification
from lsgd_jax.tasks.language import BITS_PER_BYTE, check_windows, language_modelling, tokens_of_worker
from lsgd_jax.tasks.metric import Metric, plain_metric
from lsgd_jax.tasks.task import Init, Task, metric_of

AnySource = Source | StreamedSource | TextSource | Task

IMAGE_BATCH_SIZE = 128
TEXT_BATCH_SIZE = 32


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


def image_batch_size(config: Config, source: ImageSource) -> int:
    """A worker's batch size.

    Raises:
      InputError: if the model does not fit the images, or the batch is larger than what it is drawn from.
    """
    name = config.model_name
    if name in LANGUAGE_MODELS:
        raise InputError(
            f"--model={name} is for text: choose one of {', '.join(sorted(MODELS))}, or give a --text_file"
        )
    for flag in ("tokenizer", "model_width", "model_layers", "dropout", "remat"):
        if getattr(config, flag) is not None:
            raise InputError(f"--{flag} is for language models: leave it out, or give a --text_file")
    check_model(name, source.input_shape)
    _check_score_samples(config, source.held_out, "images")
    samples, where = source.train_samples, "the training set"
    if config.sampling != "iid":
        samples, where = shard_size(samples, config.groups * config.workers), "a worker's shard"
    batch_size = min(IMAGE_BATCH_SIZE, samples) if config.batch_size is None else config.batch_size
    if not 1 <= batch_size <= samples:
        raise InputError(
            f"--batch_size={batch_size} does not fit into {where} of {samples} images: "
            "use a smaller batch or fewer workers, or --sampling=iid"
        )
    return batch_size


def streamed_batch_size(config: Config, source: StreamedSource) -> int:
    """A worker's batch size.

    Raises:
      InputError: if the model does not fit the images, or the batch or the workers' speeds the set.
    """
    if flag := config.asynchronous_flag:
        raise InputError(
            f"{flag}: images that are decoded while training come to all workers step by step: "
            "leave it out, or use a data set that fits in memory"
        )
    return image_batch_size(config, source)


def text_batch_size(config: Config, source: TextSource) -> int:
    """A worker's batch size.

    Raises:
      InputError: if the model is not one of text, or the batch does not fit into the
        text that it is drawn from.
    """
    name = text_model(config)
    check_language_model(name, config.remat)
    if config.sampling == "reshuffle" and LANGUAGE_MODELS[name].carries:
        raise InputError(
            f"--sampling=reshuffle: the {name} reads a text from beginning to end: "
            "use --sampling=shard, or --model=transformer"
        )
    if config.score_samples and LANGUAGE_MODELS[name].carries:
        raise InputError(
            f"--score_samples={config.score_samples}: what the {name} carries is of its worker's place in the text: "
            "use --model=transformer"
        )
    if config.score_samples:
        _check_score_samples(
            config, windows_in(len(source.read().validation.tokens), config.sequence_length), "windows"
        )
    batch_size = TEXT_BATCH_SIZE if config.batch_size is None else config.batch_size
    size = tokens_of_worker(source.train_tokens, config.sampling, config.groups * config.workers)
    if config.sampling != "iid" and config.batch_size is None:
        batch_size = max(1, min(batch_size, windows_in(size, config.sequence_length)))
    check_windows(size, config.sampling, batch_size, config.sequence_length)
    return batch_size


def _check_score_samples(config: Config, there: int, what: str) -> None:
    if config.score_samples > there:
        raise InputError(
            f"--score_samples={config.score_samples}: the validation split has {there:,} {what}: use fewer"
        )


def text_model(config: Config) -> str:
    """The model of the settings, which do not know of every set by its name that it is text."""
    return config.model or TEXT_MODEL


def text_sizes(config: Config) -> dict[str, Any]:
    """Sizes of the model: those of the settings, or the model's usual ones."""
    usual, given = LANGUAGE_MODELS[text_model(config)], (config.model_width, config.model_layers, config.dropout)
    names = ("width", "layers", "dropout")
    sizes = {name: getattr(usual, name) if x is None else x for name, x in zip(names, given, strict=True)}
    return {"sequence_length": config.sequence_length, **sizes}


def image_init(config: Config, source: ImageSource) -> Init:
    """Of the model of the settings, for these images."""
    return make_model(config.model_name, source.input_shape, source.classes).init


def text_init(config: Config, source: TextSource) -> Init:
    """Of the model of the settings."""
    vocabulary, batch_size = source.vocabulary.size, text_batch_size(config, source)
    return make_language_model(text_model(config), vocabulary, batch_size, **text_sizes(config)).init


def image_task(config: Config, source: ImageSource) -> Task:
    """Makes the task; reads the images, if they fit in memory."""
    return image_classification(
        source,
        kind_of(source).batch_size(config, source),
        model=config.model_name,
        sampling=config.sampling,
        compute_dtype=config.compute_dtype,
        seed=config.seed,
        processes=config.loader_process_count,
        score_samples=config.score_samples,
    )


def text_task(config: Config, source: TextSource) -> Task:
    """Reads the text and makes the task."""
    return language_modelling(
        source,
        text_batch_size(config, source),
        model=text_model(config),
        sampling=config.sampling,
        compute_dtype=config.compute_dtype,
        remat=cast(Remat | None, config.remat),
        score_samples=config.score_samples,
        **text_sizes(config),
    )


KINDS: dict[type, Kind] = {
    Source: Kind(ERROR, image_batch_size, image_init, image_task),
    StreamedSource: Kind(ERROR, streamed_batch_size, image_init, image_task),
    TextSource: Kind(BITS_PER_BYTE, text_batch_size, text_init, text_task),
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
        return text_file_source(config.text_file, read_vocabulary(config.tokenizer))
    if config.dataset == "digits":
        return find_dataset(config.dataset)
    builder = prepared_builder(config.dataset, config.data_dir, config.download)
    if is_text(builder):
        return text_set_source(builder, read_vocabulary(config.tokenizer))
    return image_source(builder)


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
    for name in ("tokenizer", "model", "model_width", "model_layers", "dropout", "remat"):
        if getattr(config, name) is not None:
            raise InputError(f"--{name} is for our own models: leave it out, since --task={config.task} has its own")
    for name in ("sampling", "sequence_length", "compute_dtype", "loader_processes", "score_samples"):
        if getattr(config, name) != getattr(Config, name):
            raise InputError(f"--{name} is for our own tasks: leave it out, since --task={config.task} has its own")
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
