"""What the evaluated models get right: the center, the leader, and each worker."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lsgd_jax.collectives import GROUP, WORKER, broadcast_from_leader, elect_leader, is_inexact, mean
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.optimizers.window import window_mean
from lsgd_jax.training.datasets import Images
from lsgd_jax.training.images import Preprocessing, preprocess
from lsgd_jax.training.models import FunctionalModel
from lsgd_jax.training.processes import put
from lsgd_jax.training.state import TrainState, state_specs
from lsgd_jax.training.topology import Topology

BATCH_SIZE = 256


class Candidates(NamedTuple):
    """The models that an evaluation looks at, the same on every device.

    Attributes:
      center: (params, model_state) of the center.
      leader: (params, model_state) of the worker with the lowest score.
      leader_rank: int32[], its rank j·l + i; -1 if no worker can lead, and then
        `leader` is worker 0.
    """

    center: tuple[Any, Any]
    leader: tuple[Any, Any]
    leader_rank: jax.Array


def make_candidates(optimizer: DistributedOptimizer, topology: Topology) -> Callable[[TrainState], Candidates]:
    """Makes the jitted function that gathers the center and the leader from all workers."""

    def of_worker(params: Any, model_state: Any, opt_state: Any, losses: Any) -> Candidates:
        everybody = topology.axes.all
        finite = all_finite(params)
        leader = elect_leader(jnp.where(finite, window_mean(losses), jnp.inf), everybody)
        # Where nobody can lead, worker 0 is shown, for all devices to hold the same.
        first = jax.lax.axis_index(everybody) == 0
        shown = leader._replace(is_leader=leader.is_leader | (~leader.valid & first), valid=jnp.array(True))
        center = optimizer.center(params, opt_state, topology.axes)
        leader_params, leader_state = broadcast_from_leader((params, model_state), shown, everybody)
        center_state = mean(model_state, everybody, where=finite)
        # What has no mean is the leader's.
        center_state = jax.tree.map(lambda m, x: m if is_inexact(m) else x, center_state, leader_state)
        return Candidates(
            center=(center, center_state),
            leader=(leader_params, leader_state),
            leader_rank=leader.rank,
        )

    def of_device(state: TrainState) -> Candidates:
        lanes = topology.over_lanes(of_worker)(state.params, state.model_state, state.opt_state, state.losses)
        return jax.tree.map(lambda x: x[0, 0], lanes)  # all lanes hold the same

    return jax.jit(topology.over_devices(of_device, in_specs=(state_specs(),), out_specs=PartitionSpec()))


class EvaluationSet(NamedTuple):
    """A split on the devices, in batches [batches, batch, ...]; padding has weight 0."""

    images: jax.Array
    labels: jax.Array
    weights: jax.Array


def put_evaluation_set(split: Images, topology: Topology, batch_size: int | None = None) -> EvaluationSet:
    """Puts a split, or a part of one, where evaluation reads it, each batch spread over all devices.

    Args:
      split: at least one image.
      topology: the devices.
      batch_size: images in a batch, before it is filled up to a multiple of the devices; by
        default BATCH_SIZE, or all if they are fewer.
    """
    devices = topology.mesh.size
    size = -(-(batch_size or min(BATCH_SIZE, len(split.labels))) // devices) * devices
    batches = -(-len(split.labels) // size)

    def batched(array: np.ndarray) -> np.ndarray:
        padding = [(0, batches * size - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, padding).reshape(batches, size, *array.shape[1:])

    spread = NamedSharding(topology.mesh, PartitionSpec(None, (GROUP, WORKER)))
    arrays = (split.images, split.labels, np.ones(len(split.labels), np.float32))
    return EvaluationSet(*[put(batched(array), spread) for array in arrays])


def make_evaluate(model: FunctionalModel, preprocessing: Preprocessing) -> Callable[..., dict[str, jax.Array]]:
    """Makes `evaluate((params, model_state), evaluation_set) -> {"loss", "error"}`, jitted.

    The loss is the mean cross-entropy in nats, the error the share of wrong
    predictions in [0, 1].
    """

    @jax.jit
    def evaluate(candidate: tuple[Any, Any], split: EvaluationSet) -> dict[str, jax.Array]:
        def of_batch(batch: EvaluationSet) -> tuple[jax.Array, jax.Array]:
            logits, _ = model.apply(*candidate, preprocess(batch.images, preprocessing), None)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
            # A model that is not finite is wrong everywhere, whatever argmax makes of NaN.
            right = (logits.argmax(-1) == batch.labels) & jnp.isfinite(logits).all(-1)
            real = batch.weights > 0
            return jnp.where(real, losses, 0).sum(), jnp.where(real, ~right, False).sum()

        losses, wrong = lax.map(of_batch, split)
        count = split.weights.sum()
        return {"loss": losses.sum() / count, "error": wrong.sum() / count}

    return evaluate


def every_worker(state: TrainState, topology: Topology) -> Iterator[tuple[Any, Any]]:
    """(params, model_state) of each worker, on every device, in the order of ranks."""

    @functools.partial(jax.jit, out_shardings=topology.replicated)
    def take(tree: Any, group: int, worker: int) -> Any:
        return jax.tree.map(lambda x: x[group, worker], tree)

    for group in range(topology.groups):
        for worker in range(topology.workers):
            yield take((state.params, state.model_state), group, worker)
