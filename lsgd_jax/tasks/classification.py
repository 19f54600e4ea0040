"""Classifying images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsgd_jax.data.datasets import ImageSource, Source, load_dataset
from lsgd_jax.data.grain_source import from_grain, is_dataset
from lsgd_jax.data.images import Batch, Images, Preprocessing, augment, augmented, preprocess
from lsgd_jax.data.sources import from_arrays
from lsgd_jax.engine.local_steps import Loss
from lsgd_jax.engine.topology import Topology
from lsgd_jax.models import FunctionalModel, make_model
from lsgd_jax.tasks.batch_statistics import STATISTICS_SAMPLES, measured_again, reestimate
from lsgd_jax.tasks.evaluation import SampleFigures, evaluate_splits
from lsgd_jax.tasks.metric import Metric
from lsgd_jax.tasks.task import PrepareCenter, Task

# Of the images that batch statistics are measured on, how many at a time.
STATISTICS_BATCH = 250
ERROR = Metric("error", "error", "%", scale=100.0, digits=2, worst=1.0)


def image_classification(
    source: ImageSource,
    batch_size: int,
    *,
    model: str,
    sampling: str = "shard",
    compute_dtype: str = "float32",
    seed: int = 0,
    processes: int = 0,
    score_samples: int = 0,
) -> Task:
    """Classifying the images of a set: one that fits in memory is read now, others while training.

    Args:
      source: the set.
      batch_size: images in a worker's minibatch.
      model: its name, one of `lsgd_jax.models.MODELS`.
      sampling: as in `from_arrays`.
      compute_dtype: of products while training.
      seed: of the images that are held out for validation.
      processes: that decode what does not fit in memory; 0 for a thread of this one.
      score_samples: validation images by whose loss leaders are elected; 0 for the workers' own minibatches.

    Raises:
      InputError: if the set cannot be read, or the model does not fit its images.
    """
    dataset = load_dataset(source, seed=seed)
    network, how = make_model(model, source.input_shape, source.classes), dataset.preprocessing
    splits = {"validation": dataset.validation, "test": dataset.test}
    figures = classification_figures(network, how)
    if isinstance(source, Source):
        train = from_arrays(dataset.train, batch_size, sampling=sampling, augment=augmented(how))
    else:
        train = from_grain(dataset.train, batch_size, sampling=sampling, transform=augmented(how), processes=processes)

    def read(count: int) -> np.ndarray:
        if isinstance(source, Source):
            return dataset.train.images[:count]
        assert train.some is not None
        return np.concatenate(train.some(count).images)

    prepare_center = make_prepare_center(network, read, functools.partial(augment, how=how))
    return Task(
        compute_dtype=compute_dtype,
        init=network.init,
        loss=classification_loss(make_model(model, source.input_shape, source.classes, compute_dtype)),
        gathers=True,
        train=train,
        name=source.name,
        unit="images",
        metric=ERROR,
        evaluate=lambda topology: evaluate_splits(figures, splits, topology, processes),
        prepare_center=prepare_center,
        description=describe(model, source, how),
        score_on=first_of(dataset.validation, how, score_samples) if score_samples else None,
    )


def first_of(validation: Any, how: Preprocessing, count: int) -> Batch:
    """The first images of a validation split, arrays or a Grain dataset, as the model takes them."""
    if is_dataset(validation):
        samples = [validation[i] for i in range(count)]
        validation = Images(*(np.stack(leaves) for leaves in zip(*samples, strict=True)))
    return Batch(preprocess(jnp.asarray(validation.images[:count]), how), jnp.asarray(validation.labels[:count]))


def describe(model: str, source: ImageSource, how: Preprocessing) -> dict[str, Any]:
    """What loading a model has to know of it."""
    return {
        "model": model,
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


def make_prepare_center(
    model: FunctionalModel, read: Callable[[int], np.ndarray], inputs: Callable[[jax.Array, jax.Array], jax.Array]
) -> Callable[[Topology, int], PrepareCenter]:
    """Makes the `prepare_center` of a model with batch statistics, which are measured on training images.

    Args:
      model: the model.
      read: `count -> uint8[count or fewer, height, width, channels]`, training images; called once, if at all.
      inputs: `(images, key) -> float32`, the model's input from a batch of them.
    """

    def batches() -> np.ndarray:
        images = read(STATISTICS_SAMPLES)
        size = min(STATISTICS_BATCH, len(images))
        images = images[: len(images) // size * size]
        return images.reshape(-1, size, *images.shape[1:])

    def state_of(params: Any, model_state: Any, batches: Any, key: jax.Array) -> Any:
        return reestimate(model, params, model_state, batches, key, inputs)

    return measured_again(batches, state_of)
