"""Classifying images that fit in memory."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsgd_jax.training.batch_statistics import STATISTICS_SAMPLES, has_batch_statistics, measured_again, reestimate
from lsgd_jax.training.config import Config
from lsgd_jax.training.datasets import ImageSource, Source, load_dataset
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.evaluation import SampleFigures, evaluate_splits
from lsgd_jax.training.images import Batch, Preprocessing, augment, augmented, preprocess
from lsgd_jax.training.kind import Kind
from lsgd_jax.training.local_steps import Loss
from lsgd_jax.training.metric import Metric
from lsgd_jax.training.models import MODELS, Dtype, FunctionalModel, check_model, make_model
from lsgd_jax.training.models.language import LANGUAGE_MODELS
from lsgd_jax.training.sampling import shard_size
from lsgd_jax.training.sources import from_arrays
from lsgd_jax.training.task import Renew, Task
from lsgd_jax.training.topology import Topology

# Of the images that batch statistics are measured on, how many at a time.
STATISTICS_BATCH = 250
ERROR = Metric("error", "error", "%", scale=100.0, digits=2, worst=1.0)


def make_task(config: Config, source: Source) -> Task:
    """Reads the images and makes the task."""
    dataset = load_dataset(source, seed=config.seed)
    model, how = model_of(config, source), dataset.preprocessing
    splits = {"validation": dataset.validation, "test": dataset.test}
    figures = classification_figures(model, how)
    return Task(
        init=model.init,
        loss=classification_loss(model_of(config, source, config.compute_dtype)),
        train=from_arrays(
            dataset.train, batch_size_of(config, source), sampling=config.sampling, augment=augmented(how)
        ),
        name=source.name,
        unit="images",
        metric=ERROR,
        evaluate=lambda topology: evaluate_splits(figures, splits, topology),
        renew=make_renew(model, lambda count: dataset.train.images[:count], functools.partial(augment, how=how)),
        description=describe(config, source, how),
    )


def describe(config: Config, source: ImageSource, how: Preprocessing) -> dict[str, Any]:
    """What loading a model has to know of it."""
    return {
        "model": config.model_name,
        "input_shape": source.input_shape,
        "classes": source.classes,
        "preprocessing": dataclasses.asdict(how),
    }


def classification_figures(model: FunctionalModel, how: Preprocessing) -> SampleFigures:
    """The cross-entropy in nats, and whether the prediction is wrong, of raw images and labels."""

    def figures(params: Any, model_state: Any, raw: Any) -> dict[str, jax.Array]:
        logits, _ = model.apply(params, model_state, preprocess(raw.images, how), None)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, raw.labels)
        # A model that is not finite is wrong everywhere, whatever argmax makes of NaN.
        right = (logits.argmax(-1) == raw.labels) & jnp.isfinite(logits).all(-1)
        return {"loss": losses, "error": (~right).astype(jnp.float32)}

    return figures


def classification_loss(model: FunctionalModel) -> Loss:
    """The mean cross-entropy of a minibatch, in nats."""

    def loss(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        logits, model_state = model.apply(params, model_state, batch.images, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean(), model_state

    return loss


def model_of(config: Config, source: ImageSource, compute_dtype: Dtype = None) -> FunctionalModel:
    """The model of the settings, for these images."""
    return make_model(config.model_name, source.input_shape, source.classes, compute_dtype)


def batch_size_of(config: Config, source: ImageSource) -> int:
    """A worker's batch size.

    Raises:
      InputError: if the model does not fit the images, or the batch is larger than what it is drawn from.
    """
    _check_settings(config)
    check_model(config.model_name, source.input_shape)
    samples, where = _samples(config, source)
    batch_size = min(128, samples) if config.batch_size is None else config.batch_size
    if not 1 <= batch_size <= samples:
        raise InputError(
            f"--batch_size={batch_size} does not fit into {where} of {samples} images: "
            "use a smaller batch or fewer workers, or --sampling=iid"
        )
    return batch_size


def _check_settings(config: Config) -> None:
    """Refuses what only language models have."""
    if config.model_name in LANGUAGE_MODELS:
        raise InputError(
            f"--model={config.model_name} is for text: choose one of {', '.join(sorted(MODELS))}, or give a --text_file"
        )
    for name in ("model_width", "model_layers", "dropout"):
        if getattr(config, name) is not None:
            raise InputError(f"--{name} is for language models: leave it out, or give a --text_file")


def _samples(config: Config, source: ImageSource) -> tuple[int, str]:
    """(images that a worker draws from, what they are)."""
    if config.sampling == "iid":
        return source.train_samples, "the training set"
    return shard_size(source.train_samples, config.groups * config.workers), "a worker's shard"


def make_renew(
    model: FunctionalModel, read: Callable[[int], np.ndarray], inputs: Callable[[jax.Array, jax.Array], jax.Array]
) -> Callable[[Topology, int], Renew] | None:
    """Makes a task's `renew`: batch statistics are measured on training images, the same ones each time.

    Args:
      model: the model.
      read: `count -> uint8[count or fewer, height, width, channels]`, training images; called once, if at all.
      inputs: `(images, key) -> float32`, the model's input from a batch of them.
    """
    if not has_batch_statistics(model):
        return None

    def batches() -> np.ndarray:
        images = read(STATISTICS_SAMPLES)
        size = min(STATISTICS_BATCH, len(images))
        images = images[: len(images) // size * size]
        return images.reshape(-1, size, *images.shape[1:])

    def state_of(params: Any, model_state: Any, batches: Any, key: jax.Array) -> Any:
        return reestimate(model, params, model_state, batches, key, inputs)

    return measured_again(batches, state_of)


KIND = Kind(ERROR, batch_size_of, lambda config, source: model_of(config, source).init, make_task)
