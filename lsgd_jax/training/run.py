"""From settings to everything that a run computes with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.training.config import Config
from lsgd_jax.training.datasets import Dataset, Source, load_dataset
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.evaluation import Candidates, every_worker, make_candidates, make_evaluate, put_evaluation_set
from lsgd_jax.training.images import Preprocessing
from lsgd_jax.training.ledger import Ledger, ledger
from lsgd_jax.training.local_steps import Loss
from lsgd_jax.training.methods import make_method
from lsgd_jax.training.models import FunctionalModel, Shape, make_model
from lsgd_jax.training.precision import compiler_options
from lsgd_jax.training.sampling import Batch, make_batches, put_on_devices, shard_size
from lsgd_jax.training.topology import Topology
from lsgd_jax.training.train_step import TrainState, init_state, make_train_step


class Run(NamedTuple):
    """Everything that a run computes with.

    Attributes:
      method: the distributed optimizer.
      topology: where its workers live.
      ledger: what they send.
      init_state: makes the state of all workers before the first step.
      data: the training set on the devices.
      train_step: `(state, data, steps) -> (state, report)`, jitted.
      candidates: `state -> Candidates`, the models to evaluate.
      evaluate: `((params, model_state), prefix) -> figures` on validation and test.
      evaluate_workers: `state -> figures` of each worker, in the order of ranks.
      batch_size: a worker's.
      input_shape: (height, width, channels) of the model's input.
      classes: the number of classes.
      preprocessing: the data set's.
    """

    method: DistributedOptimizer
    topology: Topology
    ledger: Ledger
    init_state: Callable[[], TrainState]
    data: Any
    train_step: Any
    candidates: Callable[[TrainState], Candidates]
    evaluate: Callable[[tuple[Any, Any], str], dict[str, float]]
    evaluate_workers: Callable[[TrainState], list[dict[str, float]]]
    batch_size: int
    input_shape: Shape
    classes: int
    preprocessing: Preprocessing


def build_run(config: Config, source: Source) -> Run:
    """Reads the data and makes all functions; neither trains nor writes anything."""
    samples, batch_size = samples_and_batch_size(config, source)
    method, topology = make_method(config), Topology(config.groups, config.workers)
    model = make_model(config.model_name, source.input_shape, source.classes)  # to start from and to evaluate
    trained = make_model(config.model_name, source.input_shape, source.classes, config.compute_dtype)
    dataset = load_dataset(source, seed=config.seed)
    batches = make_batches(config.sampling, samples, batch_size, dataset.preprocessing)
    key = jax.random.key(config.seed)
    evaluate = _make_evaluate_splits(model, dataset, topology)
    return Run(
        method=method,
        topology=topology,
        ledger=ledger(method, *jax.eval_shape(model.init, key), groups=config.groups, workers=config.workers),
        init_state=lambda: init_state(method, topology, model.init, key, same_init=config.init == "same"),
        data=put_on_devices(dataset.train, topology, config.sampling, config.seed),
        train_step=make_train_step(
            method,
            topology,
            classification_loss(trained),
            batches,
            compiler_options=compiler_options(config.compute_dtype, topology),
        ),
        candidates=make_candidates(method, topology),
        evaluate=evaluate,
        evaluate_workers=lambda state: [evaluate(worker, "") for worker in every_worker(state, topology)],
        batch_size=batch_size,
        input_shape=source.input_shape,
        classes=source.classes,
        preprocessing=dataset.preprocessing,
    )


def classification_loss(model: FunctionalModel) -> Loss:
    """The mean cross-entropy of a minibatch, in nats."""

    def loss(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        logits, model_state = model.apply(params, model_state, batch.images, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean(), model_state

    return loss


def samples_and_batch_size(config: Config, source: Source) -> tuple[int, int]:
    """(samples that a worker draws from, its batch size).

    Raises:
      InputError: if the batch is larger than what it is drawn from.
    """
    samples, where = source.train_samples, "the training set"
    if config.sampling == "shard":
        samples, where = shard_size(samples, config.groups * config.workers), "a worker's shard"
    batch_size = min(128, samples) if config.batch_size is None else config.batch_size
    if not 1 <= batch_size <= samples:
        raise InputError(
            f"--batch_size={batch_size} does not fit into {where} of {samples} images: "
            "use a smaller batch or fewer workers, or --sampling=iid"
        )
    return samples, batch_size


def _make_evaluate_splits(
    model: FunctionalModel, dataset: Dataset, topology: Topology
) -> Callable[[tuple[Any, Any], str], dict[str, float]]:
    evaluate = make_evaluate(model, dataset.preprocessing)
    splits = {
        "validation": put_evaluation_set(dataset.validation, topology),
        "test": put_evaluation_set(dataset.test, topology),
    }

    def evaluate_splits(candidate: tuple[Any, Any], prefix: str) -> dict[str, float]:
        figures = {name: evaluate(candidate, split) for name, split in splits.items()}
        return {f"{prefix}{name}_{key}": float(x) for name, split in figures.items() for key, x in split.items()}

    return evaluate_splits
