"""Classifying images that are decoded as they are needed: sets that do not fit in memory, such as ImageNet."""

import contextlib

import jax
import numpy as np

from lsgd_jax.training.background import Background
from lsgd_jax.training.classification import (
    ERROR,
    batch_size_of,
    classification_figures,
    classification_loss,
    describe,
    make_renew,
    model_of,
)
from lsgd_jax.training.config import Config
from lsgd_jax.training.datasets import Images
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.evaluation import BATCH_SIZE, Candidate, Evaluate, make_evaluate, put_evaluation_set
from lsgd_jax.training.feed import OfRanks
from lsgd_jax.training.images import Batch, Preprocessing, preprocess
from lsgd_jax.training.kind import Kind
from lsgd_jax.training.loader import EvaluationBatches, Minibatches, stream
from lsgd_jax.training.metric import SPLITS
from lsgd_jax.training.models import FunctionalModel
from lsgd_jax.training.sources import BLOCK_BYTES, streamed
from lsgd_jax.training.streamed import StreamedSource
from lsgd_jax.training.task import Task
from lsgd_jax.training.topology import Topology

# A process takes seconds to start, which fewer batches are not worth.
BATCHES_PER_PROCESS = 4

# ImageNet's, for pixels of 0 to 255.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def make_task(config: Config, source: StreamedSource) -> Task:
    """Makes the task; images are read once its data are open."""
    batch_size, workers = streamed_batch_size(config, source), config.groups * config.workers
    minibatches = Minibatches(source, config.sampling, batch_size, workers, config.seed)
    model, how = model_of(config, source), Preprocessing(MEAN, STD, crop=source.side)
    image_bytes = int(np.prod(source.input_shape))
    example = Images(np.zeros((batch_size, *source.input_shape), np.uint8), np.zeros(batch_size, np.int32))
    return Task(
        init=model.init,
        loss=classification_loss(model_of(config, source, config.compute_dtype)),
        train=streamed(
            minibatches,
            example,
            transform=lambda raw, key: Batch(preprocess(raw.images, how), raw.labels),
            processes=config.loader_process_count,
        ),
        name=source.name,
        unit="images",
        metric=ERROR,
        evaluate=lambda topology: _make_evaluate_splits(config, model, source, how, topology),
        renew=make_renew(
            model,
            lambda count: read_training_images(minibatches, min(count, BLOCK_BYTES // image_bytes), config),
            lambda images, key: preprocess(images, how),
        ),
        description=describe(config, source, how),
    )


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
    return batch_size_of(config, source)


def read_training_images(minibatches: Minibatches, count: int, config: Config) -> np.ndarray:
    """The images of the first minibatches of all workers, `count` of them or a few fewer; at least one minibatch."""
    everybody = OfRanks(minibatches, tuple(range(minibatches.workers)))
    numbers = range(max(1, count // minibatches.batch_size))
    processes = min(config.loader_process_count, len(numbers) // BATCHES_PER_PROCESS)
    with contextlib.closing(stream(everybody, numbers, processes)) as read:
        return np.concatenate([batch.images for batch in read])


def _make_evaluate_splits(
    config: Config,
    model: FunctionalModel,
    source: StreamedSource,
    how: Preprocessing,
    topology: Topology,
) -> Evaluate:
    evaluate = make_evaluate(classification_figures(model, how))
    batch_size = min(BATCH_SIZE, max(source.held_out, len(source.test)))
    batches = EvaluationBatches(source, batch_size, config.seed)
    splits = np.array(batches.splits())
    processes = min(config.loader_process_count, len(splits) // BATCHES_PER_PROCESS)

    def evaluate_splits(candidate: Candidate, prefix: str) -> dict[str, float]:
        counts, figures = [], []
        with contextlib.closing(Background(lambda _: stream(batches, range(len(splits)), processes))) as decoded:
            for batch in decoded:
                counts.append(len(batch.labels))
                figures.append(evaluate(candidate, put_evaluation_set(batch, topology, batch_size)))
                jax.block_until_ready(figures[-2:][0])  # few batches are on the devices at a time
        means = {}
        for split in SPLITS:
            of_split = np.flatnonzero(splits == split)
            weights = [counts[i] for i in of_split]
            for name in figures[0]:
                values = [float(figures[i][name]) for i in of_split]
                means[f"{prefix}{split}_{name}"] = float(np.average(values, weights=weights))
        return means

    return evaluate_splits


KIND = Kind(ERROR, streamed_batch_size, lambda config, source: model_of(config, source).init, make_task)
