"""Classifying images that are decoded as they are needed: sets that do not fit in memory, such as ImageNet."""

import contextlib

import jax
import numpy as np

from lsgd_jax.data.background import Background
from lsgd_jax.data.datasets import Images
from lsgd_jax.data.images import Batch, Preprocessing, preprocess
from lsgd_jax.data.loader import EvaluationBatches, Minibatches, stream
from lsgd_jax.data.prefetch import OfRanks
from lsgd_jax.data.sources import BLOCK_BYTES, Stream, TrainingData, streamed
from lsgd_jax.data.streamed import StreamedSource
from lsgd_jax.engine.topology import Topology
from lsgd_jax.models import Dtype, FunctionalModel, make_model
from lsgd_jax.tasks.batch_statistics import has_batch_statistics
from lsgd_jax.tasks.classification import (
    ERROR,
    classification_figures,
    classification_loss,
    describe,
    make_prepare_center,
)
from lsgd_jax.tasks.evaluation import BATCH_SIZE, Candidate, Evaluate, make_evaluate, put_evaluation_set
from lsgd_jax.tasks.metric import SPLITS
from lsgd_jax.tasks.task import PrepareCenter, Task

# A process takes seconds to start, which fewer batches are not worth.
BATCHES_PER_PROCESS = 4

# ImageNet's, for pixels of 0 to 255.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def streamed_classification(
    source: StreamedSource,
    batch_size: int,
    *,
    model: str,
    sampling: str = "shard",
    compute_dtype: Dtype = None,
    seed: int = 0,
    processes: int = 0,
) -> Task:
    """`image_classification`, of images that are read once its data are open.

    Args:
      processes: that decode them; 0 for a thread of this one.
    """
    network, how = make_model(model, source.input_shape, source.classes), Preprocessing(MEAN, STD, crop=source.side)
    image_bytes = int(np.prod(source.input_shape))
    example = Images(np.zeros((batch_size, *source.input_shape), np.uint8), np.zeros(batch_size, np.int32))

    def minibatches(topology: Topology) -> Minibatches:
        return Minibatches(source, sampling, batch_size, topology.size, seed)

    def open_stream(topology: Topology, seed: int, steps: int) -> Stream:
        images = streamed(
            minibatches(topology),
            example,
            transform=lambda raw, key: Batch(preprocess(raw.images, how), raw.labels),
            processes=processes,
        )
        return images.open(topology, seed, steps)

    def prepare_center(topology: Topology, seed: int) -> PrepareCenter:
        def read(count: int) -> np.ndarray:
            return read_training_images(minibatches(topology), min(count, BLOCK_BYTES // image_bytes), processes)

        return make_prepare_center(network, read, lambda images, key: preprocess(images, how))(topology, seed)

    return Task(
        init=network.init,
        loss=classification_loss(make_model(model, source.input_shape, source.classes, compute_dtype)),
        train=TrainingData(batch_size, open_stream, in_step=True),
        name=source.name,
        unit="images",
        metric=ERROR,
        evaluate=lambda topology: _make_evaluate_splits(network, source, how, topology, seed, processes),
        prepare_center=prepare_center if has_batch_statistics(network) else None,
        description=describe(model, source, how),
    )


def read_training_images(minibatches: Minibatches, count: int, processes: int) -> np.ndarray:
    """The images of the first minibatches of all workers, `count` of them or a few fewer; at least one minibatch."""
    everybody = OfRanks(minibatches, tuple(range(minibatches.workers)))
    numbers = range(max(1, count // minibatches.batch_size))
    most = len(numbers) // BATCHES_PER_PROCESS
    with contextlib.closing(stream(everybody, numbers, min(processes, most))) as read:
        return np.concatenate([batch.images for batch in read])


def _make_evaluate_splits(
    model: FunctionalModel,
    source: StreamedSource,
    how: Preprocessing,
    topology: Topology,
    seed: int,
    processes: int,
) -> Evaluate:
    evaluate = make_evaluate(classification_figures(model, how))
    batch_size = min(BATCH_SIZE, max(source.held_out, len(source.test)))
    batches = EvaluationBatches(source, batch_size, seed)
    splits = np.array(batches.splits())
    processes = min(processes, len(splits) // BATCHES_PER_PROCESS)

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
