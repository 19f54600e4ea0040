"""Classifying images that are decoded as they are needed: sets that do not fit in memory, such as ImageNet."""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lsgd_jax.training.background import Background
from lsgd_jax.training.classification import ERROR, batch_size_of, classification_loss, make_renew, model_of
from lsgd_jax.training.config import Config
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.evaluation import BATCH_SIZE, make_evaluate, put_evaluation_set
from lsgd_jax.training.feed import Block, Feed, local_ranks
from lsgd_jax.training.images import Preprocessing, preprocess
from lsgd_jax.training.loader import EvaluationBatches, Minibatches, stream
from lsgd_jax.training.local_steps import Batches
from lsgd_jax.training.models import FunctionalModel
from lsgd_jax.training.sampling import Batch
from lsgd_jax.training.streamed import StreamedSource
from lsgd_jax.training.task import Candidate, Kind, Task
from lsgd_jax.training.topology import Topology
from lsgd_jax.training.train_step import LONGEST_CALL

BLOCK_BYTES = 2**29
# A process takes seconds to start, which fewer batches are not worth.
BATCHES_PER_PROCESS = 4

# ImageNet's, for pixels of 0 to 255.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def make_task(config: Config, source: StreamedSource, topology: Topology) -> Task:
    """Makes the task; images are read from the first call of its `feed` on."""
    batch_size = streamed_batch_size(config, source)
    length = block_length(source, topology, batch_size)
    minibatches = Minibatches(
        source, config.sampling, batch_size, topology.size, ranks=local_ranks(topology), seed=config.seed
    )
    feed = Feed(minibatches, topology, length=length, steps=config.steps, processes=config.loader_process_count)
    model = model_of(config, source)
    preprocessing = Preprocessing(MEAN, STD, crop=source.side)
    image_bytes = int(np.prod(source.input_shape))
    description = {
        "model": config.model_name,
        "input_shape": source.input_shape,
        "classes": source.classes,
        "preprocessing": dataclasses.asdict(preprocessing),
    }
    return Task(
        model=model,
        loss=classification_loss(model_of(config, source, config.compute_dtype)),
        batches=make_batches(length, preprocessing),
        feed=feed,
        longest_call=length,
        evaluate=_make_evaluate_splits(config, model, source, preprocessing, topology),
        renew=make_renew(
            model,
            lambda count: read_training_images(minibatches, min(count, BLOCK_BYTES // image_bytes), config),
            lambda images, key: preprocess(images, preprocessing),
            config.seed,
            topology,
        ),
        description=description,
        metric=ERROR,
        batch_size=batch_size,
        unit="images",
        units_per_batch=batch_size,
        close=feed.close,
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


def block_length(source: StreamedSource, topology: Topology, batch_size: int) -> int:
    """Steps whose minibatches, of all workers, take BLOCK_BYTES or less; at least one."""
    step_bytes = topology.size * batch_size * int(np.prod(source.input_shape))
    return max(1, min(LONGEST_CALL, BLOCK_BYTES // step_bytes))


def read_training_images(minibatches: Minibatches, count: int, config: Config) -> np.ndarray:
    """The images of the first minibatches of all workers, `count` of them or a few fewer; at least one minibatch."""
    everybody = dataclasses.replace(minibatches, ranks=tuple(range(minibatches.workers)))
    numbers = range(max(1, count // minibatches.batch_size))
    processes = min(config.loader_process_count, len(numbers) // BATCHES_PER_PROCESS)
    with contextlib.closing(stream(everybody, numbers, processes)) as read:
        return np.concatenate([batch.images for batch in read])


def make_batches(length: int, preprocessing: Preprocessing) -> Batches:
    """Minibatches from blocks of `length` steps, which begin at multiples of it."""

    def plan(key: jax.Array, first_step: jax.Array, steps: int) -> jax.Array:
        del key  # images have been drawn, cropped and flipped where they were decoded
        return (first_step + jnp.arange(steps)) % length

    def draw(block: Block, place: jax.Array, key: jax.Array) -> Batch:
        del key
        return Batch(preprocess(block.images[place], preprocessing), block.labels[place])

    return Batches(plan=plan, draw=draw, per_worker=True)


def _make_evaluate_splits(
    config: Config,
    model: FunctionalModel,
    source: StreamedSource,
    preprocessing: Preprocessing,
    topology: Topology,
) -> Callable[[Candidate, str], dict[str, float]]:
    evaluate = make_evaluate(model, preprocessing)
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
        for split in ("validation", "test"):
            of_split = np.flatnonzero(splits == split)
            weights = [counts[i] for i in of_split]
            for name in figures[0]:
                values = [float(figures[i][name]) for i in of_split]
                means[f"{prefix}{split}_{name}"] = float(np.average(values, weights=weights))
        return means

    return evaluate_splits


KIND = Kind(ERROR, streamed_batch_size, model_of, make_task)
